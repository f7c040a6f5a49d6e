"""One device's connection: CONNECT first, then a relay to the broker, until one of many close reasons.

    WAITING --CONNECT--> OPENING --admitted, broker connected--> LIVE --> ENDED

Reading stops until CONNACK, and whenever the other side does not take what was read: what one session holds
in memory stays within a few buffers.
"""

import asyncio
import enum
from collections.abc import Callable
from dataclasses import replace

from fleet.domain.device import Model
from fleet.domain.peer import Peer
from fleet.domain.topic_policy import policy_of
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.context import SessionContext
from fleet.servers.gateway.flow_control import FlowControlledTransport, clog, unclog
from fleet.servers.gateway.relay import Relay
from fleet.services.admission import Admission
from fleet.wire.errors import TooLarge, Unsupported, WireError
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import CONNECT, Connect, decode_connect, encode_connect, refusal, version_of_refused
from fleet.wire.mqtt.properties import Property, value_of, without
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX, PacketReader

EARLY_SIZE_MAX = 1_048_576  # what may come behind CONNECT before reading stops: one read of the transport below us
EXPIRY_CHECK_SECONDS_MAX = 3600.0  # the wall clock may be set, and a timer of ninety days would not notice


class Phase(enum.Enum):
    WAITING = enum.auto()
    OPENING = enum.auto()
    LIVE = enum.auto()
    ENDED = enum.auto()


class Session(asyncio.Protocol):
    """A protocol for the TLS listener; `peer` is what the handshake has proved."""

    def __init__(self, context: SessionContext, peer: Peer) -> None:
        self.peer = peer
        self.phase = Phase.WAITING
        self.connect: Connect | None = None
        self.admission: Admission | None = None
        self.stale = False
        """A model has changed while this session was being admitted: its policy must be asked for again."""
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._reader = PacketReader(CONNECT_SIZE_MAX)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._device: FlowControlledTransport | None = None
        self._broker: FlowControlledTransport | None = None
        self._relay: Relay | None = None

    @property
    def claimed(self) -> str:
        """The client id of its CONNECT, "" before that."""
        return self.connect.client_id if self.connect else ""

    # The device's side: this is the protocol of its transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._device = FlowControlledTransport(transport)
        table, limits = self._context.table, self._context.limits
        mine = table.of_fingerprint(self.peer.fingerprint) if self.peer.fingerprint else ()
        if len(table) >= limits.sessions_max or len(mine) >= limits.per_certificate_max:
            self.end(close_reasons.TOO_MANY_SESSIONS)
            return
        table.add(self, self.peer.fingerprint)
        self._set_timer("deadline", self._context.limits.connect_seconds_max, self.end, close_reasons.CONNECT_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        try:
            if relay is not None and relay.connack is not None:
                answers = relay.answers
                relay.from_device(data)
                if relay.answers != answers and self._device is not None:
                    self._device.hold_if_clogged()
                if relay.farewell is not None:
                    self.end(relay.farewell)
            elif self.phase is Phase.WAITING:
                self._await_connect(data)
            elif self.phase is not Phase.ENDED:
                self._reader.feed(data)  # it had been read when reading was stopped, and waits behind CONNECT
                if self._reader.held > EARLY_SIZE_MAX:
                    raise CloseSession(close_reasons.TOO_LARGE)
        except CloseSession as over:
            self.end(over.ending)
        except TooLarge:
            self.end(close_reasons.TOO_LARGE)
        except WireError:
            self.end(close_reasons.MALFORMED)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(close_reasons.CLIENT_GONE)

    def pause_writing(self) -> None:
        """The device does not take what we write: stop reading what would be written to it."""
        clog(self._device, self._broker)
        self._set_timer("stuck", self._context.limits.stuck_seconds_max, self.end, close_reasons.TOO_SLOW)

    def resume_writing(self) -> None:
        unclog(self._device, self._broker)
        stuck = self._timers.pop("stuck", None)
        if stuck is not None:
            stuck.cancel()

    # CONNECT.

    def _await_connect(self, data: bytes) -> None:
        # [MQTT-3.1.0-1] the first packet must be CONNECT; nothing else is waited for to its end
        if not self._reader.held and data[:1] != bytes((CONNECT,)):
            raise CloseSession(close_reasons.NOT_CONNECT)
        packet = next(self._reader.feed(data), None)
        if packet is None:
            return
        try:
            connect = decode_connect(packet.body)
        except Unsupported:
            self.refuse("unsupported-version", Reason.UNSUPPORTED_PROTOCOL_VERSION, version_of_refused(packet.body))
        except WireError:
            self.refuse("malformed-connect", Reason.MALFORMED_PACKET, version_of_refused(packet.body))
        else:
            self._open(connect)

    def _open(self, connect: Connect) -> None:
        self.connect = connect
        self.phase = Phase.OPENING
        if self._device is not None:
            self._device.stop("opening")
        self._context.table.claim(self, connect.client_id)
        seconds = self._context.limits.open_seconds_max
        self._set_timer("deadline", seconds, self.refuse, "open-timeout", Reason.SERVER_UNAVAILABLE)
        if value_of(connect.properties, Property.AUTHENTICATION_METHOD) is not None:
            # MQTT 5.0, 4.12: a method that the server does not support. The certificate has proved it all already.
            self.refuse("auth-method", Reason.BAD_AUTHENTICATION_METHOD)
        elif connect.version == V5 and not self._context.upstream.speaks_v5:
            self.refuse("unsupported-version", Reason.UNSUPPORTED_PROTOCOL_VERSION)
        else:
            self._context.open(self, connect)

    def refuse(self, code: str, reason: Reason, version: int | None = None) -> None:
        """Answer CONNECT with `reason` and end. Does nothing when it has ended already."""
        if self.phase is Phase.ENDED or self._device is None:
            return
        self._device.write(refusal(reason, version or (self.connect.version if self.connect else V311)))
        self._note("mqtt.connect", code)
        self.end(close_reasons.REFUSED)

    def go_live(self, admission: Admission, broker: FlowControlledTransport) -> None:
        """Join the two sides: CONNECT goes to the broker. The device is not read until CONNACK has come back:
        [MQTT-3.2.0-1] nothing that it asks may be answered before that.
        """
        if self._device is None or self.connect is None:
            return
        self.admission = admission
        self.phase = Phase.LIVE
        self._broker = broker
        size_max = self._context.limits.packet_size_max
        version = self.connect.version
        self._relay = Relay(version, admission.policy, broker.write, self._device.write, self._note, size_max)
        broker.write(encode_connect(_identified(self.connect, admission)))
        self._watch_expiry()

    # The broker's side: its connection's protocol is a Link, which calls these.

    def from_broker(self, data: bytes) -> None:
        relay = self._relay
        if relay is None or self.phase is Phase.ENDED:
            return
        answers, greeted = relay.answers, relay.connack is not None
        try:
            relay.from_broker(data)
        except (CloseSession, WireError):
            self.end(close_reasons.BROKER_BROKE_PROTOCOL)
            return
        if relay.answers != answers and self._broker is not None:
            self._broker.hold_if_clogged()
        if not greeted and relay.connack is not None:
            self._greeted(relay.connack.code)
        if relay.farewell is not None:
            self.end(relay.farewell)

    def broker_gone(self) -> None:
        if self._relay is not None and self._relay.connack is None:
            self.refuse("broker-lost", Reason.SERVER_UNAVAILABLE)
        self.end(close_reasons.BROKER_LOST)

    def broker_slow(self) -> None:
        clog(self._broker, self._device)

    def broker_ready(self) -> None:
        unclog(self._broker, self._device)

    def _greeted(self, code: int) -> None:
        self._timers.pop("deadline").cancel()
        self._note("mqtt.connect", f"broker-refused-{code:02x}" if code else "ok")
        if code or self._device is None:
            return
        early = self._reader.rest()
        if early:
            self.data_received(early)
        self._device.go_on("opening")

    # What changes while it lives.

    def set_model(self, model: Model) -> None:
        """The device's model is now `model`: judge by it; end when the session holds what is no longer allowed."""
        if self._relay is None or self.admission is None or self.connect is None or self.phase is not Phase.LIVE:
            return
        if self.peer.tenant not in model.rules.signers:
            self.end(close_reasons.CREDENTIAL_ENDED)
            return
        policy = policy_of(self.admission.device, model)
        self.admission = replace(self.admission, policy=policy)
        will = self.connect.will
        will_allowed = will is None or (policy.may_publish(will.topic) and (policy.retain or not will.retain))
        if not self._relay.set_policy(policy) or not will_allowed:
            self.end(close_reasons.POLICY_CHANGED)

    def _watch_expiry(self) -> None:
        """End with the certificate's notAfter."""
        if self.admission is None or self.phase is not Phase.LIVE:
            return
        left = (self.admission.credential.not_after - self._context.clock()).total_seconds()
        if left <= 0:
            self.end(close_reasons.CERTIFICATE_EXPIRED)
        else:
            self._set_timer("expiry", min(left, EXPIRY_CHECK_SECONDS_MAX), self._watch_expiry)

    # The end.

    def end(self, ending: CloseReason) -> None:
        """Close both sides, each with what it should hear. Safe to call twice: the first ending counts."""
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        for timer in self._timers.values():
            timer.cancel()
        self._context.table.remove(self, self.peer.fingerprint, self.claimed)
        greeted = False
        if self._relay is not None:
            self._relay.take_leave(ending)
            greeted = self._relay.connack is not None
        if not greeted and self._device is not None and self.connect is not None and ending.connack is not None:
            self._device.write(refusal(ending.connack, self.connect.version))
        for side in (self._device, self._broker):
            if side is not None:
                side.close(self._context.limits.linger_seconds_max)
        if ending is not close_reasons.REFUSED:
            self._note("mqtt.session", ending.name)

    def _set_timer(self, name: str, seconds: float, callback: Callable[..., object], *args: object) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        if self.phase is Phase.ENDED:
            return
        self._timers[name] = self._loop.call_later(seconds, callback, *args)

    def _note(self, event: str, code: str, topic: str = "") -> None:
        serial = self.admission.credential.serial if self.admission else ""
        now = self._loop.time()
        self._context.journal.note(
            event, code, now, device=self.claimed, serial=serial, address=self.peer.address, topic=topic,
            ms=round((now - self._began) * 1000),
        )  # fmt: skip


class Link(asyncio.Protocol):
    """The protocol of a session's own connection to the broker."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.tap: FlowControlledTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.tap = FlowControlledTransport(transport)

    def data_received(self, data: bytes) -> None:
        self._session.from_broker(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.broker_gone()

    def pause_writing(self) -> None:
        self._session.broker_slow()

    def resume_writing(self) -> None:
        self._session.broker_ready()


def _identified(connect: Connect, admission: Admission) -> Connect:
    """The CONNECT that the broker gets: the device's own, under the name that its certificate proves."""
    will = connect.will
    if will is not None:
        # A will that waits outlives the session, and nobody could call it back when the device is suspended meanwhile.
        will = replace(will, properties=without(will.properties, Property.WILL_DELAY_INTERVAL))
    return replace(
        connect,
        will=will,
        client_id=admission.device.id,
        username=admission.device.id,
        password=None,
        # The broker must not use aliases towards the device either: the topic of each message is looked at.
        properties=without(connect.properties, Property.TOPIC_ALIAS_MAXIMUM),
    )
