"""The one client of the admin API: JSON in and out, pages followed, refusals raised as the FleetErrors they were.

    with Client(HttpsTransport(url, cert, key, ca)) as client:
        for device in client.items("/v1/devices", state="active"):
            ...

Values are the API's own JSON; their schemas are at GET /v1/openapi.json.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import quote, urlencode

from fleet.domain.errors import Conflict, FleetError, Invalid, NotFound, Refused, Unauthenticated, Unavailable
from fleet.wire import strict_json
from fleet.wire.errors import WireError

PAGE_MAX = 1000
"""Rows in a page, at most."""
PAGES_MAX = 100_000
"""Pages of a list, at most: of 1,000 rows each, ten times the largest registry measured."""
ITEMS_MAX = 100_000
"""Items of a list that is kept whole, at most: all certificates of a device that renews every hour for ten years."""

Json = Mapping[str, Any]

_ERRORS: dict[int, type[FleetError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Refused,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    422: Conflict,
}


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """By name; look-ups ignore case."""
    body: bytes


class Transport(Protocol):
    """Sends one request at a time."""

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """The answer to `method` on `target`: an absolute path with its query, percent-encoded.

        Raises: FleetError: no answer could be had. Refusals of the API are answers.
        """
        ...

    def close(self) -> None:
        """Release its connection. It cannot be used afterwards."""
        ...


class Client:
    """The API behind a transport. Every call raises FleetError with the code that the API refused with, or Unavailable
    (`cannot-reach`, `bad-answer`).
    """

    def __init__(
        self, transport: Transport, home: Path | None = None, warn: Callable[[Refused], None] | None = None
    ) -> None:
        """`home`: the home folder behind the transport; None over HTTPS. `warn`: see HomeTransport."""
        self._transport = transport
        self.home = home
        self.warn = warn
        self.is_answered = False
        """Whether there was an answer yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def ask(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, str]:
        """The JSON of the answer, and its ETag, "" without one."""
        given = {"Accept": "application/json", **(headers or {})}
        content = None
        if body is not None:
            import msgspec  # commands that call no API load in less time without it

            content, given["Content-Type"] = msgspec.json.encode(body), "application/json"
        answer = self._transport.send(method, path, given, content)
        self.is_answered = True
        value = _json_of(answer, f"{method} {path.partition('?')[0]}")
        if not 200 <= answer.status < 300:  # a redirect is not followed
            raise _refusal(answer.status, value)
        return value, answer.headers.get("ETag") or ""

    def get(self, path: str, **query: object) -> Any:
        """`query`: None is left out, a list is repeated."""
        return self.ask("GET", path + _query(query))[0]

    def post(self, path: str, body: Json | None = None) -> Any:
        return self.ask("POST", path, body)[0]

    def patch(self, path: str, changes: Json, etag: str = "") -> Any:
        """RFC 7396. With `etag`, only if nobody has changed it since: else Conflict."""
        return self.ask("PATCH", path, changes, {"If-Match": etag} if etag else None)[0]

    def items(self, path: str, limit: int | None = None, /, **query: object) -> Iterator[Any]:
        """The items of the list at `path`, at most `limit`, page after page as they are consumed."""
        return self.follow(path + _query({"limit": min(limit or PAGE_MAX, PAGE_MAX), **query}), limit)

    def all_items(self, path: str) -> list[Any]:
        """The whole list at `path`. Raises: Unavailable (`bad-answer`): it has more than ITEMS_MAX."""
        found = list(self.items(path, ITEMS_MAX + 1))
        if len(found) > ITEMS_MAX:
            raise bad_answer(f"the list {path} does not end after {ITEMS_MAX} items")
        return found

    def follow(self, path: str, limit: int | None = None) -> Iterator[Any]:
        """The items of the page at `path`, as a query or a `next` named it, and of those after it."""
        return islice(self._pages(path), limit)

    def _pages(self, path: str) -> Iterator[Any]:
        """Each page must lead on, so that no server keeps a command running for ever."""
        following, before = path, None
        name = path.partition("?")[0]
        for _ in range(PAGES_MAX):
            page, _ = self.ask("GET", following)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise bad_answer(f"the answer to GET {name} is not a page of a list")
            items, next_page = page["items"], page.get("next")
            if items == before:
                raise bad_answer(f"the list {name} repeats a page")
            yield from items
            if next_page is None:
                return
            if not isinstance(next_page, str):
                raise bad_answer(f"the list {name} names no next page")
            if not items:
                raise bad_answer(f"the list {name} names a next page after an empty one")
            following, before = next_page, items
        raise bad_answer(f"the list {name} does not end after {PAGES_MAX} pages")


def path_of(template: str, *names: str) -> str:
    """`template` with each {} filled by one of `names`, as a single segment: path_of("/v1/devices/{}", id_text)."""
    return template.format(*(quote(name, safe="") for name in names))


def _query(query: Mapping[str, object]) -> str:
    given = [(name, value) for name, value in query.items() if value is not None]
    return f"?{urlencode(given, doseq=True)}" if given else ""


def _json_of(answer: Answer, request: str) -> Any:
    try:
        return strict_json.loads(answer.body)
    except WireError:
        raise bad_answer(f"the answer to {request} is not JSON") from None


def _refusal(status: int, value: Any) -> FleetError:
    if not isinstance(value, dict) or not isinstance(value.get("code"), str):
        return bad_answer(f"it answered {status} without a code")
    return _ERRORS.get(status, Unavailable)(value["code"], str(value.get("detail", "")))


def bad_answer(what: str) -> Unavailable:
    """An answer that holds something else than was asked for."""
    return Unavailable("bad-answer", f"This does not look like an admin API: {what}.", "Check the address.")
