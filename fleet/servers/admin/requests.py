"""What came with a request: what it accepts, its query and its body, each held against what the route says."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_plus

from fleet.servers.admin.messages import Request
from fleet.servers.admin.routes import MERGE_PATCH, Route
from fleet.servers.admin.schema_check import check, of_text
from fleet.servers.admin.schemas import Schema
from fleet.servers.admin.strict_json import decode
from fleet.servers.refusals import HttpRefused


def acceptable(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The media type of `offered` that the client likes best (RFC 9110, 12.5.1); the first one when it does not say.

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


def read_query(target: str, known: Mapping[str, Schema]) -> dict[str, Any]:
    """The query's parameters as values.

    Raises: HttpRefused: 400 `bad-request`: one that is not known, repeated, or does not fit its schema.
    """
    given: dict[str, list[str]] = {}
    query = target.partition("?")[2]
    for pair in query.split("&") if query else ():
        name, _, text = pair.partition("=")
        given.setdefault(unquote_plus(name), []).append(unquote_plus(text))
    values: dict[str, Any] = {}
    for name, texts in given.items():
        schema = known.get(name)
        if schema is None:
            raise HttpRefused(400, "bad-request", f"There is no parameter {name[:40]!r} here.")
        if schema.get("type") == "array":
            check(texts, schema, name)
            values[name] = texts
        elif len(texts) > 1:
            raise HttpRefused(400, "bad-request", f"The parameter {name} is given twice.")
        else:
            values[name] = of_text(texts[0], schema, name)
    return values


async def read_body(request: Request, route: Route) -> tuple[bytes, Any]:
    """The body, as it came and as a value that fits what the route takes; b"" and None when none came.

    Raises: HttpRefused: 400, 408, 413, 415.
    """
    raw = await request.read_body(route.body_size_max if route.takes is not None else 0)
    if route.takes is None:
        return raw, None
    if not raw and not route.needs_body:
        return raw, None
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type not in route.takes_types:
        headers = {"Accept-Patch": MERGE_PATCH} if route.method == "PATCH" else {}
        raise HttpRefused(415, "bad-content-type", f"The body must be {' or '.join(route.takes_types)}.", headers)
    value = decode(raw)
    check(value, route.takes, "The body")
    return raw, value
