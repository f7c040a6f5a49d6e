"""What every session of one gateway stands on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.revoked_cache import RevokedCache
from fleet.servers.gateway.session_registry import SessionRegistry
from fleet.servers.gateway.upstream import Upstream
from fleet.wire.mqtt.connect import Connect

if TYPE_CHECKING:
    from fleet.servers.gateway.session import Session


@dataclass(frozen=True, slots=True)
class SessionContext:
    upstream: Upstream
    clock: Callable[[], datetime]
    limits: Limits
    journal: OutcomeLog
    table: "SessionRegistry[Session]"
    open: "Callable[[Session, Connect], None]"
    """Start to admit a session; it goes live or is refused later."""
    ended: RevokedCache
    prepare: Callable[[str], Awaitable[None]]
    """See to it that the broker knows the model of this name."""
