"""JSON Schemas (2020-12) of what commands print with ``--format json``, made of short descriptions of each field.

Every field has a description, a type and, where it measures something, a "unit": bytes, µs, seconds, percent…
(an annotation of ours, which validators pass over). No object has a field that is not described; those whose
keys vary (hierarchies, devices), or that a mark's writer has chosen, say what their values are.

Source: https://json-schema.org/draft/2020-12/json-schema-core.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def text(description: str, choices: tuple[str, ...] = ()) -> Schema:
    """A text, one of *choices* where there are any."""
    return {"description": description, "type": "string", **({"enum": list(choices)} if choices else {})}


def number(description: str, unit: str = "", least: int | None = 0) -> Schema:
    """A whole number, not below *least*."""
    limits = {} if least is None else {"minimum": least}
    return {"description": description, "type": "integer", **limits, **({"unit": unit} if unit else {})}


def decimal(description: str, unit: str = "") -> Schema:
    """A number with decimals."""
    return {"description": description, "type": "number", **({"unit": unit} if unit else {})}


def flag(description: str) -> Schema:
    """true or false."""
    return {"description": description, "type": "boolean"}


def array(description: str, items: Schema) -> Schema:
    """A list."""
    return {"description": description, "type": "array", "items": items}


def fields(description: str, **known: Schema) -> Schema:
    """An object that has these fields, all of them and no others."""
    return {
        "description": description,
        "type": "object",
        "properties": known,
        "required": list(known),
        "additionalProperties": False,
    }


def keyed(description: str, values: Schema) -> Schema:
    """An object whose keys vary."""
    return {"description": description, "type": "object", "additionalProperties": values}


def anything(description: str) -> Schema:
    """An object that somebody else has filled."""
    return {"description": description, "type": "object"}


def ref(name: str) -> Schema:
    """What "$defs" calls *name*."""
    return {"$ref": f"#/$defs/{name}"}


def said(reference: Schema, description: str) -> Schema:
    """*reference*, which is this here."""
    return {**reference, "description": description}


def maybe(schema: Schema) -> Schema:
    """*schema*, or null."""
    if "$ref" in schema:
        head = {"description": schema["description"]} if "description" in schema else {}
        return {**head, "anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}]}
    found = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        found["enum"] = [*schema["enum"], None]
    return found


def document(name: str, title: str, schema: Schema, defs: dict[str, Schema]) -> Schema:
    """A whole schema; of *defs* those that it needs."""
    needed: dict[str, Schema] = {}
    queue = list(_references(schema))
    while queue:
        one = queue.pop()
        if one not in needed:
            needed[one] = defs[one]
            queue += _references(defs[one])
    head = {"$schema": DIALECT, "$id": f"urn:nestrt:{name}", "title": title, **schema}
    return {**head, "$defs": {one: needed[one] for one in defs if one in needed}} if needed else head


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.rpartition("/")[2]
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def rows(schema: Schema) -> list[Schema]:
    """A row for each field of a document(): field, type, unit, description. ``[]`` is an item, ``{}`` a key's value."""
    found: list[Schema] = []
    _add_rows(schema, "", schema.get("$defs", {}), (), found)
    return found


def _resolved(schema: Schema, defs: dict[str, Schema]) -> tuple[Schema, str]:
    """What a schema is in the end, with its own description, and the name of what it refers to."""
    null = False
    if "anyOf" in schema and {"type": "null"} in schema["anyOf"] and len(schema["anyOf"]) == 2:
        null = True
        schema = {**{k: v for k, v in schema.items() if k != "anyOf"}, **schema["anyOf"][0]}
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        schema = {**defs[name], **{k: v for k, v in schema.items() if k != "$ref"}}
    return ({**schema, "nullable": True} if null else schema), name


def _type(schema: Schema) -> str:
    kinds = schema.get("type", [each["type"] for each in schema.get("anyOf", ())])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if "enum" in schema:
        kinds = [f'"{choice}"' for choice in schema["enum"] if choice is not None] + kinds[1:]
    return "|".join([*kinds, *(["null"] if schema.get("nullable") else [])])


def _add_rows(schema: Schema, path: str, defs: dict[str, Schema], inside: tuple[str, ...], found: list[Schema]) -> None:
    schema, name = _resolved(schema, defs)
    if path:
        row = {"field": path, "type": _type(schema), "unit": schema.get("unit", "")}
        found.append({**row, "description": schema.get("description", "")})
    if name and name in inside:  # a guest's guests have guests
        return
    inside = (*inside, name) if name else inside
    for key, value in schema.get("properties", {}).items():
        _add_rows(value, f"{path}.{key}" if path else key, defs, inside, found)
    more = schema.get("additionalProperties")
    for mark, inner in (("[]", schema.get("items")), ("{}", more if isinstance(more, dict) else None)):
        if inner:
            inner, other = _resolved(inner, defs)
            if other in inside and other:
                continue
            for key, value in inner.get("properties", {}).items():
                below = f"{path}{mark}" if path else ""
                _add_rows(value, f"{below}.{key}" if below else key, defs, (*inside, other) if other else inside, found)
