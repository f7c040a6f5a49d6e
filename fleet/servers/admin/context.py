"""What a handler is given: what lives as long as the server, and one request."""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from fleet.config.clock import Clock, utc_now
from fleet.domain.access import Act, Operator
from fleet.domain.approval import WaitingLimits
from fleet.domain.crl import CrlHead
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.servers.admin.idempotency import Once
from fleet.servers.admin.messages import Caller, Request
from fleet.wire.mqtt.reader import PACKET_SIZE_DEFAULT

if TYPE_CHECKING:
    from fleet.servers.admin.ca_access import CaAccess
    from fleet.services.crl_report import CrlReport
    from fleet.services.notifying import Notifier
    from fleet.services.retention import Policy

Json = Mapping[str, Any]

HEARTBEAT_SECONDS = 15.0  # half of what balancers give a silent connection at the least

_KEY_OF_THIS_PROCESS = os.urandom(32)


async def _no_crls(now: datetime, validity: timedelta | None) -> list[CrlHead]:
    return []


async def _no_report(now: datetime) -> "CrlReport":
    from fleet.services.crl_report import CrlReport

    return CrlReport(0, 0.0, 0.0, 0.0, 0, 0.0, 0, 0, 0)


class Context(Struct, frozen=True):
    """What lives as long as the server does. What is behind a callable is read anew at each request."""

    registry: Registry
    authorities: "Callable[[], CaAccess]"
    retention: "Callable[[], Policy]"
    """How long records are kept."""
    clock: Clock = utc_now
    status: Callable[[], Json] = dict
    """Counters of every part, ready for JSON."""
    counters: Callable[[], Mapping[str, Json]] = dict
    """Number of each worker that serves the home -> what it counts."""
    workers: Callable[[], Json] = dict
    """What is known of all of them; nothing before their supervisor has said it."""
    broker_answers: Callable[[], bool] = lambda: True
    """Whether the gateway's broker does."""
    broker_saves: Callable[[], bool] = lambda: True
    """Whether our own broker can save what it holds."""
    drains: Callable[[], bool] = lambda: False
    """Whether the server is about to stop."""
    notifier: "Callable[[], Notifier | None]" = lambda: None
    """By which messages reach devices; None: there is no broker."""
    tenants: Callable[[], Collection[str]] = frozenset
    """Names of tenants that have an issuing CA."""
    waiting: Callable[[], WaitingLimits] = WaitingLimits
    """How long a decided request is kept."""
    cursor_key: Callable[[], bytes] = lambda: _KEY_OF_THIS_PROCESS
    """Authenticates cursors: the same in every process that serves the fleet."""
    issue_crls: Callable[[datetime, timedelta | None], Awaitable[list[CrlHead]]] = _no_crls
    """Signs every CRL whose CA's key is here, valid for so long if that is given; what was published."""
    crl_report: "Callable[[datetime], Awaitable[CrlReport]]" = _no_report
    """How the published CRLs are."""
    packet_size_max: Callable[[], int] = lambda: PACKET_SIZE_DEFAULT
    """Of the gateway, where a model does not lower it."""
    refuses_dots: Callable[[], bool] = lambda: False
    """Whether the gateway refuses topics with dots, for its broker's sake."""
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    started: datetime = field(default_factory=utc_now)
    streams: Counter[str] = field(default_factory=Counter)
    """Open event streams by operator."""

    def must_notify(self) -> "Notifier":
        """Raises: Conflict (`no-broker`)."""
        if (notifier := self.notifier()) is None:
            raise Conflict("no-broker", "There is no broker here to publish at.", "Ask the API of a served fleet.")
        return notifier


class Call(Struct, frozen=True):
    """One request that is authorized and well-formed."""

    request: Request
    now: datetime
    caller: Caller | None
    """None where no certificate is asked for."""
    path: Mapping[str, str]
    media_type: str = "application/json"
    """What the answer is to be in."""
    if_match: frozenset[str] | None = None
    """ETags that the change is for; None for any."""
    once: Once | None = None
    """Set when it came with an idempotency key."""
    text: bytes = b""
    """Its body, as it came."""

    @property
    def operator(self) -> Operator:
        """The operator who calls; there is one wherever a permission is asked for."""
        assert self.caller is not None  # noqa: S101
        assert self.caller.operator is not None  # noqa: S101
        return self.caller.operator

    def models(self, asked: str | None) -> tuple[str | None, ...]:
        """The models to look under when `asked` is wanted: the operator's alone, if it is restricted to some. None
        means all at once.
        """
        if asked is not None:
            return (asked,) if self.operator.sees(asked) else ()
        return self.operator.models or (None,)

    @property
    def act(self) -> Act:
        """What the audit will say of a change."""
        assert self.caller is not None  # noqa: S101
        return Act(self.caller.actor, self.now, self.request.peer.address)
