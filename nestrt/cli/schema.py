"""``nestrt schema [NAME]``: JSON Schemas of what commands print with ``--format json``."""

from __future__ import annotations

import argparse

from nestrt.cli._arguments import Named
from nestrt.cli._formats import Column, add_options, write_rows, write_text, yaml_text
from nestrt.cli._view import write_json
from nestrt.errors import NotFound
from nestrt.host.marks import escape
from nestrt.host.schema import rows
from nestrt.host.schema_all import SCHEMAS, schema
from nestrt.level.values import suggestion

EPILOG = """
With COMMAND the schema (2020-12) itself, as JSON or YAML; with --fields, or in another form, a row
for each field: "[]" stands for an item of a list, "{}" for the value of a key that varies.
"""
NAMES = (Column("NAME", "name"), Column("WHAT IT PRINTS", "description"))
FIELDS = (Column("FIELD", "field"), Column("TYPE", "type"), Column("UNIT", "unit"), Column("WHAT IT IS", "description"))


def main(argv: list[str]) -> int:
    """Carry out ``nestrt schema ARGV``. Raises NotFound."""
    parser = argparse.ArgumentParser(
        prog="nestrt schema",
        description="Describe what commands print with --format json: every field, its type and unit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "the schema of this one (default: which there are)"
    parser.add_argument("name", type=Named(tuple(SCHEMAS)), metavar="COMMAND", nargs="?", help=text)
    parser.add_argument("--fields", action="store_true", help="a row for each field")
    add_options(parser)
    parser.set_defaults(format=None)
    options = parser.parse_args(argv)
    if options.name is None:
        options.format = options.format or "table"
        return write_rows(options, ({"name": name, "description": told} for name, (told, _) in SCHEMAS.items()), NAMES)
    if options.name not in SCHEMAS:
        remedy = suggestion(options.name, SCHEMAS)
        raise NotFound("find", f"a schema of {escape(options.name)}", "there is none", remedy)
    found = schema(options.name)
    if options.fields or options.format not in (None, "json", "yaml"):
        options.format = options.format or "table"
        return write_rows(options, rows(found), FIELDS)
    return write_text([yaml_text(found)]) if options.format == "yaml" else write_json(found)
