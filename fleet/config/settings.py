"""The settings of a home: `fleet.toml`, read once into frozen values.

A key that nobody knows, a value of the wrong type or out of range: each is an error that names the file, the line and
the key, and nothing starts. There are no silent defaults for a misspelt key.
"""

import difflib
import enum
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fleet.config.database_url import parse_database_url

DAYS_MAX = 36_500  # a century
SETTINGS_SIZE_MAX = 256 * 1024  # a settings file is a page or two; anything larger is a mistake
WORKERS_MAX = 256  # each takes 60 MB and a core when there is work
WORKERS_AUTO = "auto"


class SettingsError(Exception):
    """`fleet.toml` cannot be used. The message names the file, the line and the key."""

    def __init__(self, file: Path, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")
        self.file, self.line, self.problem = file, line, problem


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT` as an Address.

    Raises: ValueError: with a sentence for people.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s]+)):([0-9]{1,5})", text)
    if not found or int(found[3]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT (IPv6 in brackets: [::1]:8443)")
    return Address(found[1] or found[2], int(found[3]))


class BrokerKind(enum.StrEnum):
    AUTO = "auto"
    """mosquitto when it is installed, the embedded broker otherwise."""
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"
    ADDRESS = "mqtt"
    SOCKET = "unix"


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker behind the gateway: one of our own, or somebody else's at an address or on a Unix socket."""

    kind: BrokerKind = BrokerKind.AUTO
    address: Address | None = None
    path: str = ""

    def __str__(self) -> str:
        match self.kind:
            case BrokerKind.ADDRESS:
                return f"mqtt://{self.address}"
            case BrokerKind.SOCKET:
                return f"unix:{self.path}"
            case _:
                return self.kind


MQTT_PORT = 1883  # MQTT 5.0, 4.2: registered for MQTT without TLS


def parse_broker(text: str) -> Broker:
    """`auto`, `mosquitto`, `embedded`, `mqtt://HOST[:PORT]` or `unix:PATH` as a Broker.

    Raises: ValueError: with a sentence for people.
    """
    kind, _, rest = text.partition(":")
    if text in (BrokerKind.AUTO, BrokerKind.MOSQUITTO, BrokerKind.EMBEDDED):
        return Broker(BrokerKind(text))
    if kind == BrokerKind.SOCKET and rest:
        return Broker(BrokerKind.SOCKET, path=rest)
    if kind == BrokerKind.ADDRESS and rest.startswith("//"):
        place = rest[2:].rstrip("/")
        address = parse_address(place if re.search(r":[0-9]*$", place) else f"{place}:{MQTT_PORT}")
        if address.port and not set(address.host) & set("@/?#"):
            return Broker(BrokerKind.ADDRESS, address)
    raise ValueError(f"{text!r} is not auto, mosquitto, embedded, mqtt://HOST[:PORT] or unix:PATH")


@dataclass(frozen=True, slots=True)
class Database:
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
            "that only you can read and name that file"
        )
    return Database(url=text)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `fleet.toml` says. Times in seconds, sizes in bytes."""

    name: str = "fleet"
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    est: Address = Address("127.0.0.1", 8443)
    mqtt: Address = Address("127.0.0.1", 8883)
    http: Address = Address("127.0.0.1", 8444)
    database: Database = Database()
    workers: int = 1
    """Processes that share the listeners; 0 for as many as there are cores."""
    upstream: Broker = Broker()
    handshake_seconds_max: float = 10.0
    half_open_max: int = 2000
    half_open_per_address_max: int = 500
    http_connections_max: int = 2000
    http_connections_per_address_max: int = 200
    connections_per_address_per_second: float = 100.0
    requests_per_address_per_second: float = 100.0
    requests_per_credential_per_second: float = 20.0
    failures_per_credential_max: int = 5
    failure_backoff_seconds_max: float = 300.0
    sessions_max: int = 9000
    events_days: int = 90
    audit_days: int = 0
    expired_credentials_days: int = 365
    approval_requests_max: int = 1000
    approval_per_model_max: int = 500
    approval_per_address_max: int = 50
    approval_days: int = 7
    approval_ask_again_seconds: int = 30
    webhook_ca: str = "system"
    webhook_seconds_max: float = 5.0
    webhook_at_once_max: int = 64


Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("must be a text in quotes, and not empty")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('must be a list of texts, such as ["localhost"]')
    return tuple(_text(item) for item in value)


def _address(value: Any) -> Address:
    return parse_address(_text(value))


def _broker(value: Any) -> Broker:
    return parse_broker(_text(value))


def _database(value: Any) -> Database:
    return parse_database(_text(value))


def _number_between(low: float, high: float) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return value

    return read


def _count_between(low: int, high: int) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return read


def parse_workers(text: str) -> int:
    """A number of worker processes, or `auto` (0) for one on each core.

    Raises: ValueError: with a sentence for people.
    """
    if text == WORKERS_AUTO:
        return 0
    if re.fullmatch(r"[0-9]{1,4}", text) and int(text) <= WORKERS_MAX:
        return int(text)
    raise ValueError(f'{text!r} is not a whole number from 0 to {WORKERS_MAX}, nor "{WORKERS_AUTO}"')


def _workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'must be a whole number from 0 to {WORKERS_MAX}, or "{WORKERS_AUTO}"')
    return parse_workers(str(value))


READERS: dict[str, dict[str, Reader]] = {
    "fleet": {"name": _text, "hosts": _texts},
    "listen": {"est": _address, "mqtt": _address, "http": _address},
    "registry": {"database": _database},
    "serve": {"workers": _workers},
    "gateway": {"upstream": _broker, "sessions_max": _count_between(1, 1_000_000)},
    "limits": {
        "handshake_seconds_max": _number_between(0.5, 120),
        "half_open_max": _count_between(1, 100_000),
        "half_open_per_address_max": _count_between(1, 100_000),
        "http_connections_max": _count_between(1, 1_000_000),
        "http_connections_per_address_max": _count_between(1, 1_000_000),
        "connections_per_address_per_second": _number_between(0, 1_000_000),
        "requests_per_address_per_second": _number_between(0, 1_000_000),
        "requests_per_credential_per_second": _number_between(0, 1_000_000),
        "failures_per_credential_max": _count_between(0, 1000),
        "failure_backoff_seconds_max": _number_between(1, 86_400),
    },
    "retention": {
        "events_days": _count_between(0, DAYS_MAX),
        "audit_days": _count_between(0, DAYS_MAX),
        "expired_credentials_days": _count_between(0, DAYS_MAX),
    },
    "approval": {
        "approval_requests_max": _count_between(0, 100_000),
        "approval_per_model_max": _count_between(0, 100_000),
        "approval_per_address_max": _count_between(0, 100_000),
        "approval_days": _count_between(1, 365),
        "approval_ask_again_seconds": _count_between(1, 86_400),
    },
    "webhook": {
        "webhook_ca": _text,
        "webhook_seconds_max": _number_between(0.1, 30),
        "webhook_at_once_max": _count_between(1, 10_000),
    },
}
"""Every table and key of fleet.toml, with what reads its value. Key names are those of Settings."""

TEMPLATE = """\
# A fleet's home. Every key is shown with its value; change it and restart `fleet serve`.
# A key that is not known here, or a value out of range, keeps the server from starting.

[fleet]
# Stands in the subject of the fleet's CAs.
name = {name}
# Names and addresses that the server certificate answers to.
hosts = {hosts}

[listen]
# HOST:PORT of each listener; 0.0.0.0 or [::] for all interfaces.
est = {est}
mqtt = {mqtt}
http = {http}

[registry]
# "sqlite": registry.db in this folder. Or PostgreSQL, for several nodes: "postgresql://USER@HOST:PORT/DATABASE", with
# the password in PGPASSWORD or ~/.pgpass, or "file:PATH" of a file (mode 600) that holds the whole URL.
# FLEET_DATABASE in the environment goes before this.
database = {database}

[serve]
# Processes that share the listeners, one core each; 0 or "auto" for as many as there are cores. The limits below
# hold for each of them.
workers = {workers}

[gateway]
# The broker behind the gateway: "auto" (mosquitto when installed, otherwise the embedded one), "mosquitto",
# "embedded", "mqtt://HOST:PORT" or "unix:PATH".
upstream = {upstream}
# Live MQTT sessions at most; each takes two file descriptors.
sessions_max = {sessions_max}

[limits]
# A handshake that takes longer is cut.
handshake_seconds_max = {handshake_seconds_max}
# Handshakes under way at once: in all, and from one address.
half_open_max = {half_open_max}
half_open_per_address_max = {half_open_per_address_max}
# Open connections to each of the est and http listeners: in all, and from one address.
http_connections_max = {http_connections_max}
http_connections_per_address_max = {http_connections_per_address_max}
# New connections a second from one address, to each listener; ten times as many may come at once. 0: no limit, here
# and below. A fleet that comes back behind one address after an outage takes so long.
connections_per_address_per_second = {connections_per_address_per_second}
# Requests a second to each of est and http: from one address, and with one certificate or token. Beyond: 429.
requests_per_address_per_second = {requests_per_address_per_second}
requests_per_credential_per_second = {requests_per_credential_per_second}
# Refusals in a row (401, 403) of one certificate or token before it must wait: a second, then twice as long each time.
failures_per_credential_max = {failures_per_credential_max}
failure_backoff_seconds_max = {failure_backoff_seconds_max}

[retention]
# Days after which the registry lets go of what it no longer needs: a file in archive/ holds it then. 0: never.
# Events: gateways have heard them long since. Of several nodes on one database, one archives for all of them.
events_days = {events_days}
# Audit rows, once they are sealed: `fleet retention check` verifies them in the archive too.
audit_days = {audit_days}
# Certificates, counted from their end. A device in service keeps its last one.
expired_credentials_days = {expired_credentials_days}

[approval]
# Requests for a first certificate that may wait for an operator, where a model allows that: in all, for one model,
# and from one address (of IPv6, one /64).
approval_requests_max = {approval_requests_max}
approval_per_model_max = {approval_per_model_max}
approval_per_address_max = {approval_per_address_max}
# Days after which a request is forgotten; they begin anew with the operator's decision.
approval_days = {approval_days}
# How soon a waiting device asks again at first; it grows with the age of the request, to 15 minutes.
approval_ask_again_seconds = {approval_ask_again_seconds}

[webhook]
# By which CAs the models' webhooks are known: "system", or a PEM file, by its path from this folder.
webhook_ca = {webhook_ca}
# A webhook that takes longer has not said yes.
webhook_seconds_max = {webhook_seconds_max}
# Questions to one URL under way at once, of each worker; beyond that, devices are told to come again.
webhook_at_once_max = {webhook_at_once_max}
"""


def render(settings: Settings) -> str:
    """The commented `fleet.toml` that says these settings, every one of them."""
    return TEMPLATE.format(**{each.name: _toml(getattr(settings, each.name)) for each in fields(settings)})


def _toml(value: object) -> str:
    match value:
        case bool() | int() | float():
            return str(value).lower()
        case tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_settings(file: Path) -> Settings:
    """The settings in `file`.

    Raises: SettingsError.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsError(file, 0, f"cannot be read: {error.strerror}") from error
    if len(data) > SETTINGS_SIZE_MAX:
        raise SettingsError(file, 0, f"is larger than {SETTINGS_SIZE_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(file, data.count(b"\n", 0, error.start) + 1, "is not UTF-8") from error
    return parse_settings(text, file)


def parse_settings(text: str, file: Path) -> Settings:
    """The settings in `text`, which came from `file`.

    Raises: SettingsError.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise SettingsError(file, line, f"is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for table, keys in document.items():
        if table not in READERS or not isinstance(keys, dict):
            raise SettingsError(file, _line_of(text, table, None), f"{table!r} is not a section{_near(table, READERS)}")
        for key, value in keys.items():
            values[key] = _read_value(file, text, table, key, value)
    return Settings(**values)


def _read_value(file: Path, text: str, table: str, key: str, value: Any) -> Any:
    line = _line_of(text, table, key)
    if key not in READERS[table]:
        raise SettingsError(file, line, f"{table}.{key} is not a setting{_near(key, READERS[table])}")
    try:
        return READERS[table][key](value)
    except ValueError as error:
        raise SettingsError(file, line, f"{table}.{key} {error}") from error


def _near(word: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _line_of(text: str, table: str, key: str | None) -> int:
    """Where `table` or its `key` stands; tomllib does not tell."""
    inside, table_line = False, 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*\"?([^\]\"]+?)\"?\s*\]", line)
        if header:
            inside = header[1] == table
            table_line = number if inside else table_line
        elif key is not None and inside and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
        elif not inside and re.match(rf"\s*\"?{re.escape(table)}\"?\s*[.=]", line):
            table_line = number
    return table_line
