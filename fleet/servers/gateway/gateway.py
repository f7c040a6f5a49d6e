"""The gateway of one process: composed of its parts, started and stopped.

gateway = Gateway(registry, upstream, clock=clock)
feed = asyncio.create_task(gateway.run())
await gateway.following()          # before the listener accepts: no revocation is missed
listen(gateway.protocol, ...)
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from fleet.config.logs import log_event
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.domain.presence import ClientSession
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.access import BrokerAccess
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.servers.gateway.broker.visit import BrokerVisits
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.servers.gateway.denial_audit import DenialAudit
from fleet.servers.gateway.events.effects import EventEffects
from fleet.servers.gateway.events.late_turns import LateTurns
from fleet.servers.gateway.events.session_purge import OTHERS_SECONDS, SessionPurger
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits
from fleet.servers.gateway.limits.rates import Budgets
from fleet.servers.gateway.limits.retained import RetainedMessages
from fleet.servers.gateway.limits.return_delays import ReturnDelays
from fleet.servers.gateway.limits.unread import UnreadTotal
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.relay.saved_acks import Saves
from fleet.servers.gateway.session.admission import admit_client
from fleet.servers.gateway.session.broker_link import BrokerLinks
from fleet.servers.gateway.session.context import SessionContext
from fleet.servers.gateway.session.drain import drain_wholly
from fleet.servers.gateway.session.holders import HeldElsewhere, SessionHolders
from fleet.servers.gateway.session.phases import Phase
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.session.session import Session
from fleet.servers.gateway.tasks import Tasks
from fleet.servers.gateway.wills.cancellation import WillCancellation
from fleet.servers.gateway.wills.waiting import WaitingWills
from fleet.services.admission import Admission
from fleet.services.event_follower import EventFollower
from fleet.services.presence import Presence
from fleet.wire.mqtt.connect import Connect

log = logging.getLogger("fleet.gateway")

CLOSE_SECONDS_MAX = 2.8  # for a broker to close the connections to which DISCONNECT was written, 0.3 ms each, and
WILLS_SECONDS_MIN = 1.0  # kept of these for waiting wills, 0.3 to 0.6 ms each, and for audit rows at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What a gateway has besides registry and broker."""

    limits: Limits = DEFAULT_LIMITS
    kept_filters: KeptFilters | None = None
    """None: in memory alone."""
    database: Path | None = None
    """Of our own mosquitto: devices get the acknowledgement of what is saved there. None: as the broker sends it."""
    saved: Path | None = None
    """The same database, by which the retained messages of each device at a broker of ours are limited; None: they are
    not.
    """
    purges: bool = True
    """Whether it also purges the broker's sessions of revoked and retired devices. Of several gateways in front of one
    broker none should: the process that started them does, once all have received the event.
    """
    held_elsewhere: HeldElsewhere | None = None
    broker_stops: Callable[[], bool] = lambda: True
    """Whether our own broker is stopped after this gateway; asked when the gateway is closed."""
    presence: Presence | None = None
    """Where sessions are recorded; None: nowhere."""
    server_reference: str = ""
    """Another server, to which clients of MQTT 5.0 are referred when this one stops; "": none."""
    on_admitted: Callable[[str], None] = lambda address: None
    """Called with the address of each client that the registry admits."""


class Gateway:
    def __init__(
        self,
        registry: Registry,
        upstream: Upstream,
        *,
        clock: Callable[[], datetime],
        options: GatewayOptions | None = None,
    ) -> None:
        self._options = options = options or GatewayOptions()
        self._registry = registry
        self._tasks = Tasks()
        limits, outcomes = options.limits, OutcomeLog()
        sessions: SessionRegistry[Session] = SessionRegistry()
        holders = SessionHolders(sessions.of_device, options.held_elsewhere, self._tasks.start)
        visits, wills = BrokerVisits(upstream), WaitingWills(limits.sessions_max)
        self.context = SessionContext(
            limits=limits,
            outcomes=outcomes,
            open_sessions=sessions,
            # Half of what a session has to open: the admission needs the rest.
            return_delays=ReturnDelays(limits.open_seconds_max / 2),
            broker=BrokerAccess(upstream, registry),
            broker_links=BrokerLinks(),
            holders=holders,
            wills=wills,
            budgets=Budgets(2 * limits.sessions_max, limits),
            unread=UnreadTotal(partial(outcomes.count, "mqtt.deliver.unread"), limits),
            retained=RetainedMessages(options.saved, limits) if options.saved and upstream.is_ours else None,
            kept_filters=options.kept_filters or KeptFilters(limits),
            denials=DenialAudit(registry, clock),
            presence=options.presence,
            saves=Saves(options.database, self._tasks.start) if options.database is not None else None,
            now=clock,
            admit=self._admit,
            late_turns=LateTurns(self._caught_up, self._tasks.start),
            feed_is_up=self.feed_is_up,
            spawn=self._tasks.start,
        )
        kept = self.context.kept_filters
        self._purger = SessionPurger(visits, registry, outcomes, kept) if options.purges else None
        after_seconds = 0.0 if options.purges else OTHERS_SECONDS
        self._cancellation = WillCancellation(wills, registry, visits, outcomes, holders, after_seconds=after_seconds)
        self._effects = EventEffects(self.context, registry, self._cancellation, self._purger)
        silence_seconds_max = limits.feed_silence_seconds_max
        self._feed = EventFollower(
            registry, self._effects.on_event, silence_seconds_max, self._effects.on_events_missed
        )
        self._closing: asyncio.Task[None] | None = None
        self._ends_for = close_reasons.shutting_down(options.server_reference)

    def protocol(self, peer: Peer) -> asyncio.Protocol:
        """The protocol for one connection whose TLS handshake has proved `peer`."""
        return Session(self.context, peer)

    async def run(self) -> None:
        """Follow the registry until cancelled. Start it before anything listens."""
        if self.context.retained is not None:
            self._tasks.start(self.context.retained.watch())
        self.context.late_turns.start()
        try:
            await self._feed.run()
        finally:
            self.context.late_turns.stop()

    async def _caught_up(self) -> None:
        await self._feed.caught_up()

    async def following(self) -> None:
        """Returns once every event from now on reaches the sessions."""
        await self._feed.started()

    def on_broker_silent(self) -> None:
        """Refuse those that wait for the broker's CONNACK now, not at their deadline."""
        for session in self.context.open_sessions:
            if session.phase in (Phase.CONNECTING, Phase.AWAITING_CONNACK):
                session.close(close_reasons.BROKER_SILENT)

    def feed_is_up(self) -> bool:
        """Whether the registry's event feed is up."""
        return self._feed.reliable()

    def holds(self, client_id: str) -> bool:
        """Whether the broker has got a CONNECT with its `client_id` from here, and the session lives."""
        return self.context.holders.holds(client_id)

    def heard(self) -> Iterator[tuple[ClientSession, float]]:
        """Each session that is recorded, and how many seconds ago its device was heard."""
        now = asyncio.get_running_loop().time()
        for session in self.context.open_sessions:
            if session.log.session is not None:
                yield session.log.session, now - session.heard_at

    @property
    def sessions(self) -> int:
        """Current number of connections, those not admitted yet included."""
        return len(self.context.open_sessions)

    @property
    def stats(self) -> Mapping[str, int]:
        """Live and read-only: each of COUNTERS that is not zero -> its count."""
        return self.context.outcomes.counts

    def set_limits(self, limits: Limits) -> None:
        """For the sessions to come, and for messages in flight. `sessions_max` stays as it was."""
        self.context.limits = limits = replace(limits, sessions_max=self.context.limits.sessions_max)
        self.context.kept_filters.set_limits(limits)
        self.context.budgets.set_limits(limits)
        self.context.unread.limits = limits
        if self.context.retained is not None:
            self.context.retained.limits = limits

    def set_server_reference(self, reference: str) -> None:
        """Where clients of MQTT 5.0 are sent at a stop; "": nowhere."""
        if self._ends_for is not close_reasons.SERVER_RESTARTING:
            self._ends_for = close_reasons.shutting_down(reference)

    def begin_drain(self, seconds: float, *, restarts: bool) -> None:
        """End the sessions, spread evenly over `seconds`, those that begin meanwhile too. `restarts`: a process that
        listens at the same place takes over from this one.
        """
        if restarts:
            self._ends_for = close_reasons.SERVER_RESTARTING
        self._tasks.start(drain_wholly(self.context.open_sessions, seconds, self._ends_for))

    async def close(self, seconds_max: float = CLOSE_SECONDS_MAX) -> None:
        """Close every session, with DISCONNECT to those of 5.0 and to the broker, and cancel pending work.

        A second call waits for the end of the first. A broker that is stopped next publishes every will that it was
        not asked to discard.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(seconds_max))
        await asyncio.shield(self._closing)

    async def _close(self, seconds_max: float) -> None:
        clock = asyncio.get_running_loop().time
        ends_at = clock() + seconds_max
        for session in self.context.open_sessions:
            session.close(self._ends_for)
        await self.context.broker_links.closed(seconds_max - WILLS_SECONDS_MIN)
        await self._tasks.close()
        await asyncio.gather(self.context.denials.close(), self._leave_no_will(ends_at - clock()))
        if self._purger is not None:
            await self._purger.close()
        self.context.outcomes.close()

    async def _leave_no_will(self, seconds_max: float) -> None:
        stops = self.context.broker.upstream.is_ours and self._options.broker_stops()
        if stops and (left := await self._cancellation.cancel_all(seconds_max)):
            log_event(log, logging.WARNING, "wills.not-cancelled", wills=left)
        await self._cancellation.close()

    async def _admit(self, peer: Peer, connect: Connect) -> Admission:
        admission = await admit_client(self._registry, peer, connect, self.context.now())
        if await self._effects.is_distrusted(admission):
            raise CloseSession(replace(close_reasons.DISTRUSTED, event="mqtt.connect", is_audited=True))
        self._options.on_admitted(peer.address)
        return admission
