"""Cursors: where a page ended, as a text that a client hands back and never reads.

It belongs to the query that it came from, and holds no right of its own: every page is asked for, and filtered, anew.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from fleet.servers.admin.context import Call
from fleet.servers.admin.result import Result
from fleet.servers.admin.schemas import CURSOR_SIZE_MAX, LIMIT
from fleet.servers.refusals import HttpRefused

Value = TypeVar("Value")

_PAGING = ("cursor", "limit")


def page_limit(call: Call) -> int:
    limit: int = call.query.get("limit", LIMIT)
    return limit


def place(call: Call, *kinds: type | tuple[type, ...]) -> list[Any] | None:
    """The values in the cursor that came with `call`, one of each of `kinds`; None when none came.

    Raises: HttpRefused: 400 `bad-cursor`: it was made up, or comes from another query.
    """
    text = call.query.get("cursor")
    if text is None:
        return None
    try:
        values: list[Any]
        query, *values = unpacked(text)
        if query != _query_digest(call) or len(values) != len(kinds):
            raise ValueError("another query's")
        if not all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)):
            raise TypeError("of another kind")
        if not all(value.isprintable() for value in values if isinstance(value, str)):
            raise ValueError("what no key of ours holds, and not every registry can be asked for")
    except (ValueError, TypeError):
        raise bad_cursor() from None
    return values


def packed(values: list[Any]) -> str:
    """A cursor that holds `values`."""
    cursor = base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).rstrip(b"=").decode()
    assert len(cursor) <= CURSOR_SIZE_MAX  # noqa: S101  a device id and a few numbers
    return cursor


def unpacked(text: str) -> list[Any]:
    """The values in a cursor, whoever made it up.

    Raises: ValueError, TypeError.
    """
    try:
        values = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(values, list):
        raise TypeError("no list")
    return values


def bad_cursor() -> HttpRefused:
    """It was made up, or comes from another query."""
    return HttpRefused(400, "bad-cursor", "The cursor is none of this list's. Start again without one.")


def paged(call: Call, items: list[dict[str, Any]], following: Sequence[Any] | None, **more: object) -> Result:
    """A page, and where the next one begins: behind the place `following`, None when this is the last."""
    if following is None:
        return Result({"items": items, "next": None, **more})
    cursor = packed([_query_digest(call), *following])
    query = {**{name: call.query[name] for name in sorted(call.query) if name != "cursor"}, "cursor": cursor}
    address = f"{call.request.path}?{_encoded(query)}"
    return Result({"items": items, "next": address, **more}, headers={"Link": f'<{address}>; rel="next"'})


def page_of_all(call: Call, found: Sequence[Value], key: Callable[[Value], str]) -> tuple[Sequence[Value], bool]:
    """The page of `found` that `call` asks for, and whether there is more: for lists that are read whole.

    Raises: HttpRefused: 400 `bad-cursor`.
    """
    values, start = place(call, str), 0
    if values is not None:
        start = next((n for n, each in enumerate(found, 1) if key(each) == values[0]), -1)
        if start < 0:
            raise bad_cursor()
    end = start + page_limit(call)
    return found[start:end], end < len(found)


def _encoded(query: Mapping[str, Any]) -> str:
    pairs = [(name, each) for name, value in query.items() for each in (value if isinstance(value, list) else [value])]
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in pairs)


def _query_digest(call: Call) -> str:
    filters = {name: value for name, value in call.query.items() if name not in _PAGING}
    text = json.dumps([call.request.path, filters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
