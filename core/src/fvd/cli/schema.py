"""`fvd schema`: the JSON Schema of run files, with every installed plugin's part, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace) -> int:
    from fvd.config.schema import run_file_schema

    schema: dict[str, Any] = run_file_schema(args.plugins)
    print(json.dumps(schema, indent=2))
    return 0
