"""Addresses of MQTT servers: `HOST:PORT`, `mqtts://HOST:PORT`, or `wss://HOST:PORT/PATH` for MQTT over WebSocket."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from fleet.est_client.arguments import parse_host_port
from fleet.est_client.errors import BadConfig

SERVERS_MAX = 8
WSS_PORT_DEFAULT = 443


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server; TLS always."""

    host: str
    port: int
    path: str = ""
    """Of the WebSocket; "" for MQTT without one."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"wss://{host}:{self.port}{self.path}" if self.path else f"{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """The server at `text`; IPv6 in brackets. Raises: BadConfig."""
    if "://" in text and not text.startswith(("mqtts://", "wss://")):
        advice = "Write it as HOST:PORT, or as wss://HOST:PORT/PATH."
        raise BadConfig(f"{text[:80]!r} is not the address of an MQTT server.", advice)
    if not text.startswith("wss://"):
        return Endpoint(*parse_host_port(text))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or WSS_PORT_DEFAULT
        (host + parts.path).encode("ascii")
    except ValueError:
        host, port = "", 0
    if not host or parts.username or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise BadConfig(f"{text[:80]!r} is not the address of an MQTT server.", "Write it as wss://HOST:PORT/PATH.")
    return Endpoint(host, port, parts.path or "/")
