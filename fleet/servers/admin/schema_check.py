"""Whether a value fits a JSON Schema, for the few keywords that our own schemas use.

The schema that the API publishes is the one that is checked: there is no second description to fall behind.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from fleet.servers.admin.schemas import COMPONENTS, Schema
from fleet.servers.refusals import HttpRefused

_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})", re.I
)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?")
_WITHIN = "#/components/schemas/"


def check(value: Any, schema: Schema, where: str) -> None:
    """Return when `value` fits `schema`. `where` names it in the error: "The body", "limit".

    Raises: HttpRefused: 400 `bad-request`.
    """
    schema = resolved(schema)
    kinds = schema.get("type", ())
    kind = _kind_of(value)
    if kind == "integer" and kinds == "number":
        kind = "number"
    if kinds and kind not in (kinds if isinstance(kinds, list) else (kinds,)):
        wanted = " or ".join(kinds) if isinstance(kinds, list) else kinds
        raise _bad(f"{where} must be of type {wanted}.")
    if "enum" in schema and value not in schema["enum"]:
        raise _bad(f"{where} must be one of {', '.join(map(str, schema['enum']))}.")
    if kind in _CHECKS:
        _CHECKS[kind](value, schema, where)


def resolved(schema: Schema) -> Schema:
    """`schema`, or what its $ref points at."""
    reference = schema.get("$ref")
    return COMPONENTS[reference.removeprefix(_WITHIN)] if reference else schema


def of_text(text: str, schema: Schema, where: str) -> Any:
    """What a query parameter's `text` means under `schema`, checked.

    Raises: HttpRefused: 400 `bad-request`.
    """
    value: Any = text
    if schema.get("type") == "integer":
        if not _INTEGER.fullmatch(text):
            raise _bad(f"{where} must be a whole number.")
        value = int(text)
    elif schema.get("type") == "number":
        if not _NUMBER.fullmatch(text):
            raise _bad(f"{where} must be a number.")
        value = float(text)
    check(value, schema, where)
    return value


def instant(text: str) -> datetime | None:
    """An RFC 3339 time, in UTC; None when `text` is none, or beyond the calendar."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _bad(message: str) -> HttpRefused:
    return HttpRefused(400, "bad-request", message)


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"  # JSON Schema, 6.1.1: 1.0 is an integer
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _check_text(value: str, schema: Schema, where: str) -> None:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        raise _bad(f"{where} must have {least} to {most} characters.")
    pattern = schema.get("pattern")
    # "$" matches before a final line break in Python, and only there; in JSON Schema it does not.
    if pattern is not None and ("\n" in value or not _pattern(pattern).search(value)):
        raise _bad(f"{where} must match {pattern}")
    if schema.get("format") == "date-time" and instant(value) is None:
        raise _bad(f"{where} must be a time as in RFC 3339, such as 2030-01-31T12:00:00Z.")


def _check_number(value: float, schema: Schema, where: str) -> None:
    if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        raise _bad(f"{where} must be from {schema.get('minimum')} to {schema.get('maximum')}.")


def _check_array(value: list[Any], schema: Schema, where: str) -> None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        raise _bad(f"{where} must have {schema.get('minItems', 0)} to {schema.get('maxItems')} items.")
    for number, item in enumerate(value):
        check(item, schema["items"], f"{where}[{number}]")
    if schema.get("uniqueItems") and len(set(value)) != len(value):
        raise _bad(f"{where} has an item twice.")


def _check_object(value: Mapping[str, Any], schema: Schema, where: str) -> None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name in schema.get("required", ()):
        if name not in value:
            raise _bad(f"{where} lacks {name!r}.")
    if len(value) > schema.get("maxProperties", len(value)):
        raise _bad(f"{where} has more than {schema['maxProperties']} members.")
    if len(value) < schema.get("minProperties", 0):
        raise _bad(f"{where} must have at least {schema['minProperties']} members.")
    for name, item in value.items():
        if name in known:
            check(item, known[name], f"{where}: {name}")
        elif others is False:
            raise _bad(f"{where} has a member that is not known: {name[:40]!r}.")
        else:
            if "propertyNames" in schema:
                check(name, schema["propertyNames"], f"{where}: the name {name[:40]!r}")
            check(item, others, f"{where}: {name}")


_CHECKS: dict[str, Callable[[Any, Schema, str], None]] = {
    "string": _check_text,
    "integer": _check_number,
    "number": _check_number,
    "array": _check_array,
    "object": _check_object,
}
