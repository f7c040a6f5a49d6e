"""Addresses in settings and on the command line: a listener's, the broker's, the database's."""

import enum
import ipaddress
import re

from msgspec import Struct

from fleet.config.database_url import parse_database_url

PORT_MAX = 65535


class Address(Struct, frozen=True):
    """Where a listener binds. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT` as an Address. Raises: ValueError: with a sentence for people."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})", text)
    if not found:
        raise ValueError(f"{text!r} is not HOST:PORT (IPv6 in brackets: [::1]:8443)")
    if int(found[3]) > PORT_MAX:
        raise ValueError(f"{text!r} is not HOST:PORT: a port is at most {PORT_MAX}")
    return Address(found[1] or found[2], int(found[3]))


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # RFC 4291, 2.5.5.2


def unmapped(address: str) -> str:
    """`address`, or the IPv4 one that a dual-stack socket shows as an IPv4-mapped one."""
    return address.removeprefix("::ffff:") if "." in address else address


def parse_network(text: str) -> Network:
    """An IP address or a network as one; of IPv4-mapped addresses, the IPv4 network, as peers' addresses are written.

    Raises: ValueError: with a sentence for people.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address, nor a network such as 192.0.2.0/24") from None
    if network.network_address != ipaddress.ip_interface(text).ip:
        raise ValueError(f"{text!r} has host bits set; the network is {network}")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(IPV4_MAPPED):
        low = int(network.network_address) & 0xFFFF_FFFF
        network = ipaddress.IPv4Network((low, network.prefixlen - IPV4_MAPPED.prefixlen))
    if not network.prefixlen:
        raise ValueError(f"{text!r} covers every address")
    return network


class LocalAddress(Struct, frozen=True):
    """Where a listener for programs of this machine binds: a Unix socket, or else a loopback address."""

    path: str = ""
    address: Address | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else str(self.address)


def parse_local_address(text: str) -> LocalAddress:
    """`unix:PATH` or `HOST:PORT` of a loopback address as a LocalAddress.

    Raises: ValueError: with a sentence for people.
    """
    if text.startswith("unix:") and text != "unix:":
        return LocalAddress(text.removeprefix("unix:"))
    try:
        address = parse_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not off, unix:PATH or HOST:PORT") from None
    if not is_loopback(address.host):
        raise ValueError(
            f"{text!r} can be reached from other machines, and this listener has no TLS: name a loopback address, or "
            "unix:PATH"
        )
    return LocalAddress(address=address)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, and cannot be reached from others. Of names, `localhost` alone (RFC 6761)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class BrokerKind(enum.StrEnum):
    AUTO = "auto"
    """mosquitto when it is installed, the embedded broker otherwise."""
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"
    ADDRESS = "mqtt"
    TLS = "mqtts"
    SOCKET = "unix"


class Broker(Struct, frozen=True):
    """The broker behind the gateway: our own, or an external one at an address or on a Unix socket."""

    kind: BrokerKind = BrokerKind.AUTO
    address: Address | None = None
    path: str = ""

    def __str__(self) -> str:
        match self.kind:
            case BrokerKind.ADDRESS | BrokerKind.TLS:
                return f"{self.kind}://{self.address}"
            case BrokerKind.SOCKET:
                return f"unix:{self.path}"
            case _:
                return self.kind


MQTT_PORT = 1883  # MQTT 5.0, 4.2: registered for MQTT without TLS
MQTTS_PORT = 8883  # with TLS


def parse_broker(text: str) -> Broker:
    """`auto`, `mosquitto`, `embedded`, `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]` or `unix:PATH` as a Broker.

    Raises: ValueError: with a sentence for people.
    """
    kind, _, rest = text.partition(":")
    if text in (BrokerKind.AUTO, BrokerKind.MOSQUITTO, BrokerKind.EMBEDDED):
        return Broker(BrokerKind(text))
    if kind == BrokerKind.SOCKET and rest:
        return Broker(BrokerKind.SOCKET, path=rest)
    if kind in (BrokerKind.ADDRESS, BrokerKind.TLS) and rest.startswith("//"):
        place, port = rest[2:].rstrip("/"), MQTTS_PORT if kind == BrokerKind.TLS else MQTT_PORT
        address = parse_address(place if re.search(r":[0-9]*$", place) else f"{place}:{port}")
        if address.port and not set(address.host) & set("@/?#"):
            return Broker(BrokerKind(kind), address)
    raise ValueError(f"{text!r} is not auto, mosquitto, embedded, mqtt://HOST[:PORT], mqtts://HOST[:PORT] or unix:PATH")


class ControlAddress(Struct, frozen=True):
    """Where a broker takes its administrator's connection, and whether with TLS."""

    address: Address
    is_tls: bool

    def __str__(self) -> str:
        return f"mqtts://{self.address}" if self.is_tls else f"mqtt://{self.address}"


def parse_control_address(text: str) -> ControlAddress:
    """`mqtts://HOST[:PORT]`, or `mqtt://HOST[:PORT]` of a loopback address, as a ControlAddress.

    Raises: ValueError: with a sentence for people.
    """
    scheme, separator, place = text.rstrip("/").partition("://")
    if separator and scheme in ("mqtt", "mqtts") and not set(place) & set("@/?#"):
        default = MQTTS_PORT if scheme == "mqtts" else MQTT_PORT
        address = parse_address(place if re.search(r":[0-9]+$", place) else f"{place}:{default}")
        if scheme == "mqtts" or is_loopback(address.host):
            return ControlAddress(address, scheme == "mqtts")
    raise ValueError(f"{text!r} is not off, mqtts://HOST[:PORT], nor mqtt://127.0.0.1[:PORT] of this machine")


class ApiAddress(Struct, frozen=True):
    """Where a broker's administration is, and which broker it is."""

    kind: str
    """One of API_BROKERS."""
    address: Address
    is_tls: bool

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.address}"

    def __str__(self) -> str:
        return f"{self.kind}+{self.url}"


API_BROKERS = ("rabbitmq", "emqx")


def parse_api_address(text: str) -> ApiAddress:
    """`KIND+https://HOST:PORT`, or `KIND+http://HOST:PORT` of a loopback address, as an ApiAddress.

    Raises: ValueError: with a sentence for people.
    """
    scheme, separator, place = text.rstrip("/").partition("://")
    kind, _, scheme = scheme.partition("+")
    if separator and kind in API_BROKERS and scheme in ("http", "https") and not set(place) & set("@/?#"):
        address = parse_address(place)
        if scheme == "https" or is_loopback(address.host):
            return ApiAddress(kind, address, scheme == "https")
    kinds = " or ".join(f"{kind}+https://HOST:PORT" for kind in API_BROKERS)
    raise ValueError(f"{text!r} is not off, {kinds}, nor either with http://127.0.0.1:PORT of this machine")


class Database(Struct, frozen=True):
    """Where the registry is: SQLite in the home; or PostgreSQL, at a URL or at one that a file of its own holds."""

    url: str = ""
    """Without a password."""
    file: str = ""

    def __str__(self) -> str:
        return self.url or (f"file:{self.file}" if self.file else "sqlite")


def parse_database(text: str) -> Database:
    """`sqlite`, `postgresql://USER@HOST[:PORT]/DATABASE` or `file:PATH` as a Database.

    Raises: ValueError: with a sentence for people, which never repeats a password.
    """
    if text == "sqlite":
        return Database()
    if text.startswith("file:") and text != "file:":
        return Database(file=text.removeprefix("file:"))
    if parse_database_url(text).has_password:
        raise ValueError(
            "holds a password. Leave it out: give it in PGPASSWORD or in ~/.pgpass, or put the whole URL into a file "
            "that only you can read and name that file: --database-file, or file:PATH in fleet.toml"
        )
    return Database(url=text)


def parse_presence_topic(text: str) -> str:
    """A topic, which may hold {id}. Raises: ValueError: with a sentence for people."""
    level = r"([A-Za-z0-9._-]+|\{id\})"
    if not re.fullmatch(rf"fleet/presence(/{level}){{1,8}}", text):
        raise ValueError(f'{text[:80]!r} is no topic beneath fleet/presence, such as "fleet/presence/{{id}}"')
    return text
