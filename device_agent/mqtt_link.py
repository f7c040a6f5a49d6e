"""One MQTT connection over mutual TLS, used once. paho implements the protocol; retries are the agent's.

Each connection is a new link, with a new paho Client and a new TLS context: paho accepts a TLS context only once, and a
rotated certificate needs a fresh one. Name lookup, TCP connect and TLS handshake block, so they run in a thread; all
else runs in the thread of the runner's loop, which polls `socket` and calls `handle_io` and `tick`.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agent.core import Setback
from fleet.est_client.tls import is_refusal, is_refusal_text

STEP_TIMEOUT_SECONDS = 10.0  # for the TCP connect and for each read of the handshake
RECEIVE_MAXIMUM_DEFAULT = 65535  # MQTT 5.0, 3.2.2.3.3
READS_MAX = 64  # packets handled in one turn of the loop

MQTT_5, MQTT_3 = 5, 4  # the protocol levels in CONNECT

# MQTT 5.0, 3.2.2.2: reason codes that stay the same until an operator changes something.
_ASK = "ask the fleet's operator to check it with `fleet device show`"
_REFUSALS = {
    0x85: f"the certificate belongs to another device id: {_ASK}",
    0x86: f"the gateway did not accept this identity: {_ASK}",
    0x87: f"the gateway did not authorize this certificate: {_ASK}; if it has expired, enroll again with a new token",
    0x8A: f"this device is suspended, revoked or retired: {_ASK}; once resumed, it reconnects automatically",
    0x8C: f"the gateway does not accept this authentication method: {_ASK}",
}
"""Meaning of each refusal, and the next step."""
_TAKEN_OVER = 0x8E  # another client uses our identity: immediate retries would disconnect each other in turn
_BAD_VERSION = 0x84


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    client_id: str
    keepalive_seconds: int
    session_expiry_seconds: int


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


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended or failed. The last event of a link; close it then."""

    setback: Setback
    reason: str
    answered: bool = False
    """A CONNACK was received."""
    reached: bool = False
    """TCP and TLS were established, so CONNECT was sent."""


LinkEvent = Connected | Acknowledged | Lost


class MqttLink:
    """`wake` is called from another thread when the blocking part is done; call `tick` then. `events()` returns events,
    oldest first."""

    def __init__(self, target: Target, context: ssl.SSLContext, protocol: int, wake: Callable[[], None]) -> None:
        self._target = target
        self._protocol = protocol
        self._wake = wake
        self._events: list[LinkEvent] = []
        self._lock = threading.Lock()  # guards the three flags shared with the connecting thread
        self._opened = False
        self._opening_error: Exception | None = None
        self._abandoned = False
        self._usable = False  # the connecting thread no longer uses the client
        self._ended = False
        self._answered = False
        self._last_error = ""
        self._client = self._new_client(context)

    def open(self) -> None:
        """Start connecting."""
        threading.Thread(target=self._open, name="mqtt-connect", daemon=True).start()

    @property
    def socket(self) -> socket.socket | None:
        """The socket to poll, once there is one."""
        found = self._client.socket() if self._usable and not self._ended else None
        return found if isinstance(found, socket.socket) else None

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
                    current = self.socket
                    # TLS may hold decrypted packets that select cannot see.
                    if not isinstance(current, ssl.SSLSocket) or not current.pending():
                        break
            if writable and not self._ended:
                self._check(self._client.loop_write())

    def tick(self) -> None:
        """Call at least once a second: keep-alive, and the result of the connecting thread."""
        if not self._usable:
            with self._lock:
                if not self._opened:
                    return
                error = self._opening_error
            if error is not None:
                self._end(*_explained(error))
                return
            self._usable = True
        current = self.socket
        if isinstance(current, ssl.SSLSocket) and current.pending():
            self.handle_io(readable=True, writable=False)
        with self._errors_end_the_link():
            if not self._ended:
                self._check(self._client.loop_misc())

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        """Publish a message and return its packet id. Only between Connected and Lost.

        Raises: ValueError if it can never be sent.
        """
        return self._client.publish(topic, payload, qos).mid

    def close(self) -> None:
        """Close with a DISCONNECT, if the socket accepts it without blocking. Required after Lost, too."""
        self._ended = True
        with self._lock:
            self._abandoned = True
            if not self._opened:
                return  # the connecting thread closes the socket
        self._close_client()

    def _open(self) -> None:
        target = self._target
        options: dict[str, Any] = {}
        if self._protocol == MQTT_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = target.session_expiry_seconds
            options = {"clean_start": False, "properties": properties}
        error: Exception | None = None
        try:
            self._client.connect(target.host, target.port, target.keepalive_seconds, **options)
        except (OSError, ValueError) as failure:  # ValueError: a host name that IDNA cannot encode
            error = failure
        with self._lock:
            self._opened = True
            self._opening_error = error
            abandoned = self._abandoned
        if abandoned:
            self._close_client()
        else:
            self._wake()

    def _new_client(self, context: ssl.SSLContext) -> paho.Client:
        clean = {} if self._protocol == MQTT_5 else {"clean_session": False}
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._target.client_id,
            protocol=MQTTProtocolVersion(self._protocol),
            reconnect_on_failure=False,  # its delays have no jitter, and it would reuse the old certificate
            **clean,  # type: ignore[arg-type]
        )
        client.tls_set_context(context)
        client.connect_timeout = STEP_TIMEOUT_SECONDS
        client.max_inflight_messages_set(0)  # the outbox owns the window
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_log = self._on_log
        return client

    def _on_connect(self, _client: object, _data: object, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._answered = True
        if code.is_failure:
            self._end(*_explained_connack(code))
            return
        self._events.append(
            Connected(
                session_present=bool(flags.session_present),
                receive_maximum=getattr(properties, "ReceiveMaximum", RECEIVE_MAXIMUM_DEFAULT),
                packet_size_max=getattr(properties, "MaximumPacketSize", None),
            )
        )

    def _on_disconnect(self, _client: object, _data: object, flags: Any, code: ReasonCode, _: object) -> None:
        if flags.is_disconnect_packet_from_server:
            taken_over = code.value == _TAKEN_OVER
            self._end(Setback.REFUSED if taken_over else Setback.NETWORK, f"the server disconnected: {code}")
        else:
            self._end(*_explained_text(self._last_error or f"connection lost: {code}"))

    def _on_publish(self, _client: object, _data: object, packet_id: int, code: ReasonCode, _: object) -> None:
        self._events.append(Acknowledged(packet_id, str(code) if code.is_failure else ""))

    def _on_log(self, _client: object, _data: object, level: int, text: str) -> None:
        # The only place where paho reports the cause of a broken connection. Debug lines have topics: not kept.
        if level == LogLevel.MQTT_LOG_ERR:
            self._last_error = text

    def _check(self, code: int) -> None:
        if code != paho.MQTT_ERR_SUCCESS and not self._ended:
            self._end(*_explained_text(self._last_error or paho.error_string(MQTTErrorCode(code))))

    @contextlib.contextmanager
    def _errors_end_the_link(self) -> Any:
        try:
            yield
        except Exception as error:  # paho's decoders raise any exception on a malformed packet
            self._end(Setback.NETWORK, f"the server violated the protocol: {type(error).__name__}")

    def _end(self, setback: Setback, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._events.append(Lost(setback, reason, answered=self._answered, reached=self._usable))

    def _close_client(self) -> None:
        client_socket = self._client.socket()
        with contextlib.suppress(Exception):
            self._client.disconnect()
        if client_socket is not None:
            with contextlib.suppress(OSError):
                client_socket.close()


def _explained(error: Exception) -> tuple[Setback, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Setback.UNTRUSTED, f"the server's certificate did not verify: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        setback = Setback.REFUSED if is_refusal(error) else Setback.NETWORK
        return setback, f"TLS failed: {error.reason or error}"
    return Setback.NETWORK, f"no connection: {str(error) or type(error).__name__}"


def _explained_text(text: str) -> tuple[Setback, str]:
    # In TLS 1.3 the server verifies our certificate after our side of the handshake is complete: the alert comes with
    # the first read, and paho passes it on as text.
    return (Setback.REFUSED if is_refusal_text(text) else Setback.NETWORK), text.removeprefix(
        "failed to receive on socket: "
    )


def _explained_connack(code: ReasonCode) -> tuple[Setback, str]:
    if code.value == _BAD_VERSION:
        return Setback.PROTOCOL, f"CONNACK: {code}"
    if code.value not in _REFUSALS:
        return Setback.NETWORK, f"CONNACK: {code}"
    return Setback.REFUSED, f"{_REFUSALS[code.value]} (CONNACK: {code})"
