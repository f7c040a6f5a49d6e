"""Which protocol answers at a port: a port that is right for EST is wrong for MQTT."""

import ssl
from contextlib import suppress

from fleet.est_client.transport import Deadline, connect

HTTP, MQTT = "HTTP", "MQTT"
TIMEOUT_SECONDS = 5.0
_NO_SUCH_LEVEL = b"\x10\x0c\x00\x04MQTT\x7f\x02\x00\x3c\x00\x00"
"""A CONNECT of a protocol level that does not exist: it is refused before a session is looked up."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_CONNACK = b"\x20"


def protocol_at(host: str, port: int, context: ssl.SSLContext) -> str:
    """HTTP or MQTT, whichever answers over TLS; "" if neither does. No session is begun or taken over."""
    context.set_alpn_protocols(["mqtt"])  # RFC 7301: one that selects it need not be asked further
    for asked in (_NO_SUCH_LEVEL, _REQUEST):
        with suppress(OSError), _handshake(host, port, context) as stream:
            if stream.selected_alpn_protocol() == "mqtt":
                return MQTT
            stream.sendall(asked)
            answer = stream.recv(64)
            if answer[:1] == _CONNACK:
                return MQTT
            if answer.startswith(b"HTTP/"):
                return HTTP
    return ""


def _handshake(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = connect(host, port, Deadline(TIMEOUT_SECONDS))
    raw.settimeout(TIMEOUT_SECONDS)
    try:
        return context.wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
