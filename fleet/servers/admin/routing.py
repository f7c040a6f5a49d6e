"""Routes: a decorator puts a handler's method, path and permission beside it; its types say what it takes and gives.

    @get("/v1/devices/{id}", Permission.DEVICE_READ, "One device.", has_etag=True)
    async def get_device(context: Context, call: Call) -> Result[Device]: ...

A parameter `body` or `query` is decoded into its type; a body with a default may be left out. Whatever has no route is
refused, and a route can't be declared without saying who may use it.
"""

import enum
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from msgspec import Struct, field
from msgspec.structs import replace

from fleet.domain.access import Permission
from fleet.domain.distribution import CA_NAME_PATTERN, CRL_KIND_PATTERN
from fleet.servers.admin.messages import Stream
from fleet.servers.admin.records.base import (
    DEVICE_ID_PATTERN,
    NAME_PATTERN,
    REQUEST_ID_PATTERN,
    TOKEN_ID_PATTERN,
    Record,
)
from fleet.servers.refusals import HttpRefused, no_such_path

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396
PEM = "application/x-pem-file"
DER = "application/pkix-cert"  # RFC 2585, 4.1
EVENT_STREAM = "text/event-stream"
PROBLEM = "application/problem+json"  # RFC 9457

BODY_SIZE_MAX = 192 * 1024  # a model with 128 filters of 1024 characters

PATH_PARAMETERS = {
    "id": DEVICE_ID_PATTERN,
    "name": NAME_PATTERN,
    "serial": r"^[0-9A-Fa-f]{1,40}\Z",  # in capitals too, as openssl prints them
    "token": TOKEN_ID_PATTERN,
    "request": REQUEST_ID_PATTERN,
    "station": NAME_PATTERN,
    "operator": NAME_PATTERN,
    "claim": NAME_PATTERN,
    "anchor": NAME_PATTERN,
    "ca": CA_NAME_PATTERN,
    "crl": CRL_KIND_PATTERN,
    "distrust": TOKEN_ID_PATTERN,
}
"""Parameters of path templates, and what they look like: a segment that does not match names nothing."""

Body = TypeVar("Body")


class Result(Struct, Generic[Body], frozen=True):
    """What a handler gives back, still as a value: `body` as JSON, `raw` in another media type, or a stream."""

    body: Body | Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    """Without quotes; "" when it has no revision."""
    media_type: str = "application/json"
    raw: bytes | None = None
    stream: Stream | None = None


class AccessLevel(enum.Enum):
    """Who may call a route that asks for no permission."""

    ANYBODY = "anybody"
    HOLDER = "any holder of a certificate in service"
    OPERATOR = "any operator"


class Condition(enum.Enum):
    """Whether a change takes If-Match."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


Handler = Callable[..., Awaitable[Result[Any]]]


async def _denied(context: Any, call: Any) -> Result[Any]:
    """The handler of a route that has none: denied by default."""
    raise no_such_path()


class Route(Struct, frozen=True, dict=True):
    """One method on one path; as a decorator, it takes its handler."""

    method: str
    template: str
    access: Permission | AccessLevel
    summary: str
    status: int = 200
    """Of success."""
    media_types: tuple[str, ...] = (JSON,)
    """What it can answer with, the default first."""
    has_etag: bool = False
    condition: Condition = Condition.NONE
    may_not_find: bool = False
    """Whether the body or the query names something that may not exist: 404."""
    for_stations: bool = False
    """Open to a factory station in service, too."""
    streams: bool = False
    body_size_max: int = BODY_SIZE_MAX
    is_one_change: bool = True
    """Whether its answer can be stored with its one change, or after the last of them. Else no key is taken."""
    name: str = ""
    """The handler's: in the log, and the operationId."""
    handle: Handler = _denied

    def __call__(self, handle: Handler) -> "Route":
        return replace(self, handle=handle, name=self.name or handle.__name__)

    @property
    def may_conflict(self) -> bool:
        return self.method == "POST" or self.condition is not Condition.NONE

    @property
    def is_idempotent_by_key(self) -> bool:
        """Whether it takes an Idempotency-Key."""
        return self.method == "POST" and self.is_one_change

    @property
    def path_parameters(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.template))

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.handle, include_extras=True)

    @property
    def takes(self) -> type[Record] | None:
        """The type of its body, if it takes one."""
        return self._hints.get("body")

    @property
    def takes_types(self) -> tuple[str, ...]:
        """Media types of its body."""
        return (MERGE_PATCH, JSON) if self.method == "PATCH" else (JSON,)

    @cached_property
    def default_body(self) -> Any:
        """In place of a body that is left out; `inspect.Parameter.empty` when it is required."""
        return inspect.signature(self.handle).parameters["body"].default

    @property
    def needs_body(self) -> bool:
        return self.default_body is inspect.Parameter.empty

    @property
    def query(self) -> type[Record] | None:
        """The type of its query, if it takes one."""
        return self._hints.get("query")

    @property
    def gives(self) -> Any:
        """The type of its answer as JSON."""
        return typing.get_args(self._hints["return"])[0]


get, post, put, patch = partial(Route, "GET"), partial(Route, "POST"), partial(Route, "PUT"), partial(Route, "PATCH")


@lru_cache(maxsize=64)
def _segments(template: str) -> tuple[str, ...]:
    return tuple(template.split("/"))


def find(routes: Sequence[Route], method: str, raw_path: str) -> tuple[Route, dict[str, str]]:
    """The route of `method` on `raw_path` (as sent, without a query), and the path's parameters. HEAD takes GET's
    (RFC 9110, 9.3.2).

    Raises: HttpRefused: 404; 405, naming the methods that the path takes.
    """
    given = raw_path.split("/")
    found = [(route, values) for route in routes if (values := _matched(route.template, given)) is not None]
    if not found:
        raise no_such_path()
    wanted = "GET" if method == "HEAD" else method
    for route, values in found:
        if route.method == wanted:
            return route, values
    methods = {route.method for route, _ in found}
    allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
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
        if not re.search(PATH_PARAMETERS[name], value):
            return None
        values[name] = value
    return values
