"""State machine of one device's connection, from CONNECT by way of admission and the broker to relaying.

    AWAITING_CONNECT --CONNECT--> ADMITTING --admitted--> CONNECTING --to the broker--> AWAITING_CONNACK --0--> RELAYING
    any phase --close--> CLOSED

`PHASES`, at the end, is the table. The device is not read from CONNECT to CONNACK, nor while the other side's write
buffer is full: what one session holds in memory stays within a few buffers.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from fleet.domain.device import Model
from fleet.domain.peer import Peer
from fleet.domain.topic_policy import policy_of
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause, block, unblock
from fleet.servers.gateway.limits.rates import RateMeter
from fleet.servers.gateway.relay.relay import Relay, Terms
from fleet.servers.gateway.relay.saved_acks import HeldAcks
from fleet.servers.gateway.session.admission import broker_connect, connect_body, connect_in, must_be_servable
from fleet.servers.gateway.session.broker_link import BrokerLink
from fleet.servers.gateway.session.context import SessionContext
from fleet.servers.gateway.session.log import SessionLog
from fleet.servers.gateway.session.phases import CONNECT_DEADLINE, OPEN_DEADLINE, Phase, Rules, Timer
from fleet.servers.gateway.session.timers import Timers
from fleet.servers.gateway.wills.waiting import waiting_will, will_of
from fleet.services.admission import Admission, will_refusal
from fleet.wire.errors import TooLarge, WireError
from fleet.wire.mqtt.connect import (
    CONNECT,
    Connect,
    answer_version,
    encode_connect,
    packet_size_max,
    refusal,
    silence_max,
)
from fleet.wire.mqtt.reader import PacketReader

EARLY_SIZE_MAX = 1_048_576  # of packets behind CONNECT: reading has stopped, but one read of the transport may be ahead
EXPIRY_CHECK_SECONDS_MAX = 3600.0  # the wall clock may be set, and a timer of ninety days would not notice

Forward = Callable[[Relay, bytes], CloseReason | None]


class Session(asyncio.Protocol):
    """Protocol of the device's transport; `peer` is what its TLS handshake has proved."""

    def __init__(self, context: "SessionContext[Session]", peer: Peer) -> None:
        self.peer = peer
        self.phase = Phase.AWAITING_CONNECT
        self.connect: Connect | None = None
        self.admission: Admission | None = None
        self._rules = PHASES[self.phase]
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._log = SessionLog(context.outcomes, peer, self._heard_at)
        self._timers = Timers(self._loop)
        self._reader = PacketReader(context.limits.connect_size_max)
        self._version: int | None = None  # of the packets to the device; None before CONNECT
        self._policy_outdated = False  # a model has changed since the last admission began
        self._device: FlowControlledTransport  # from connection_made, which is the first event
        self._broker: FlowControlledTransport | None = None
        self._relay: Relay | None = None
        self._meter: RateMeter | None = None

    @property
    def client_id(self) -> str:
        """The client id of its CONNECT, "" before that."""
        return self.connect.client_id if self.connect else ""

    # Events of the device's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._device = FlowControlledTransport(transport)
        sessions, limits = self._context.open_sessions, self._context.limits
        same = sessions.of_fingerprint(self.peer.fingerprint) if self.peer.fingerprint else ()
        if len(sessions) >= limits.sessions_max or len(same) >= limits.per_certificate_max:
            self.close(close_reasons.TOO_MANY_SESSIONS)
            return
        sessions.add(self, self.peer.fingerprint)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            reason = self._rules.device_data(self, data)
        except CloseSession as closing:
            reason = closing.reason
        except TooLarge:
            reason = close_reasons.TOO_LARGE
        except WireError:
            reason = close_reasons.MALFORMED
        if reason is not None:
            self.close(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(close_reasons.CLIENT_GONE)

    def pause_writing(self) -> None:
        block(self._device, self._broker)
        self._timers.start(Timer.STUCK, self._context.limits.stuck_seconds_max, self.close, close_reasons.TOO_SLOW)

    def resume_writing(self) -> None:
        unblock(self._device, self._broker)
        self._timers.cancel(Timer.STUCK)

    # Events of the broker's transport, whose protocol is a BrokerLink

    def broker_connected(self, transport: asyncio.BaseTransport) -> None:
        self._broker = FlowControlledTransport(transport)

    def broker_data(self, data: bytes) -> None:
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
        self._context.open_sessions.remove(self, self.peer.fingerprint, self.client_id)
        if self._meter is not None:
            self._meter.stop()
        if self._relay is not None:
            self._relay.disconnect(reason)
            self._remember_will(self._relay, reason)
        connected = self._relay is not None and self._relay.connack is not None
        if not connected and self._version is not None and reason.connack is not None:
            size_max = packet_size_max(self.connect) if self.connect is not None else None
            self._device.write(refusal(reason.connack, self._version, reason.text, size_max))
        self._device.close(self._context.limits.linger_seconds_max)
        if self._broker is not None:
            end = self._broker.close if reason.publishes_will else self._broker.finish
            end(self._context.limits.linger_seconds_max)
        now, delays = self._loop.time(), self._context.return_delays
        delays.on_close(self.peer.fingerprint, reason.code, now, lived=self._log.lived(now))
        self._record(reason.event, reason.code)

    def _remember_will(self, relay: Relay, reason: CloseReason) -> None:
        if relay.may_leave_will(reason) and self.connect is not None and self.admission is not None:
            now, farewell = self._loop.time(), relay.farewell or b""
            will = waiting_will(self.connect, self.admission, self.peer.tenant, relay.connack, farewell, now)
            if will is not None:
                self._context.wills.add(replace(will, left_in_order=relay.left_in_order), now)

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
        self._device.pause(Pause.AWAITING_CONNACK)
        try:
            self.connect = connect = connect_in(*found)
            self._context.open_sessions.claim(self, connect.client_id)
            must_be_servable(connect, speaks_v5=self._context.broker.speaks_v5, feed_is_up=self._context.feed_is_up())
        except CloseSession as closing:
            self._context.spawn(self._context.denials.refused_connect(self.peer, self.client_id, closing.reason))
            self._delay(closing.reason.code, partial(self.close, closing.reason))
        else:
            self._delay(None, lambda: self._context.spawn(self._open(connect)))
        return None

    def _delay(self, refused_for: str | None, act: Callable[[], None]) -> None:
        """Do it now, or later when sessions with this certificate were closed again and again for one cause."""
        seconds = self._context.return_delays.seconds(self.peer.fingerprint, self._heard_at, refused_for)
        if seconds:
            self._log.delayed(seconds)
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
            # MQTT 5.0, 4.13.1 and [MQTT-3.1.4-3]; 3.1.1, [MQTT-3.1.4-2]: the newer connection takes over
            for other in self._context.open_sessions.of_device(admission.device.id):
                if other is not self and other.admission is not None:
                    other.close(close_reasons.TAKEN_OVER)
            context = self._context
            await context.broker.connect(admission.device.model, lambda: BrokerLink(self, context.broker_links))
            if self._policy_outdated and self.phase is Phase.CONNECTING:
                admission = await self._admit(connect)
            if self._broker is None:
                return
            if self.phase is Phase.CONNECTING:
                self._forward_connect(connect, admission, self._broker)
            else:  # it was closed before the broker's transport was there
                self._broker.close(self._context.limits.linger_seconds_max)
        except CloseSession as closing:
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
            if not self.client_id:
                # Events find it under the assigned id from now on; what they said before, the registry says now.
                self.connect = replace(connect, client_id=admission.device.id)
                self._context.open_sessions.claim(self, self.client_id)
            # A model that changed meanwhile may be the device's: the policy could be the old or the new one.
            elif not self._policy_outdated:
                return admission

    def _forward_connect(self, connect: Connect, admission: Admission, broker: FlowControlledTransport) -> None:
        self._enter(Phase.AWAITING_CONNACK)
        self.admission = admission
        context, device_id, now = self._context, admission.device.id, self._loop.time()
        budget = context.budgets.of_device(device_id, admission.rules, now)
        budget.in_flight.connecting(connect.session_seconds)
        terms = Terms(
            admission.policy,
            admission.rules,
            context.limits,
            context.kept_filters.of_session(device_id, outlives_connection=connect.outlives_connection),
            budget.in_flight,
            partial(HeldAcks, context.saves, broker.peer_pid()) if context.saves is not None else None,
            assigned_client_id="" if connect.client_id else device_id,
        )
        self._relay = Relay(connect, terms, broker.write, self._device.write, self._note)
        self._meter = RateMeter(budget, self._relay.to_broker, self._device, self.close, self._loop)
        username, has_room = context.broker.username(admission), context.wills.has_room(now)
        self.connect = broker_connect(connect, admission, username, delays_will=has_room)
        broker.write(encode_connect(self.connect))
        self._check_expiry(admission.credential.not_after)

    def _hold(self, data: bytes) -> CloseReason | None:
        self._reader.feed(data)
        return close_reasons.TOO_LARGE if self._reader.held > EARLY_SIZE_MAX else None

    # Actions of AWAITING_CONNACK and RELAYING

    def _read_connack(self, data: bytes) -> CloseReason | None:
        reason = self._relay_from_broker(data)
        if self._relay is not None and self._relay.connack is not None and self.connect is not None:
            code = self._relay.connack.code
            self._record("mqtt.connect", f"broker-refused-{code:02x}" if code else "ok")
            if code == 0:
                self._log.accepted(self._loop.time())
                self._enter(Phase.RELAYING)
                self._context.wills.drop(self.client_id)
                self._check_keep_alive(silence_max(self.connect, self._relay.connack))
                if early := self._reader.rest():
                    self.data_received(early)
                self._device.resume(Pause.AWAITING_CONNACK)
        return reason

    def _relay_from_device(self, data: bytes) -> CloseReason | None:
        reason = self._relayed(data, Relay.from_device, self._device)
        if self._meter is not None:
            self._meter.count(len(data))
        return reason

    def _relay_from_broker(self, data: bytes) -> CloseReason | None:
        return self._relayed(data, Relay.from_broker, self._broker)

    def _relayed(self, data: bytes, forward: Forward, side: FlowControlledTransport | None) -> CloseReason | None:
        relay = self._relay
        if relay is None:
            return None
        answers = relay.answers
        reason = forward(relay, data)
        if relay.answers != answers and side is not None:
            side.pause_if_blocked()
        return reason

    def _apply_model(self, model: Model) -> CloseReason | None:
        if self._relay is None or self.admission is None or self.connect is None:
            return None
        if self.peer.tenant not in model.rules.signers:
            return close_reasons.CREDENTIAL_ENDED
        policy = policy_of(self.admission.device, model)
        self.admission = replace(self.admission, policy=policy, rules=model.rules.mqtt)
        self._relay.set_rules(model.rules.mqtt)
        if self._meter is not None:
            self._meter.set_rules(model.rules.mqtt)
        will_refused = will_refusal(will_of(self.connect), policy, model.rules.mqtt)
        allowed = self._relay.set_policy(policy) and not will_refused
        return None if allowed else close_reasons.POLICY_CHANGED

    def _check_keep_alive(self, seconds: float) -> None:
        """`seconds` may pass in silence; 0: any time. What a device sends that is not read is no silence."""
        silent = 0.0 if self._device.is_paused else self._loop.time() - self._heard_at
        if seconds and silent >= seconds:
            self.close(close_reasons.KEEP_ALIVE_EXPIRED)
        elif seconds:
            self._timers.start(Timer.KEEP_ALIVE, seconds - silent, self._check_keep_alive, seconds)

    def _check_expiry(self, not_after: datetime) -> None:
        left = (not_after - self._context.now()).total_seconds()
        if left <= 0:
            self.close(close_reasons.CERTIFICATE_EXPIRED)
        else:
            self._timers.start(Timer.EXPIRY, min(left, EXPIRY_CHECK_SECONDS_MAX), self._check_expiry, not_after)

    def _note(self, event: str, code: str, topic: str, reason: str = "") -> None:
        """The relay has refused a packet."""
        detail = {"topic": topic, "reason": reason} if reason else {"topic": topic}
        self._record(event, code, **detail)
        if self.admission is not None:
            self._context.denials.put(self.peer, self.admission, event, code, detail)

    def _record(self, event: str, code: str, **detail: str) -> None:
        self._log.record(event, code, self._loop.time(), self.client_id, self.admission, **detail)


PHASES: dict[Phase, Rules[Session]] = {
    Phase.AWAITING_CONNECT: Rules(Phase.ADMITTING, CONNECT_DEADLINE, device_data=Session._read_connect),
    # One deadline for the three phases from CONNECT to CONNACK
    Phase.ADMITTING: Rules(Phase.CONNECTING, OPEN_DEADLINE, device_data=Session._hold),
    Phase.CONNECTING: Rules(
        Phase.AWAITING_CONNACK, OPEN_DEADLINE, device_data=Session._hold, broker_lost=close_reasons.BROKER_LOST
    ),
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
        broker_lost=close_reasons.BROKER_LOST,
        model_set=Session._apply_model,
    ),
    Phase.CLOSED: Rules(None, None),
}
