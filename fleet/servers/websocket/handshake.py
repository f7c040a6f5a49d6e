"""WebSocket's opening handshake (RFC 6455, 4.2) for MQTT: bytes of a request in, the answer to it out."""

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass

import h11
from wsproto.utilities import generate_accept_token

from fleet.servers.websocket import MQTT_PATH

SUBPROTOCOL = b"mqtt"  # [MQTT-6.0.0-3], [MQTT-6.0.0-4]
VERSION = b"13"
REQUEST_SIZE_MAX = 8192  # browsers send a kilobyte, and some more of cookies
KEY_SIZE = 16


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that is not accepted."""

    status: str
    """Code and reason phrase."""
    code: str
    text: str
    headers: str = ""
    """Further ones, each with CRLF."""

    def encode(self) -> bytes:
        body = f"{self.text}\n"
        head = f"HTTP/1.1 {self.status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
        return f"{head}{self.headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class UpgradeRefused(Exception):
    """The request is not accepted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


TOO_LARGE = Refusal("431 Request Header Fields Too Large", "too-large", "The request is too large.")
BAD_REQUEST = Refusal("400 Bad Request", "bad-request", "The request is not valid HTTP/1.1.")
BAD_PATH = Refusal("404 Not Found", "bad-path", f"The path is {MQTT_PATH}.")
BAD_METHOD = Refusal("405 Method Not Allowed", "bad-method", "The method is GET.", "Allow: GET\r\n")
NO_UPGRADE = Refusal(
    "426 Upgrade Required",
    "no-upgrade",
    "This listener speaks MQTT over WebSocket, version 13.",
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
)
BAD_KEY = Refusal("400 Bad Request", "bad-key", "Sec-WebSocket-Key is not 16 bytes in base64.")
NO_MQTT = Refusal("400 Bad Request", "no-mqtt", "Sec-WebSocket-Protocol does not offer mqtt.")
BAD_ORIGIN = Refusal("403 Forbidden", "bad-origin", "The page's origin is not in wss.origins.")

UNAVAILABLE = Refusal(
    "503 Service Unavailable",
    "unavailable",
    "The server can open no session for this client now, or the request timed out.",
)


class OpeningHandshake:
    """The server's side of one. Its request is read whole, and nothing may come behind it (RFC 6455, 4.1)."""

    __slots__ = ("_http", "_origins", "_size")

    def __init__(self, origins: Collection[str]) -> None:
        """`origins`: of web pages that may connect, beside one that this listener would serve itself."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_SIZE_MAX)
        self._origins = origins
        self._size = 0

    def feed(self, data: bytes) -> bytes | None:
        """The answer 101; None while the request is incomplete. Raises: UpgradeRefused."""
        self._size += len(data)
        if self._size > REQUEST_SIZE_MAX:
            raise UpgradeRefused(TOO_LARGE)
        try:
            self._http.receive_data(data)
            request = self._http.next_event()
            if request is h11.NEED_DATA:
                return None
            ended = isinstance(self._http.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            raise UpgradeRefused(BAD_REQUEST) from None
        is_alone = ended and not self._http.trailing_data[0]
        if not isinstance(request, h11.Request) or not is_alone or request.http_version != b"1.1":
            raise UpgradeRefused(BAD_REQUEST)
        return self._answer(request)

    def _answer(self, request: h11.Request) -> bytes:
        values: dict[bytes, list[bytes]] = {}
        for name, value in request.headers:
            values.setdefault(name, []).append(value)
        self._check(request, values)
        token = generate_accept_token(values[b"sec-websocket-key"][0])
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + token + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )

    def _check(self, request: h11.Request, values: dict[bytes, list[bytes]]) -> None:
        if request.target != MQTT_PATH.encode():
            raise UpgradeRefused(BAD_PATH)
        if request.method != b"GET":
            raise UpgradeRefused(BAD_METHOD)
        asks = b"websocket" in _listed(values, b"upgrade") and b"upgrade" in _listed(values, b"connection")
        if not asks or values.get(b"sec-websocket-version") != [VERSION]:
            raise UpgradeRefused(NO_UPGRADE)
        key = values.get(b"sec-websocket-key", [])
        if len(key) != 1 or not _is_key(key[0]):
            raise UpgradeRefused(BAD_KEY)
        # Names of subprotocols are compared with their case (RFC 6455, 4.2.2)
        if SUBPROTOCOL not in _listed(values, b"sec-websocket-protocol", lower=False):
            raise UpgradeRefused(NO_MQTT)
        own = b"https://" + values[b"host"][0].lower()  # h11 has seen to it that there is one
        if any(origin != own and origin.decode("latin-1") not in self._origins for origin in values.get(b"origin", [])):
            # A browser would use the client certificate of a person for any page that asks for it.
            raise UpgradeRefused(BAD_ORIGIN)


def _listed(values: dict[bytes, list[bytes]], name: bytes, *, lower: bool = True) -> list[bytes]:
    items = [item.strip() for item in b",".join(values.get(name, ())).split(b",")]
    return [item.lower() for item in items] if lower else items


def _is_key(text: bytes) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_SIZE
    except binascii.Error:
        return False
