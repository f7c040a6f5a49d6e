"""The gateway of one process: its sessions, and what the registry's events do to them.

gateway = Gateway(registry, upstream, clock=clock)
feed = asyncio.create_task(gateway.run())
await gateway.following()          # before the listener accepts: no revocation is missed
listen(gateway.protocol, ...)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime

from fleet.config.logs import log_event
from fleet.domain.changes import AuditEntry, Event, EventKind
from fleet.domain.device import OUT_OF_SERVICE, DeviceState, Model
from fleet.domain.errors import Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.live_upstream import BrokerSilent
from fleet.servers.gateway.broker.upstream import Factory, Upstream, username_of
from fleet.servers.gateway.broker.visit import BrokerVisits
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.events.feed import OTHERS_SECONDS, EventFollower
from fleet.servers.gateway.events.session_purge import SessionPurger
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.limits.kept_filters import FilterSet, KeptFilters
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.limits.rates import Budget, Budgets
from fleet.servers.gateway.limits.return_delays import ReturnDelays
from fleet.servers.gateway.outcome_log import TEXT_MAX, OutcomeLog
from fleet.servers.gateway.relay.relay import Relay
from fleet.servers.gateway.relay.saved_acks import HeldAcks, Saves
from fleet.servers.gateway.session.admission import admit_client
from fleet.servers.gateway.session.broker_link import BrokerLinks
from fleet.servers.gateway.session.phases import Phase
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.session.session import Session
from fleet.servers.gateway.tasks import Tasks
from fleet.servers.gateway.wills.cancellation import WillCancellation
from fleet.servers.gateway.wills.waiting import WaitingWills
from fleet.services.admission import Admission
from fleet.services.refusal_rows import RefusalRows
from fleet.wire.mqtt.connect import Connect

log = logging.getLogger("fleet.gateway")

AUDITED = frozenset({"mqtt.publish", "mqtt.subscribe"})  # what a device was not allowed to do; not a delivery

CLOSE_SECONDS_MAX = 2.8  # for a broker to close the connections to which DISCONNECT was written, 0.3 ms each, and
WILLS_SECONDS_MIN = 1.0  # kept of these for waiting wills, 0.3 to 0.6 ms each, and for audit rows at the same time


class Gateway:
    """Implements SessionContext.

    `purges`: whether it also purges the broker's sessions of revoked and retired devices. Of several gateways in front
    of one broker none should: the process that started them does, once all have received the event.
    """

    def __init__(
        self,
        registry: Registry,
        upstream: Upstream,
        *,
        clock: Callable[[], datetime],
        limits: Limits | None = None,
        purges: bool = True,
        kept_filters: KeptFilters | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.outcomes = OutcomeLog()
        self.open_sessions: SessionRegistry[Session] = SessionRegistry()
        # Half of what a session has to open: the admission needs the rest.
        self.return_delays = ReturnDelays(self.limits.open_seconds_max / 2)
        self.broker_links = BrokerLinks()
        self.wills = WaitingWills(self.limits.sessions_max)
        self.now = clock
        self.on_admitted: Callable[[str], None] | None = None
        """Called with the address of each client that the registry admits."""
        self._registry = registry
        self._upstream = upstream
        self._feed = EventFollower(
            registry, self._on_event, self.limits.feed_silence_seconds_max, self._on_events_missed
        )
        self._kept_filters = kept_filters or KeptFilters(self.limits)
        self._budgets = Budgets(2 * self.limits.sessions_max, self.limits)
        self._denials = RefusalRows(registry)
        self._tasks = Tasks()
        self._closing: asyncio.Task[None] | None = None
        self.saves: Saves | None = None
        """Set it before anything listens: devices get the acknowledgement of what the broker has saved."""
        visits = BrokerVisits(upstream)
        self._purger = SessionPurger(visits, registry, self.outcomes) if purges else None
        self._cancellation = WillCancellation(self.wills, registry, visits, self.outcomes, self)
        if not purges:
            self._cancellation.after_seconds = OTHERS_SECONDS
        self.broker_stops: Callable[[], bool] = lambda: True
        """Whether a broker of ours is stopped after this gateway; asked when the gateway is closed."""
        self._applying = asyncio.Lock()  # in order of the events: the last model counts
        self._setting = asyncio.Lock()
        self._brokers_models: frozenset[str] = frozenset()

        self.held_elsewhere: Callable[[str], Awaitable[bool | None]] | None = None
        """Whether another gateway in front of the same broker holds a session of the device; None: not known. May be
        set at any time.
        """

    def protocol(self, peer: Peer) -> asyncio.Protocol:
        """The protocol for one connection whose TLS handshake has proved `peer`."""
        return Session(self, peer)

    async def run(self) -> None:
        """Follow the registry until cancelled. Start it before anything listens."""
        await self._feed.run()

    def on_broker_silent(self) -> None:
        """Refuse those that wait for the broker's CONNACK now, not at their deadline."""
        for session in self.open_sessions:
            if session.phase in (Phase.CONNECTING, Phase.AWAITING_CONNACK):
                session.close(close_reasons.BROKER_SILENT)

    async def following(self) -> None:
        """Returns once every event from now on reaches the sessions."""
        await self._feed.started()

    async def close(self, seconds_max: float = CLOSE_SECONDS_MAX) -> None:
        """Close every session, with DISCONNECT to those of 5.0 and to the broker, and cancel pending work.

        A second call waits for the end of the first. A broker that is stopped next publishes every will that it has not
        been told to discard.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(seconds_max))
        await asyncio.shield(self._closing)

    async def _close(self, seconds_max: float) -> None:
        clock = asyncio.get_running_loop().time
        ends_at = clock() + seconds_max
        for session in self.open_sessions:
            session.close(close_reasons.SHUTTING_DOWN)
        await self.broker_links.closed(seconds_max - WILLS_SECONDS_MIN)
        await self._tasks.close()
        await asyncio.gather(self._denials.close(), self._leave_no_will(ends_at - clock()))
        if self._purger is not None:
            await self._purger.close()
        self.outcomes.close()

    async def _leave_no_will(self, seconds_max: float) -> None:
        stops = self._upstream.is_ours and self.broker_stops()
        if stops and (left := await self._cancellation.cancel_all(seconds_max)):
            log_event(log, logging.WARNING, "wills.not-cancelled", wills=left)
        await self._cancellation.close()

    @property
    def sessions(self) -> int:
        """Current number of connections, those not admitted yet included."""
        return len(self.open_sessions)

    @property
    def stats(self) -> Mapping[str, int]:
        """Live and read-only: each of COUNTERS that is not zero -> its count."""
        return self.outcomes.counts

    # SessionContext

    def speaks_v5(self) -> bool:
        return self._upstream.speaks_v5

    def feed_is_up(self) -> bool:
        return self._feed.reliable()

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        self._tasks.start(work)

    async def admit(self, peer: Peer, connect: Connect) -> Admission:
        admission = await admit_client(self._registry, peer, connect, self.now())
        if self.on_admitted is not None:
            self.on_admitted(peer.address)
        return admission

    def audit_denied(self, peer: Peer, admission: Admission, action: str, code: str, detail: Mapping[str, str]) -> None:
        if action not in AUDITED:
            return
        device = f"device {admission.device.id}"
        shown = {name: value[:TEXT_MAX] for name, value in detail.items()}
        shown["serial"] = admission.credential.serial
        entry = AuditEntry(self.now(), device, action, device, code, peer.address, shown)
        self._denials.put(entry)

    def broker_username(self, admission: Admission) -> str:
        return username_of(admission.device, self._upstream)

    def on_broker_lost(self, session: Session, reason: CloseReason) -> None:
        if reason is close_reasons.BROKER_LOST and self.held_elsewhere is not None:
            self.spawn(self._close_lost(session, self.held_elsewhere(session.client_id)))
        else:
            session.close(reason)

    async def _close_lost(self, session: Session, is_held_elsewhere: Awaitable[bool | None]) -> None:
        session.close(close_reasons.TAKEN_OVER if await is_held_elsewhere else close_reasons.BROKER_LOST)

    def holds(self, device_id: str) -> bool:
        """Whether the broker has got a CONNECT of the device from here, and its session lives."""
        at_broker = (Phase.AWAITING_CONNACK, Phase.RELAYING)
        return any(session.phase in at_broker for session in self.open_sessions.of_device(device_id))

    async def is_held_elsewhere(self, device_id: str) -> bool | None:
        return await self.held_elsewhere(device_id) if self.held_elsewhere is not None else False

    def budget(self, admission: Admission, connect: Connect) -> Budget:
        now = asyncio.get_running_loop().time()
        budget = self._budgets.of_device(admission.device.id, admission.rules, now)
        budget.in_flight.connecting(connect.session_seconds)
        return budget

    def hold_acks(self, relay: Relay, broker: FlowControlledTransport) -> None:
        if self.saves is not None:
            relay.hold_acks(HeldAcks(self.saves, broker.peer_pid(), relay.to_device))

    def kept_filters(self, admission: Admission, connect: Connect) -> FilterSet:
        outlives = connect.outlives_connection
        return self._kept_filters.of_session(admission.device.id, outlives_connection=outlives)

    async def connect_broker(self, model: str, factory: Factory) -> None:
        try:
            if model not in self._brokers_models:  # added since the start: there is no event for that
                await self._set_models(await self._registry.models())
            await self._upstream.connect(factory)
        except BrokerSilent as error:
            raise CloseSession(close_reasons.BROKER_SILENT) from error
        except (OSError, TimeoutError, Unavailable) as error:
            raise CloseSession(close_reasons.BROKER_UNREACHABLE) from error

    # Events of the registry

    async def _on_event(self, event: Event) -> None:
        match event.kind:
            case EventKind.DEVICE_STATE:
                self._on_device_state(event.subject, event.detail)
            case EventKind.CREDENTIAL_ENDED:
                self._on_credential_ended(event.subject, event.detail)
            case EventKind.MODEL_CHANGED:
                await self._on_model_changed(event.subject)
        self._cancellation.on_event(event)  # its session has been closed above
        if self._purger is not None:
            await self._purger.on_event(event)

    def _on_events_missed(self) -> None:
        """Events were lost: close all sessions so that clients authenticate again."""
        for session in self.open_sessions:
            session.close(close_reasons.EVENTS_MISSED)
        self._cancellation.on_events_missed()

    def _on_device_state(self, device_id: str, state: str) -> None:
        if state == DeviceState.ACTIVE:
            return
        for session in self.open_sessions.of_device(device_id):
            session.close(close_reasons.device_ended(state))
        if state in OUT_OF_SERVICE:
            self._budgets.session_purged(device_id)
            self._kept_filters.session_purged(device_id)

    def _on_credential_ended(self, holder: str, fingerprint: str) -> None:
        sessions = self.open_sessions
        ended = sessions.of_fingerprint(bytes.fromhex(fingerprint)) if fingerprint else sessions.of_device(holder)
        for session in ended:
            session.close(close_reasons.CREDENTIAL_ENDED)

    async def _on_model_changed(self, name: str) -> None:
        for session in self.open_sessions:
            session.model_changed()
        model = await self._registry.model(name)
        if model is not None:
            # Not awaited: a broker that is slow to reload must not delay a revocation.
            self.spawn(self._apply(model, await self._registry.models()))

    async def _apply(self, model: Model, models: Sequence[Model]) -> None:
        async with self._applying:
            # Update the broker's ACLs before our own policy: the broker must not drop a topic that is newly allowed.
            try:
                await self._set_models(models)
            except (OSError, TimeoutError) as error:
                log_event(log, logging.ERROR, "broker.rules-not-set", model=model.name, error=error)
            for session in self.open_sessions:
                if session.admission is not None and session.admission.device.model == model.name:
                    session.set_model(model)
            self._cancellation.on_model(model)
            self.outcomes.record("mqtt.model", "applied", asyncio.get_running_loop().time(), model=model.name)

    async def _set_models(self, models: Sequence[Model]) -> None:
        async with self._setting:
            await self._upstream.set_models(models)
            self._brokers_models = frozenset(model.name for model in models)
