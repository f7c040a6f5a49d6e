"""State machine of one device's connection, from CONNECT by way of admission and the broker to relaying.

    AWAITING_CONNECT --CONNECT--> ADMITTING --admitted--> CONNECTING --to the broker--> AWAITING_CONNACK --0--> RELAYING
    any phase --close--> CLOSED

`PHASES` is the table. No side is read while the other's buffer is full, nor the device from its admission to CONNACK.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from fleet.domain.client_ids import device_of, is_bound
from fleet.domain.device import Model
from fleet.domain.peer import Peer
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import BROKER_LOST, KEEP_ALIVE_EXPIRED, CloseReason, CloseSession
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause, block, unblock
from fleet.servers.gateway.limits.rates import RateMeter
from fleet.servers.gateway.limits.unread import Unread
from fleet.servers.gateway.relay.relay import Relay
from fleet.servers.gateway.session.admission import broker_connect, connect_body, connect_in, must_be_servable
from fleet.servers.gateway.session.broker_link import BrokerLink
from fleet.servers.gateway.session.context import SessionContext
from fleet.servers.gateway.session.intake import Intake
from fleet.servers.gateway.session.last_packets import send_last_packets
from fleet.servers.gateway.session.log import SessionLog
from fleet.servers.gateway.session.outliving import keep_what_outlives
from fleet.servers.gateway.session.phases import CONNECT_DEADLINE, OPEN_DEADLINE, Phase, Rules, Timer
from fleet.servers.gateway.session.siblings import connections, must_have_room, take_over
from fleet.servers.gateway.session.terms import terms_of
from fleet.servers.gateway.session.timers import Timers
from fleet.servers.gateway.wills.waiting import will_of
from fleet.services.admission import Admission, will_refusal
from fleet.wire.errors import WireError
from fleet.wire.mqtt.connect import CONNECT, Connect, answer_version, encode_connect, silence_max
from fleet.wire.mqtt.reader import PacketReader

EARLY_SIZE_MAX = 1_048_576  # of packets behind CONNECT: reading has stopped, but one read of the transport may be ahead
DELAYED_SIZE_MAX = 16_384  # of the same, after which a CONNECT that waits its delay is not read either


class Session(asyncio.Protocol):
    """Protocol of the device's transport; `peer` is what its TLS handshake has proved."""

    __slots__ = (
        "_broker", "_claimed", "_context", "_device", "_intake", "_loop", "_policy_outdated", "_reader", "_relay",
        "_rules", "_timers", "_version", "admission", "connect", "heard_at", "log", "peer", "phase")  # fmt: skip

    def __init__(self, context: "SessionContext[Session]", peer: Peer) -> None:
        self.peer = peer
        self.phase = Phase.AWAITING_CONNECT
        self.connect: Connect | None = None
        self.admission: Admission | None = None
        self._rules = PHASES[self.phase]
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self.log = SessionLog(context, peer, self.heard_at)
        self._timers = Timers(self._loop)
        self._reader = PacketReader(context.limits.connect_size_max)
        self._claimed = ""  # the device under which events find it
        self._version: int | None = None  # of the packets to the device; None before CONNECT
        self._policy_outdated = False  # a model has changed since the last admission began
        self._device: FlowControlledTransport  # from connection_made, which is the first event
        self._broker: FlowControlledTransport | None = None
        self._relay: Relay | None = None
        self._intake: Intake | None = None

    @property
    def client_id(self) -> str:
        """Once it is admitted the one at the broker, before that the one of its CONNECT, "" before that."""
        if self.admission is not None:
            return self.admission.client_id
        return (self.connect.client_id or self._claimed) if self.connect else ""

    @property
    def is_between_packets(self) -> bool:
        """Whether it relays, and no packet is in part on its way in either direction."""
        return self.phase is Phase.RELAYING and self._relay is not None and self._relay.is_between_packets

    @property
    def is_stuck(self) -> bool:
        """Whether its device does not read, and the broker can be told to discard the will."""
        return self._device.blocked and self._relay is not None and self._relay.to_broker.between_packets

    # Events of the device's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._device = FlowControlledTransport(transport)
        sessions, limits = self._context.open_sessions, self._context.limits
        same = sessions.of_fingerprint(self.peer.fingerprint) if self.peer.fingerprint else ()
        if len(sessions) >= limits.sessions_max or connections(same) >= limits.per_certificate_max:
            self.close(close_reasons.TOO_MANY_SESSIONS)
            return
        sessions.add(self, self.peer.fingerprint)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            reason = self._rules.device_data(self, data)
        except CloseSession as closing:
            reason = closing.reason
        except WireError as error:
            reason = close_reasons.broken_by(error)
        if reason is not None:
            self.close(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._intake is None or self._intake.end():
            self.close(close_reasons.CLIENT_GONE)

    def pause_writing(self) -> None:
        self._device.blocked = True  # the broker is read all the same: see limits/unread.py
        if (relay := self._relay) is not None and relay.unread is None and self.phase is not Phase.CLOSED:
            close, packets = partial(self.close, close_reasons.TOO_SLOW), relay.to_broker.packets
            relay.wait(Unread(self._context.unread, self._device.unread_size, packets, close))
        self._timers.start(Timer.STUCK, self._context.limits.stuck_seconds_max, self.close, close_reasons.TOO_SLOW)

    def resume_writing(self) -> None:
        unblock(self._device, None)
        self._timers.cancel(Timer.STUCK)
        if self._relay is not None:
            self._relay.wait(None)

    # Events of the broker's transport, whose protocol is a BrokerLink

    def broker_connected(self, transport: asyncio.BaseTransport) -> None:
        self._broker = FlowControlledTransport(transport)

    def broker_data(self, data: bytes) -> None:
        self._device.together(self._take_broker_data, data)

    def _take_broker_data(self, data: bytes) -> None:
        try:
            reason = self._rules.broker_data(self, data)
        except (CloseSession, WireError):
            reason = close_reasons.BROKER_BROKE_PROTOCOL
        if reason is not None:
            self.close(reason)

    def broker_lost(self) -> None:
        if (reason := self._rules.broker_lost) is not None:
            self._device.pause(Pause.BROKER_LOST)
            self._context.holders.on_broker_lost(self, reason)

    def broker_blocked(self) -> None:
        block(self._broker, self._device)

    def broker_drained(self) -> None:
        unblock(self._broker, self._device)

    # Events of the registry

    def close_in(self, seconds: float, reason: CloseReason) -> None:
        """Close it for `reason`, in `seconds` at the latest."""
        self._timers.start(Timer.SUPERSEDED, seconds, self.close, reason)

    def model_changed(self) -> None:
        """Some model has changed: an admission that is under way may have the old policy."""
        self._policy_outdated = True

    def set_model(self, model: Model) -> None:
        """The device's model is now `model`: apply it; close when the session holds what it no longer allows."""
        if (reason := self._rules.model_set(self, model)) is not None:
            self.close(reason)

    # Transitions

    def close(self, reason: CloseReason) -> None:
        """Close both sides, each with the packet that `reason` calls for. Only the first call counts."""
        if self.phase is Phase.CLOSED:
            return
        self._enter(Phase.CLOSED)
        self._timers.close()
        self._context.open_sessions.remove(self, self.peer.fingerprint, self._claimed)
        if self._intake is not None:
            self._intake.meter.stop()
        linger_seconds = self._context.limits.linger_seconds_max
        with ExitStack() as releases:  # the last first, and each of them whatever another raises
            releases.callback(self._record_end, reason)
            if self._broker is not None:
                releases.callback(self._broker.close if reason.publishes_will else self._broker.finish, linger_seconds)
            releases.callback(self._device.close, linger_seconds)
            if (relay := self._relay) is not None and self.connect is not None and self.admission is not None:
                releases.callback(
                    keep_what_outlives, self._context, relay, reason, self.connect, self.admission, self.peer
                )
            send_last_packets(reason, self._device, self._relay, self._version, self.connect)

    def _record_end(self, reason: CloseReason) -> None:
        now, delays = self._loop.time(), self._context.return_delays
        delays.on_close(self.peer.fingerprint, reason.code, now, lived=self.log.closed(reason.code, now))
        self._record(reason.event, reason.code)

    def _enter(self, phase: Phase) -> None:
        before = self._rules
        if phase not in (before.next, Phase.CLOSED):
            raise RuntimeError(f"A session cannot go from {self.phase.name} to {phase.name}.")
        self.phase, self._rules = phase, PHASES[phase]
        if self._rules.deadline is not before.deadline:
            self._set_deadline()

    def _set_deadline(self) -> None:
        if (deadline := self._rules.deadline) is None:
            self._timers.cancel(Timer.DEADLINE)
        else:
            self._timers.start(Timer.DEADLINE, deadline.seconds(self._context.limits), self.close, deadline.reason)

    # Actions of AWAITING_CONNECT

    def _read_connect(self, data: bytes) -> CloseReason | None:
        # [MQTT-3.1.0-1] the first packet must be CONNECT; the rest of any other is not awaited
        if not self._reader.held and data[:1] != bytes((CONNECT,)):
            return close_reasons.NOT_CONNECT
        found = connect_body(self._reader, data)
        if found is None:
            return None
        self._version = answer_version(found[0])
        self._enter(Phase.ADMITTING)
        try:
            self.connect = connect = connect_in(*found)
            self._claim(device_of(connect.client_id))
            must_be_servable(connect, speaks_v5=self._context.broker.speaks_v5, feed_is_up=self._context.feed_is_up())
        except CloseSession as closing:
            self._device.pause(Pause.AWAITING_CONNACK)
            self._context.spawn(self._context.denials.refused_connect(self.peer, self.client_id, closing.reason))
            self._delay(closing.reason.code, partial(self.close, closing.reason))
        else:
            self._delay(None, partial(self._begin_open, connect))  # read meanwhile: one that leaves is not admitted
        return None

    def _begin_open(self, connect: Connect) -> None:
        self._device.pause(Pause.AWAITING_CONNACK)
        self._context.spawn(self._open(connect))

    def _claim(self, device_id: str) -> None:
        self._context.open_sessions.claim(self, device_id, self._claimed)
        self._claimed = device_id

    def _delay(self, refused_for: str | None, act: Callable[[], None]) -> None:
        """Do it now, or later when sessions with this certificate were closed again and again for one cause."""
        seconds = self._context.return_delays.seconds(self.peer.fingerprint, self.heard_at, refused_for)
        if seconds:
            self.log.delayed(seconds)
            self._timers.start(Timer.RETURN, seconds, act)
        else:
            act()

    # Actions of ADMITTING and CONNECTING: after each await the session may be closed

    async def _open(self, connect: Connect) -> None:
        try:
            admission = await self._admit(connect)
            if self.phase is Phase.CLOSED:
                return
            self._enter(Phase.CONNECTING)
            self.admission = admission
            context = self._context
            take_over(self, admission, context.open_sessions.of_device(admission.device.id))
            header = context.broker.header(admission, self.peer, self._device.ends())
            link = partial(BrokerLink, self, context.broker_links)
            await context.broker.connect(admission.device.model, link, header)
            if self._policy_outdated and self.phase is Phase.CONNECTING:
                admission = await self._admit(connect)
            if self._broker is not None and self.phase is Phase.CONNECTING:
                self._forward_connect(connect, admission, self._broker)
            elif self._broker is not None:  # it was closed before the broker's transport was there
                self._broker.close(context.limits.linger_seconds_max)
        except CloseSession as closing:
            await self._context.denials.refused_connect(self.peer, self.client_id, closing.reason)
            self.close(closing.reason)
        except Exception:
            self.close(close_reasons.INTERNAL)  # now, not at the deadline
            raise  # to the context, which logs it

    async def _admit(self, connect: Connect) -> Admission:
        while True:
            self._policy_outdated = False
            admission = await self._context.admit(self.peer, connect)
            if self.phase is Phase.CLOSED:
                return admission
            if self._claimed != admission.device.id:  # what events said of it before, the registry says now
                self._claim(admission.device.id)
            # A model that changed meanwhile may be the device's: the policy could be the old or the new one.
            elif not self._policy_outdated:
                return self._context.broker.narrowed(admission, connect)

    def _forward_connect(self, connect: Connect, admission: Admission, broker: FlowControlledTransport) -> None:
        context, now, of_device = self._context, self._loop.time(), self._context.open_sessions.of_device
        must_have_room(self, connect, admission, of_device(admission.device.id), context.kept_filters)
        self._enter(Phase.AWAITING_CONNACK)
        self.admission = admission
        budget = context.budgets.of_device(admission.device.id, admission.rules, now)
        terms = terms_of(context, connect, admission, budget, broker)
        self._relay = Relay(connect, terms, broker.write, self._device.write, self._note)
        meter = RateMeter(budget, self._relay.to_broker, self._device, self.close, self._loop)
        self._intake = Intake(self._relay, meter, self._device, context.late_turns, self)
        username, has_room = context.broker.username(admission), context.wills.has_room(now)
        self.connect = broker_connect(connect, admission, username, delays_will=has_room)
        broker.write(encode_connect(context.broker.proved(self.connect, admission)))
        until, clock = admission.credential.not_after, context.now
        self._timers.at(Timer.EXPIRY, until, clock, self.close, close_reasons.CERTIFICATE_EXPIRED)

    def _hold(self, data: bytes) -> CloseReason | None:
        self._reader.feed(data)
        if self._reader.held > DELAYED_SIZE_MAX:
            self._device.pause(Pause.AWAITING_CONNACK)
        return close_reasons.TOO_LARGE if self._reader.held > EARLY_SIZE_MAX else None

    # Actions of AWAITING_CONNACK and RELAYING

    def _read_connack(self, data: bytes) -> CloseReason | None:
        reason = self._relay_from_broker(data)
        if self._relay is not None and self._relay.connack is not None and self.connect is not None:
            code = self._relay.connack.code
            self._record("mqtt.connect", f"broker-refused-{code:02x}" if code else "ok")
            if code == 0:
                self.log.accepted(self._loop.time(), self.connect, self.admission)
                self._enter(Phase.RELAYING)
                self._context.wills.drop(self.client_id)
                if silence_seconds_max := silence_max(self.connect, self._relay.connack):
                    self._timers.after_silence(
                        silence_seconds_max, self._silent_seconds, self.close, KEEP_ALIVE_EXPIRED
                    )
                if early := self._reader.rest():
                    self.data_received(early)
                self._device.resume(Pause.AWAITING_CONNACK)
        return reason

    def _relay_from_device(self, data: bytes) -> CloseReason | None:
        return None if self._intake is None else self._intake.take(data)

    def _relay_from_broker(self, data: bytes) -> CloseReason | None:
        if (relay := self._relay) is None:
            return None
        answers, replayed = relay.answers, relay.replayed
        reason = relay.from_broker(data)
        if relay.replayed != replayed and self._intake is not None and self.phase is Phase.RELAYING:
            self._intake.meter.replayed(relay.replayed - replayed)
        if relay.answers != answers and self._broker is not None:
            self._broker.pause_if_blocked()
        return reason

    def _apply_model(self, model: Model) -> CloseReason | None:
        if self._relay is None or self.admission is None or self.connect is None:
            return None
        if self.peer.tenant not in model.rules.signers:
            return close_reasons.CREDENTIAL_ENDED
        admission = self.admission.under(model)
        if not is_bound(self.client_id, admission.rules.client_id):
            return close_reasons.POLICY_CHANGED
        self.admission, policy, rules = admission, admission.policy, admission.rules
        self._relay.set_rules(rules)
        if self._intake is not None:
            self._intake.meter.set_rules(rules)
        allowed = self._relay.set_policy(policy) and not will_refusal(will_of(self.connect), policy, rules)
        return None if allowed else close_reasons.POLICY_CHANGED

    def _silent_seconds(self) -> float:
        """What a device sends that is not read is no silence."""
        return 0.0 if self._device.is_paused else self._loop.time() - self.heard_at

    def _note(self, event: str, code: str, topic: str, reason: str = "") -> None:
        """The relay has refused a packet."""
        detail = {"topic": topic, "reason": reason} if reason else {"topic": topic}
        self._record(event, code, **detail)
        if self.admission is not None:
            self._context.denials.put(self.peer, self.admission, event, code, detail)

    def _record(self, event: str, code: str, **detail: str) -> None:
        self.log.record(event, code, self._loop.time(), self.client_id, self.admission, **detail)


PHASES: dict[Phase, Rules[Session]] = {
    Phase.AWAITING_CONNECT: Rules(Phase.ADMITTING, CONNECT_DEADLINE, device_data=Session._read_connect),
    Phase.ADMITTING: Rules(Phase.CONNECTING, OPEN_DEADLINE, device_data=Session._hold),
    Phase.CONNECTING: Rules(Phase.AWAITING_CONNACK, OPEN_DEADLINE, device_data=Session._hold, broker_lost=BROKER_LOST),
    Phase.AWAITING_CONNACK: Rules(
        Phase.RELAYING,
        OPEN_DEADLINE,
        device_data=Session._hold,
        broker_data=Session._read_connack,
        broker_lost=close_reasons.BROKER_LOST_BEFORE_CONNACK,
        model_set=Session._apply_model,
    ),
    Phase.RELAYING: Rules(
        None,
        None,
        device_data=Session._relay_from_device,
        broker_data=Session._relay_from_broker,
        broker_lost=BROKER_LOST,
        model_set=Session._apply_model,
    ),
    Phase.CLOSED: Rules(None, None),
}
