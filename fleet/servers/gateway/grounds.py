"""What every session of one gateway stands on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fleet.servers.gateway.ended import Ended
from fleet.servers.gateway.journal import Journal
from fleet.servers.gateway.limits import Limits
from fleet.servers.gateway.table import LiveTable
from fleet.servers.gateway.upstream import Upstream
from fleet.wire.mqtt.connect import Connect

if TYPE_CHECKING:
    from fleet.servers.gateway.session import Session


@dataclass(frozen=True, slots=True)
class Grounds:
    upstream: Upstream
    clock: Callable[[], datetime]
    limits: Limits
    journal: Journal
    table: "LiveTable[Session]"
    open: "Callable[[Session, Connect], None]"
    """Start to admit a session; it goes live or is refused later."""
    ended: Ended
    prepare: Callable[[str], Awaitable[None]]
    """See to it that the broker knows the model of this name."""
