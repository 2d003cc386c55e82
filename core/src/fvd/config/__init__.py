"""The run file, schema v2: its models, YAML with line numbers, overrides, older spellings, and all problems at once."""
