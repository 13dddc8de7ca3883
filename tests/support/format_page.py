"""The section FIELDS of nestrt-formats(5), made from the schemas: ``python3 tests/support/format_page.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "nestrt" / "man" / "nestrt-formats.5"
BEGIN, END = ".SH FIELDS\n", '.SH "EXIT STATUS"\n'
HEAD = """.SH FIELDS
Sizes are bytes, times
.I _usec
microseconds, moments seconds since 1970; null stands for "no limit", "not known" and "does not apply".
An object that is described once is called by its heading.
"""
# As the page calls them, in its order; those of $defs are described once, before the commands.
OBJECTS = {"guest": "A guest", "limit": "A limit", "process": "A process", "group": "A group"}
ALIKE = {"tree_group": "a group", "tree_guest": "a guest"}


def roff(text: str) -> str:
    """*text* in a page of ASCII."""
    for char, name in (("\\", "\\e"), ("-", "\\-"), ("µ", "u"), ("…", "..."), ("→", "\\(->")):
        text = text.replace(char, name)
    return "\\&" + text if text.startswith((".", "'")) else text


def kind(schema: dict[str, Any]) -> str:
    """The type of a field, for people: "integer or null", "list of texts"."""
    if "anyOf" in schema:
        return " or ".join(kind(each) for each in schema["anyOf"])
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return ALIKE.get(name, OBJECTS.get(name, name)).lower()
    kinds = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    if schema.get("enum"):
        kinds = [str(choice) for choice in schema["enum"] if choice is not None] + kinds[1:]
        return ", ".join(kinds)
    names = {"string": "text", "array": "list"}
    found = " or ".join(names.get(each, each) for each in kinds)
    if "items" in schema:
        found += f" of {kind(schema['items'])}"
    values = schema.get("additionalProperties")
    if isinstance(values, dict) and len(kinds) == 1 and "type" in values:
        found += f" by key, of {kind(values)}"
    return found


def _sentence(schema: dict[str, Any]) -> str:
    text = roff(schema["description"])
    return text if text.endswith(".") else text + "."


def described(known: dict[str, Any], optional: set[str], before: str = "") -> Iterator[str]:
    """A paragraph for each field, and for those of objects in it that are described nowhere else."""
    for name, schema in known.items():
        unit = f", {schema['unit']}" if "unit" in schema else ""
        more = ", not always there" if name in optional else ""
        yield f".TP\n.B {roff(before + name)}\n({roff(kind(schema) + unit + more)})\n{_sentence(schema)}\n"
        inner, mark = schema, ""
        while "items" in inner:
            inner, mark = inner["items"], mark + "[]"
        for each in inner.get("anyOf", [inner]):
            if "properties" in each:
                missing = set(each["properties"]) - set(each["required"])
                yield from described(each["properties"], missing, f"{before}{name}{mark}.")


def section() -> str:
    """The whole section, with the heading."""
    from nestrt.host.schema_all import SCHEMAS
    from nestrt.host.schema_guest import DEFS

    parts = [HEAD]
    for name, title in OBJECTS.items():
        parts.append(f'.SS "{title}"\n')
        parts += described(DEFS[name]["properties"], set())
    guest = set(DEFS["guest"]["properties"])
    for name, (title, schema) in SCHEMAS.items():
        parts.append(f'.SS "{name}: {roff(title)}"\n')
        inner = schema
        if "items" in schema:
            parts.append(f"A list: {roff(schema['description'])}.\n")
            inner = schema["items"]
        elif isinstance(schema.get("additionalProperties"), dict):
            parts.append(f"An object {roff(schema['description'])}; its values are:\n")
            inner = schema["additionalProperties"]
        if "$ref" in inner:
            parts.append(f"Each is {kind(inner)}.\n")
            continue
        own = dict(inner["properties"])
        if guest <= set(own):
            parts.append("What every guest has, and:\n")
            own = {key: value for key, value in own.items() if key not in guest}
        parts += described(own, set(inner["properties"]) - set(inner["required"]))
        if name == "tree":
            more = DEFS["tree_guest"]["properties"]
            parts.append(".PP\nA guest has here also:\n")
            parts += described({key: more[key] for key in more if key not in guest}, set())
            group = DEFS["tree_group"]["properties"]
            parts += described({"processes": group["processes"]}, {"processes"}, "groups[].")
    return "".join(parts)


def with_section(page: str) -> str:
    """*page* with the section as the schemas have it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no such section"
    assert end, "the section does not end"
    return before + section() + end + after


if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT))
    PAGE.write_text(with_section(PAGE.read_text()))
