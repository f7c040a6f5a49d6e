"""What a handler is given: what stands as long as the server, and one request."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fleet.domain.access import Act, Operator
from fleet.domain.approval import DEFAULT_WAITING, WaitingLimits
from fleet.domain.credential import Credential
from fleet.domain.ports import Registry
from fleet.servers.admin.authorities import Authorities
from fleet.servers.admin.idempotency import Once
from fleet.servers.http import Exchange
from fleet.services.retention import Policy

Clock = Callable[[], datetime]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What stands as long as the server does."""

    registry: Registry
    status: Callable[[], Json]
    clock: Clock
    tenants: Callable[[], Collection[str]]
    """Names of those that have an issuing CA."""
    authorities: Authorities
    retention: Policy
    operators_der: bytes
    """The operators' CA, DER: an operator's chain ends here, and nobody else's does."""
    heartbeat_seconds: float
    started: datetime
    streams: Counter[str] = field(default_factory=Counter)
    """How many streams of events each operator has open."""
    waiting: WaitingLimits = DEFAULT_WAITING


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose certificate was presented, in service at the time of the call."""

    credential: Credential
    operator: Operator | None
    """None for a device or a station."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that has been let in and is well-formed."""

    exchange: Exchange
    now: datetime
    caller: Caller | None
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any = None
    media_type: str = "application/json"
    """What the answer is to be in."""
    if_match: frozenset[str] | None = None
    """ETags that the change is for; None for any."""
    once: Once | None = None
    """Set when it came with an idempotency key."""

    @property
    def operator(self) -> Operator:
        """The operator who calls; there is one wherever a permission was asked for."""
        assert self.caller is not None  # noqa: S101
        assert self.caller.operator is not None  # noqa: S101
        return self.caller.operator

    @property
    def act(self) -> Act:
        """What the audit will say of a change."""
        return Act(f"operator {self.operator.name}", self.now, self.exchange.peer.address)
