"""`fvd schema`: the JSON Schema of run files, with every installed plugin's part, for editors."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvd.cli.main import Arguments


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(execute=execute)


def execute(args: Arguments) -> int:
    from fvd.config.schema import run_file_schema

    print(json.dumps(run_file_schema(args.load_all_plugins()), indent=2, ensure_ascii=False))
    return 0
