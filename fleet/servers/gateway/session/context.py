"""Context: what a session needs of the gateway that it belongs to."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from fleet.domain.peer import Peer
from fleet.servers.gateway.broker.access import BrokerAccess
from fleet.servers.gateway.denial_audit import DenialAudit
from fleet.servers.gateway.events.late_turns import LateTurns
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.limits.rates import Budgets
from fleet.servers.gateway.limits.retained import RetainedMessages
from fleet.servers.gateway.limits.return_delays import ReturnDelays
from fleet.servers.gateway.limits.unread import UnreadTotal
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.relay.saved_acks import Saves
from fleet.servers.gateway.session.broker_link import BrokerLinks
from fleet.servers.gateway.session.holders import SessionHolders
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.wills.waiting import WaitingWills
from fleet.services.admission import Admission
from fleet.services.presence import Presence
from fleet.wire.mqtt.connect import Connect

S = TypeVar("S")


@dataclass(slots=True)
class SessionContext(Generic[S]):
    """`S` is the session itself."""

    limits: Limits
    """A reload sets others."""
    outcomes: OutcomeLog
    open_sessions: SessionRegistry[S]
    return_delays: ReturnDelays
    broker: BrokerAccess
    broker_links: BrokerLinks
    holders: SessionHolders
    wills: WaitingWills
    budgets: Budgets
    """What each device may still send, on any connection."""
    unread: UnreadTotal
    retained: RetainedMessages | None
    """Those at our own mosquitto; None: the broker is another."""
    kept_filters: KeptFilters
    denials: DenialAudit
    presence: Presence | None
    """None: who is connected is not recorded."""
    saves: Saves | None
    """Those of our own mosquitto, for which acknowledgements wait; None: they do not."""
    now: Callable[[], datetime]
    admit: Callable[[Peer, Connect], Awaitable[Admission]]
    """Raises: CloseSession."""
    late_turns: LateTurns
    """When a device's data waits for the registry's events."""
    feed_is_up: Callable[[], bool]
    """Whether the registry's event feed is up."""
    spawn: Callable[[Coroutine[object, object, None]], None]
    """Run as a task that is cancelled when the gateway closes; log the exception that it ends with."""
