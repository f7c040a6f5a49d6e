"""One MQTT connection over mutual TLS, used once. paho implements the protocol; retries are the agent's.

Each connection is a new link, with a new paho Client and a new TLS context: paho accepts a TLS context only once, and a
rotated certificate needs a fresh one. Loading the key, name lookup, TCP connect and TLS handshake block, so they run in
a thread; all else runs in the thread of the runner's loop, which polls `socket` and calls `handle_io` and `tick`.
"""

import contextlib
import socket as sockets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent.core import Setback
from device_agent.errors import KeyStoreLost
from device_agent.link.light_paho import paho
from device_agent.link.packet_bounds import PACKET_SIZE_MAX, BoundedClient, PacketRefused
from device_agent.link.refusals import explained, explained_connack, explained_disconnect, explained_text, with_reason
from device_agent.link.websocket import Websocket
from device_agent.packets import NO_EXTRAS, Extras, Received, Subscribed, identifier, received, refusal

STEP_TIMEOUT_SECONDS = 10.0  # for the TCP connect and for each read of the handshake
RECEIVE_MAXIMUM_DEFAULT = 65535  # MQTT 5.0, 3.2.2.3.3
READS_MAX = 64  # packets handled in one turn of the loop

_TEMPORARY = frozenset((0x91, 0x97))
"""MQTT 5.0, 3.4.2.1: packet identifier in use, quota exceeded. All other refusals are of this message."""
MQTT_5, MQTT_3 = 5, 4  # the protocol levels in CONNECT


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    client_id: str
    keepalive_seconds: int
    session_expiry_seconds: int
    path: str = ""
    """Of the WebSocket; "" for MQTT without one."""


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNACK with success: the server accepts this identity."""

    session_present: bool
    receive_maximum: int
    """Maximum number of unacknowledged messages (MQTT 5.0, 3.2.2.3.3)."""
    packet_size_max: int | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    packet_id: int
    failure: str
    """The server's reason for refusing the message (MQTT 5), or ""."""
    is_temporary: bool = False
    """It may accept the same message later."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended or failed. The last event of a link; close it then."""

    setback: Setback
    reason: str
    answered: bool = False
    """A CONNACK was received."""
    reached: bool = False
    """TCP and TLS were established, so CONNECT was sent."""
    code: str = ""
    """The fleet's, of a refusal, as device-suspended."""


LinkEvent = Connected | Acknowledged | Received | Subscribed | Lost


class MqttLink:
    """`wake` is called from another thread when the blocking part is done; call `tick` then. `events()` returns events,
    oldest first. `make_context` is called in that thread: a TPM may take seconds to load a key."""

    def __init__(
        self, target: Target, make_context: Callable[[], ssl.SSLContext], protocol: int, wake: Callable[[], None]
    ) -> None:
        self._target = target
        self._make_context = make_context
        self._protocol = protocol
        self._wake = wake
        self._events: list[LinkEvent] = []
        self._lock = threading.Lock()  # guards what is shared with the connecting thread
        self._opened = False
        self._opening_error: Exception | None = None
        self._authenticated = False  # the server is: the WebSocket's handshake follows that of TLS
        self._abandoned = False
        self._connecting: sockets.socket | None = None
        """The connection while the connecting thread uses it."""
        self._usable = False  # the connecting thread no longer uses the client
        self._ended = False
        self._answered = False
        self._identifies = False
        self._last_error = ""
        self._client = self._new_client()

    def open(self) -> None:
        """Start connecting."""
        try:
            threading.Thread(target=self._open, name="mqtt-connect", daemon=True).start()
        except RuntimeError as error:  # there is no memory, or no thread left
            self._opened, self._opening_error = True, error
            self._wake()

    @property
    def socket(self) -> "paho.SocketLike | None":
        """The socket to poll, once there is one; paho's WebSocket around it if there is a path."""
        return self._client.socket() if self._usable and not self._ended else None

    @property
    def local_address(self) -> str:
        """This end's IP address; "" without a connection."""
        with contextlib.suppress(OSError, AttributeError):
            current: Any = self.socket
            raw = getattr(current, "_socket", current)  # paho's WebSocket has no getsockname
            return str(raw.getsockname()[0]).partition("%")[0] if raw is not None else ""
        return ""

    @property
    def _has_buffered(self) -> bool:
        """Whether TLS or the WebSocket holds decrypted data, which poll cannot see."""
        current: Any = self.socket
        return current is not None and bool(current.pending())

    @property
    def wants_write(self) -> bool:
        return self._usable and self._client.want_write()

    def events(self) -> list[LinkEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def handle_io(self, readable: bool, writable: bool) -> None:
        """The socket is ready: read and write."""
        with self._errors_end_the_link():
            if readable:
                for _ in range(READS_MAX):
                    self._check(self._client.loop_read())
                    if self._ended or not self._has_buffered:
                        break
            if writable and not self._ended:
                self._check(self._client.loop_write())

    def tick(self) -> None:
        """Call at least once a second: keep-alive, and the result of the connecting thread. Raises: KeyStoreLost."""
        if not self._usable:
            with self._lock:
                if not self._opened:
                    return
                error = self._opening_error
            if isinstance(error, KeyStoreLost):
                raise error
            if error is not None:
                self._end(*explained(error, is_authenticated=self._authenticated))
                return
            self._usable = True
        if self._has_buffered:
            self.handle_io(readable=True, writable=False)
        with self._errors_end_the_link():
            if not self._ended:
                self._check(self._client.loop_misc())

    def publish(self, topic: str, payload: bytes, qos: int, extras: Extras = NO_EXTRAS) -> int:
        """Publish a message and return its packet id. Only between Connected and Lost.

        Raises: ValueError if it can never be sent.
        """
        properties = extras.properties() if self._protocol == MQTT_5 else None
        return self._client.publish(topic, payload, qos, properties=properties).mid

    def subscribe(self, topic_filter: str, qos: int) -> int:
        """Subscribe, and return the packet id of the Subscribed that follows. Only between Connected and Lost. With
        MQTT 5, what arrives names the filter it is for, unless the server knows no subscription identifiers.

        Raises: ValueError if the filter is invalid.
        """
        properties = None
        if self._protocol == MQTT_5 and self._identifies:
            properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
            properties.SubscriptionIdentifier = identifier(topic_filter)
        return self._client.subscribe(topic_filter, qos, properties=properties)[1] or 0

    def unsubscribe(self, topic_filter: str) -> int:
        """End a subscription, and return the packet id of the Subscribed that follows. Only between Connected and
        Lost."""
        return self._client.unsubscribe(topic_filter)[1] or 0

    def acknowledge(self, packet_id: int) -> None:
        """PUBACK for a Received message of QoS 1, on the connection that brought it."""
        with self._errors_end_the_link():
            if not self._ended:
                self._check(self._client.ack(packet_id, 1))

    def close(self) -> None:
        """Close with a DISCONNECT, if the socket accepts it without blocking. Required after Lost, too."""
        self._ended = True
        with self._lock:
            self._abandoned = True
            if not self._opened:
                self._end_connecting()
                return  # the connecting thread closes the socket
        self._close_client()

    def _end_connecting(self) -> None:
        # Each read of the connecting thread has its timeout, all of them have none: a server that drips its answer to
        # a WebSocket's request would keep the thread and the socket.
        if self._connecting is not None:
            with contextlib.suppress(OSError):
                self._connecting.shutdown(sockets.SHUT_RDWR)

    def _connect_socket(self) -> sockets.socket:
        """In place of paho's: keeps a duplicate, since TLS takes the socket over."""
        target = self._target
        made = sockets.create_connection((target.host, target.port), timeout=STEP_TIMEOUT_SECONDS)
        with self._lock:
            self._connecting = made.dup()
            if self._abandoned:
                self._end_connecting()
        return made

    def _connect_websocket(self) -> Websocket:
        target = self._target
        made: Any = self._client._ssl_wrap_socket(self._connect_socket())
        self._authenticated = True
        made.settimeout(STEP_TIMEOUT_SECONDS)
        return Websocket(made, target.host, target.port, True, target.path, None)

    def _open(self) -> None:
        target = self._target
        options: dict[str, Any] = {}
        if self._protocol == MQTT_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = target.session_expiry_seconds
            properties.MaximumPacketSize = PACKET_SIZE_MAX
            options = {"clean_start": False, "properties": properties}
        error: Exception | None = None
        try:
            self._client.tls_set_context(self._make_context())
            self._client.connect(target.host, target.port, target.keepalive_seconds, **options)
        except Exception as failure:  # else nobody is told: paho raises any, and so does a key or name that is wrong
            error = failure
        with self._lock:
            self._opened = True
            self._opening_error = error
            abandoned = self._abandoned
            if self._connecting is not None:
                self._connecting.close()
                self._connecting = None
        if abandoned:
            self._close_client()
        else:
            self._wake()

    def _new_client(self) -> paho.Client:
        clean = {} if self._protocol == MQTT_5 else {"clean_session": False}
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._target.client_id,
            protocol=MQTTProtocolVersion(self._protocol),
            transport="websockets" if self._target.path else "tcp",
            manual_ack=True,  # a message is acknowledged once a program on the device has taken it
            reconnect_on_failure=False,  # its delays have no jitter, and it would reuse the old certificate
            **clean,
        )
        if self._target.path:
            client._create_socket = self._connect_websocket  # type: ignore[method-assign]
        client._create_socket_connection = self._connect_socket  # type: ignore[method-assign]
        client.connect_timeout = STEP_TIMEOUT_SECONDS
        client.max_inflight_messages_set(0)  # the outbox owns the window
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_log = self._on_log
        return client

    def _on_connect(self, _client: object, _data: object, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._answered = True
        if code.is_failure:
            self._end(*explained_connack(code, properties))
            return
        # MQTT 5.0, 3.2.2.3.14: the server's value counts. A longer one than ours, or none (0), would only let a
        # half-open connection go unnoticed; pings more often than the server wants them do no harm.
        asked = getattr(properties, "ServerKeepAlive", 0) or self._target.keepalive_seconds
        self._client._keepalive = min(asked, self._target.keepalive_seconds)
        self._identifies = bool(getattr(properties, "SubscriptionIdentifierAvailable", 1))  # 3.2.2.3.12
        self._events.append(
            Connected(
                session_present=bool(flags.session_present),
                receive_maximum=getattr(properties, "ReceiveMaximum", RECEIVE_MAXIMUM_DEFAULT),
                packet_size_max=getattr(properties, "MaximumPacketSize", None),
            )
        )

    def _on_disconnect(self, _client: object, _data: object, flags: Any, code: ReasonCode, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._end(*explained_disconnect(code, properties))
        else:
            self._end(*explained_text(self._last_error or f"connection lost: {code}"))

    def _on_publish(self, _client: object, _data: object, packet_id: int, code: ReasonCode, properties: Any) -> None:
        failure = with_reason(code, properties) if code.is_failure else ""
        self._events.append(Acknowledged(packet_id, failure, code.value in _TEMPORARY))

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self._events.append(received(message))

    def _on_subscribe(self, _client: object, _data: object, packet_id: int, codes: list[ReasonCode], _: object) -> None:
        self._events.append(Subscribed(packet_id, tuple(refusal(code) for code in codes)))

    def _on_unsubscribe(self, _client: object, _data: object, packet_id: int, *_: object) -> None:
        self._events.append(Subscribed(packet_id, ()))

    def _on_log(self, _client: object, _data: object, level: int, text: str) -> None:
        # The only place where paho reports the cause of a broken connection. Debug lines have topics: not kept.
        if level == LogLevel.MQTT_LOG_ERR:
            self._last_error = text

    def _check(self, code: int) -> None:
        if code != paho.MQTT_ERR_SUCCESS and not self._ended:
            self._end(*explained_text(self._last_error or paho.error_string(MQTTErrorCode(code))))

    @contextlib.contextmanager
    def _errors_end_the_link(self) -> Any:
        try:
            yield
        except PacketRefused as error:
            self._end(Setback.NETWORK, str(error))
        except Exception as error:  # paho's decoders raise any exception on a malformed packet
            self._end(Setback.NETWORK, f"the server violated the protocol: {type(error).__name__}")

    def _end(self, setback: Setback, reason: str, code: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        if self._usable and not self._answered and "protocol error" in reason.lower():
            reason += ": what answers there is no MQTT. Is it the EST port? MQTT usually listens on 8883"
        self._events.append(Lost(setback, reason, self._answered, self._usable, code))

    def _close_client(self) -> None:
        client_socket = self._client.socket()
        with contextlib.suppress(Exception):
            self._client.disconnect()
        if client_socket is not None:
            with contextlib.suppress(OSError):
                client_socket.close()
