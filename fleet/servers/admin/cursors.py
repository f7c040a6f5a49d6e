"""Cursors: where a page ended, as an opaque text that the client passes back.

A cursor belongs to the query that it came from. It holds no right: every page is authorized, and filtered, anew.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from fleet.servers.admin.context import Call
from fleet.servers.admin.records.base import CURSOR_SIZE_MAX, Page, Paging
from fleet.servers.admin.routing import Result
from fleet.servers.refusals import HttpRefused

Value = TypeVar("Value")
Shown = TypeVar("Shown")

_PAGING = ("cursor", "limit")


def position(call: Call, query: Paging, *kinds: type | tuple[type, ...]) -> list[Any] | None:
    """The values in the cursor of `query`, one of each of `kinds`; None without a cursor.

    Raises: HttpRefused: 400 `bad-cursor`: it was made up, or belongs to another query.
    """
    if query.cursor is None:
        return None
    try:
        values: list[Any]
        digest, *values = unpacked(query.cursor)
        if digest != _query_digest(call, query) or len(values) != len(kinds):
            raise ValueError("another query's")
        if not all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True)):
            raise TypeError("of another kind")
        if not all(value.isprintable() for value in values if isinstance(value, str)):
            raise ValueError("no key of ours has such characters, and not every registry can be asked for them")
    except (ValueError, TypeError):
        raise bad_cursor() from None
    return values


def packed(values: list[Any]) -> str:
    """A cursor that holds `values`."""
    cursor = base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).rstrip(b"=").decode()
    assert len(cursor) <= CURSOR_SIZE_MAX  # noqa: S101  a device id and a few numbers
    return cursor


def unpacked(text: str) -> list[Any]:
    """The values in a cursor, which may be made up. Raises: ValueError, TypeError."""
    try:
        values = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(values, list):
        raise TypeError("no list")
    return values


def authenticated(values: list[Any], key: bytes) -> str:
    """A cursor that holds `values` and a MAC of them: what the holder must not choose."""
    return packed([*values, _mac(values, key)])


def authentic(text: str, key: bytes) -> list[Any]:
    """The values in a cursor that `authenticated` has made with `key`. Raises: ValueError, TypeError."""
    *values, mac = unpacked(text)
    if not isinstance(mac, str) or not hmac.compare_digest(mac.encode(), _mac(values, key).encode()):
        raise ValueError("made up")
    return values


def _mac(values: list[Any], key: bytes) -> str:
    return hmac.digest(key, json.dumps(values).encode(), "sha256")[:16].hex()


def bad_cursor() -> HttpRefused:
    """It was made up, or belongs to another query."""
    return HttpRefused(400, "bad-cursor", "The cursor belongs to another query. Start again without one.")


def paged(call: Call, query: Paging, items: list[Shown], following: Sequence[Any] | None) -> Result[Page[Shown]]:
    """A page, and a link to the next one, which starts after the position `following`; None when this is the last."""
    if following is None:
        return Result(Page(items=items, next=None))
    cursor = packed([_query_digest(call, query), *following])
    address = f"{call.request.path}?{_encoded({**_given(query), 'cursor': cursor})}"
    return Result(Page(items=items, next=address), headers={"Link": f'<{address}>; rel="next"'})


def page_of_all(
    call: Call, query: Paging, found: Sequence[Value], key: Callable[[Value], str], shown: Callable[[Value], Shown]
) -> Result[Page[Shown]]:
    """The page of `found` that `query` asks for: for lists that are read whole.

    Raises: HttpRefused: 400 `bad-cursor`.
    """
    page, following = slice_of(call, query, found, key)
    return paged(call, query, [shown(each) for each in page], following)


def slice_of(
    call: Call, query: Paging, found: Sequence[Value], key: Callable[[Value], str]
) -> tuple[Sequence[Value], list[str] | None]:
    """What of `found` is in the page, and the position of the next one. Raises: HttpRefused: 400 `bad-cursor`."""
    start = start_of(call, query, found, key)
    page = found[start : start + query.limit]
    return page, [key(page[-1])] if start + query.limit < len(found) else None


def start_of(call: Call, query: Paging, found: Sequence[Value], key: Callable[[Value], str]) -> int:
    """Where in `found` the page of `query` starts. Raises: HttpRefused: 400 `bad-cursor`."""
    values = position(call, query, str)
    if values is None:
        return 0
    start = next((n for n, each in enumerate(found, 1) if key(each) == values[0]), -1)
    if start < 0:
        raise bad_cursor()
    return start


def _given(query: Paging) -> dict[str, Any]:
    """What differs from the defaults, by name."""
    usual = msgspec.to_builtins(type(query)())
    given = msgspec.to_builtins(query)
    return {name: given[name] for name in sorted(given) if given[name] != usual[name]}


def _encoded(query: Mapping[str, Any]) -> str:
    pairs = [(name, each) for name, value in query.items() for each in (value if isinstance(value, list) else [value])]
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in pairs)


def _query_digest(call: Call, query: Paging) -> str:
    filters = {name: value for name, value in _given(query).items() if name not in _PAGING}
    text = json.dumps([call.request.path, filters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
