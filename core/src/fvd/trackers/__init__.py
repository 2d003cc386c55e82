"""Where metrics and media go."""
