"""Write the tables of settings in docs/operations.md anew from the classes that read them: `make docs`.

A table stands between `<!-- settings: NAME -->` and `<!-- end -->`; whatever is between is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from app.cluster_settings import ClusterSettings
from app.settings import Settings

PAGE = Path(__file__).with_name("operations.md")
CLASSES: dict[str, type[BaseSettings]] = {"Settings": Settings, "ClusterSettings": ClusterSettings}
_MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def table(settings: type[BaseSettings]) -> str:
    """One row a setting, in the order of the class: variable, what it takes, default, and its description."""
    rows = ["| variable | takes | default | what it does |", "|---|---|---|---|"]
    for name, schema in settings.model_json_schema()["properties"].items():
        variable = f"`{settings.model_config['env_prefix']}{name.upper()}`"
        text = " ".join(schema["description"].split()).replace("|", "\\|")
        rows.append(f"| {variable} | {_takes(schema)} | {_default(name, schema, settings)} | {text} |")
    return "\n".join(rows) + "\n"


def _takes(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        (schema,) = [part for part in schema["anyOf"] if part["type"] != "null"]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "paths" if schema["items"].get("format") == "path" else "list"
    if schema.get("format", "").endswith("path"):
        return "path"
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        limits = f" above {schema['exclusiveMinimum']}"
    elif high is not None:
        limits = f", {low} to {high}"
    else:
        limits = f", {low} or more" if low is not None else ""
    return _KINDS[schema["type"]] + limits


def _default(name: str, schema: dict[str, Any], settings: type[BaseSettings]) -> str:
    value = schema.get("default")
    if isinstance(value, dict) and value:
        value = str(settings.model_fields[name].default)
    if value is None or value in ([], {}):
        return "" if "default" in schema else "described there"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
            if name.endswith("_bytes") and value % size == 0:
                return f"`{value}` ({value // size} {unit})"
        return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    return f"`{value}`"


def rewritten(page: str) -> str:
    """The page with every table as the classes are now. Raises KeyError for a class that is not known."""
    return _MARKED.sub(lambda found: found[1] + table(CLASSES[found[2]]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
