"""What a route is: method, path, who may, what it takes and what it gives. The table of them is in `table`.

Whatever has no route is refused, and a route can't be written down without saying who may use it.
"""

import enum
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from fleet.domain.access import Permission
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.result import Result
from fleet.servers.admin.schemas import (
    DEVICE_ID_PATTERN,
    NAME_PATTERN,
    REQUEST_ID_PATTERN,
    SERIAL_PATTERN,
    TOKEN_ID_PATTERN,
    Schema,
    ref,
)
from fleet.servers.refusals import HttpRefused

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396
PEM = "application/x-pem-file"
DER = "application/pkix-cert"  # RFC 2585, 4.1
EVENT_STREAM = "text/event-stream"

BODY_SIZE_MAX = 192 * 1024  # a model with 128 filters of 1024 characters

PATH_PARAMETERS = {
    "id": DEVICE_ID_PATTERN,
    "name": NAME_PATTERN,
    "serial": SERIAL_PATTERN,
    "token": TOKEN_ID_PATTERN,
    "request": REQUEST_ID_PATTERN,
    "station": NAME_PATTERN,
    "operator": NAME_PATTERN,
    "claim": NAME_PATTERN,
    "anchor": NAME_PATTERN,
}
"""Every parameter that may stand in a template, and what it looks like: a segment that does not, names nothing."""


class AccessLevel(enum.Enum):
    """Who may, where no permission is asked for."""

    ANYBODY = "anybody"
    HOLDER = "any holder of a certificate in service"
    OPERATOR = "any operator"


class Condition(enum.Enum):
    """Whether a change takes If-Match."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


Handler = Callable[[Context, Call], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path."""

    name: str
    """In the log, and the operationId."""
    method: str
    template: str
    access: Permission | AccessLevel
    handle: Handler
    summary: str
    gives: Schema
    status: int = HTTPStatus.OK
    media_types: tuple[str, ...] = (JSON,)
    """What it can answer with, the usual one first."""
    query: Mapping[str, Schema] = field(default_factory=dict)
    takes: Schema | None = None
    takes_types: tuple[str, ...] = (JSON,)
    needs_body: bool = True
    """Whether what it takes must be there."""
    has_etag: bool = False
    condition: Condition = Condition.NONE
    may_conflict: bool = False
    finds: bool = False
    """Whether the body or the query names something that may not be there: 404."""
    for_stations: bool = False
    """Open to a factory station in service, too."""
    streams: bool = False
    body_size_max: int = BODY_SIZE_MAX
    is_one_change: bool = True
    """Whether its answer can be kept: with its one change, or behind the last of them. Else no key is taken."""

    @property
    def is_idempotent_by_key(self) -> bool:
        """Whether it takes an Idempotency-Key."""
        return self.method == "POST" and self.is_one_change

    @property
    def path_parameters(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.template))


def get(name: str, template: str, access: Permission | AccessLevel, handle: Handler, **more: Any) -> Route:
    return Route(name, "GET", template, access, handle, **more)


def post(name: str, template: str, access: Permission | AccessLevel, handle: Handler, **more: Any) -> Route:
    return Route(name, "POST", template, access, handle, may_conflict=True, **more)


def listing(name: str, template: str, access: Permission, handle: Handler, page: str, **more: Any) -> Route:
    return Route(name, "GET", template, access, handle, gives=ref(page), **more)


@lru_cache(maxsize=64)
def _segments(template: str) -> tuple[str, ...]:
    return tuple(template.split("/"))


def find(routes: Sequence[Route], method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
    """The route of `method` on `raw_path` (as sent, without a query), and the path's parameters.

    Raises: HttpRefused: 404; 405, naming the methods that the path takes.
    """
    given = raw_path.split("/")
    found = [(route, values) for route in routes if (values := _matched(route.template, given)) is not None]
    if not found:
        raise HttpRefused(404, "no-such-path", "There is nothing at this path.")
    for route, values in found:
        if route.method == method:
            return route, values
    allowed = ", ".join(sorted({route.method for route, _ in found}))
    raise HttpRefused(405, "bad-method", f"This path takes {allowed} only.", {"Allow": allowed})


def _matched(template: str, given: list[str]) -> dict[str, str] | None:
    wanted = _segments(template)
    if len(wanted) != len(given):
        return None
    values: dict[str, str] = {}
    for want, have in zip(wanted, given, strict=True):
        if not want.startswith("{"):
            if want != have:  # as sent: "/%761/models" is no path of ours
                return None
            continue
        name, value = want[1:-1], unquote(have, errors="replace")
        if "\n" in value or not re.search(PATH_PARAMETERS[name], value):
            return None
        values[name] = value
    return values
