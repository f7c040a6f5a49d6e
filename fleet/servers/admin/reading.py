"""What comes with a request, decoded into the types that its route takes: the media type it accepts, query and body."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect

from fleet.servers.admin.messages import Request
from fleet.servers.admin.records.base import Record
from fleet.servers.admin.routing import MERGE_PATCH, Route
from fleet.servers.refusals import HttpRefused
from fleet.wire.errors import WireError
from fleet.wire.strict_json import finite, loads

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?")
_BOUNDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"Expected `(?:int|float)` >= (\S+)", r"must be at least \1"),
        (r"Expected `(?:int|float)` <= (\S+)", r"must be at most \1"),
        (r"Expected `(?:int|float)` > (\S+)", r"must be more than \1"),
        (r"Expected `(?:int|float)` < (\S+)", r"must be less than \1"),
        (r"Expected `str` of length >= (\d+)", r"must have at least \1 characters"),
        (r"Expected `str` of length <= (\d+)", r"must have at most \1 characters"),
        (r"Expected `(?:array|object)` of length >= (\d+)", r"must have at least \1 items"),
        (r"Expected `(?:array|object)` of length <= (\d+)", r"must have at most \1 items"),
    )
)
"""msgspec's text for a bound that is exceeded -> ours."""
_PATTERN = re.compile(r"""Expected `str` matching regex (["'])(.*)\1""")
_ESCAPE = "\\"
_MESSAGE_SIZE_MAX = 300  # a member's name may be as long as the body


def acceptable(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The media type of `offered` that the client prefers (RFC 9110, 12.5.1); the first one when it does not say.

    Raises: HttpRefused: 406.
    """
    ranges = [_range(part) for line in accept for part in line.split(",") if part.strip()]
    if not ranges:
        return offered[0]
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))  # the first of equals
    if not _quality(best, ranges):
        raise HttpRefused(406, "not-acceptable", f"This path answers with {', '.join(offered)} only.")
    return best


def _range(part: str) -> tuple[str, float]:
    media_range, *parameters = (each.strip().lower() for each in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                quality = 0.0
    return media_range, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range that covers `media_type`."""
    for wanted in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for media_range, quality in ranges if media_range == wanted]
        if found:
            return max(found)
    return 0.0


def checked(value: Any, kind: type[Record], where: str) -> Any:
    """`value`, JSON's own types, as a `kind`. `where` names it in the error.

    Raises: HttpRefused: 400 `bad-request`.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        path = place.replace("`", "").replace("$.", "").replace("$", "")
        bound = next((found.expand(words) for by, words in _BOUNDS if (found := by.fullmatch(what))), "")
        if what.startswith("Invalid enum value") and (choices := _choices(kind, path)):
            bound = f"must be one of {', '.join(choices)}"
        if pattern := _PATTERN.fullmatch(what):
            bound = f"must match {pattern[2].replace(_ESCAPE * 2, _ESCAPE).removesuffix(_ESCAPE + 'Z')}$"
        if bound:
            text = f"{where}: {path} {bound}." if path else f"{where} {bound}."
        else:
            text = ": ".join(filter(None, (where, path, what.replace("`", "'")))) + "."
        text = "".join(c if c.isprintable() else "?" for c in text)
        raise _bad(text if len(text) <= _MESSAGE_SIZE_MAX else f"{text[:_MESSAGE_SIZE_MAX]}…") from None


def _choices(kind: type[Record], member: str) -> list[str]:
    """The values of the enumeration that `member` of a `kind` takes; none for a member further down."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)  # noqa: S101
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        if field.encode_name == member:
            return [str(one.value) for each in kinds if isinstance(each, inspect.EnumType) for one in each.cls]
    return []


def read_query(target: str, kind: type[Record] | None) -> Any:
    """The query of `target` as a `kind`; None when the route takes none.

    Raises: HttpRefused: 400 `bad-request`: a parameter that is not known, repeated, or of another type.
    """
    given: dict[str, list[str]] = {}
    for name, text in parse_qsl(target.partition("?")[2], keep_blank_values=True):
        given.setdefault(name, []).append(text)
    known = _parameters(kind) if kind is not None else {}
    values: dict[str, Any] = {}
    for name, texts in given.items():
        if name not in known:
            raise _bad(f"There is no parameter {name[:40]!r} here.")
        if known[name] is list:
            values[name] = texts
        elif len(texts) > 1:
            raise _bad(f"The parameter {name} is given twice.")
        else:
            values[name] = _value(name, known[name], texts[0])
    return checked(values, kind, "The query") if kind is not None else None


@lru_cache(maxsize=32)
def _parameters(kind: type[Record]) -> dict[str, type]:
    """The parameters of a query, and what each is: int, float, list or str."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)  # noqa: S101
    return {field.name: _basic(field.type) for field in info.fields}


def _basic(info: inspect.Type) -> type:
    match info:
        case inspect.Metadata():
            return _basic(info.type)
        case inspect.UnionType():
            return _basic(next(each for each in info.types if not isinstance(each, inspect.NoneType)))
        case inspect.IntType():
            return int
        case inspect.FloatType():
            return float
        case inspect.ListType():
            return list
        case _:
            return str


def _value(name: str, kind: type, text: str) -> Any:
    if kind is int:
        if not _INTEGER.fullmatch(text):
            raise _bad(f"{name} must be a whole number.")
        return int(text)
    if kind is float:
        if not _NUMBER.fullmatch(text):
            raise _bad(f"{name} must be a number.")
        return float(text)
    return text


async def read_body(request: Request, route: Route) -> tuple[bytes, Any]:
    """The body, as it came and as the type that the route takes; b"" and the default when none came.

    Raises: HttpRefused: 400, 408, 413, 415.
    """
    kind = route.takes
    raw = await request.read_body(route.body_size_max if kind is not None else 0)
    if kind is None:
        return raw, None
    if not raw and not route.needs_body:
        return raw, route.default_body
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type not in route.takes_types:
        headers = {"Accept-Patch": MERGE_PATCH} if route.method == "PATCH" else {}
        raise HttpRefused(415, "bad-content-type", f"The body must be {' or '.join(route.takes_types)}.", headers)
    return raw, checked(decode_json(raw), kind, "The body")


def decode_json(body: bytes) -> Any:
    """The one value that `body` spells. Raises: HttpRefused: 400 `bad-json`. The body is never quoted."""
    try:
        return loads(body, _integer_or_float)
    except WireError as error:
        raise HttpRefused(400, "bad-json", str(error)) from None


def _integer_or_float(text: str) -> float:
    number = finite(text)
    return int(number) if number.is_integer() else number  # JSON Schema, 6.1.1: 1.0 is an integer


def _bad(message: str) -> HttpRefused:
    return HttpRefused(400, "bad-request", message)
