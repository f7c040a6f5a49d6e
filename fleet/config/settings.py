"""The settings of a home, as frozen values, and the functions that read each from `fleet.toml`."""

import enum
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import fields

from fleet.config.addresses import (
    Address,
    ApiAddress,
    Broker,
    ControlAddress,
    Database,
    LocalAddress,
    Network,
    parse_address,
    parse_api_address,
    parse_broker,
    parse_control_address,
    parse_database,
    parse_local_address,
    parse_network,
    parse_presence_topic,
)
from fleet.config.listeners import NAMES
from fleet.config.logs import LOG_FORMATS
from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX

DAYS_MAX = 36_500  # a century
SHARDS_MAX = 4096  # CRLs of one CA: each is signed again before its nextUpdate
REFERENCE_SIZE_MAX = 512  # of a Server Reference: some names of hosts
WORKERS_MAX = 256  # each takes 60 MB and a core when there is work
WORKERS_AUTO = "auto"


Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("must be a text in quotes, and not empty")
    return value


def _text_or_none(value: Any) -> str:
    return "" if value == "" else _text(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('must be a list of texts, such as ["localhost"]')
    return tuple(_text(item) for item in value)


def _origins(value: Any) -> tuple[str, ...]:
    pattern = r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"  # as browsers write it: RFC 6454, 6.2
    given = value if isinstance(value, list) else []
    wrong = [each for each in given if not isinstance(each, str) or not re.fullmatch(pattern, each)]
    if wrong or not isinstance(value, list):
        problem = 'must be a list of origins, such as ["https://app.example.com"]; [] for none'
        rule = 'is none: scheme, host and port alone, in lower case, no slash at the end, no "*"'
        raise ValueError(problem + "".join(f"; {str(each)[:80]!r} {rule}" for each in wrong[:1]))
    return tuple(value)


def _networks(value: Any) -> tuple[Network, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError('must be a list of IP addresses and networks, such as ["192.0.2.7", "10.0.0.0/24"]')
    return tuple(parse_network(each) for each in value)


def _some_of(choices: Sequence[str]) -> Reader:
    def read(value: Any) -> Any:
        unknown = [each for each in value if each not in choices] if isinstance(value, list) else []
        if unknown or not isinstance(value, list):
            raise ValueError(f"must be a list of {', '.join(choices)}" + "".join(f"; not {e!r}" for e in unknown[:1]))
        return tuple(value)

    return read


def _one_of(choices: Sequence[str]) -> Reader:
    shown = " or ".join(f'"{choice}"' for choice in choices)

    def read(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"must be {shown}")
        return value

    return read


def _reference(value: Any) -> str:
    if value == "":
        return ""
    if len(_text(value)) > REFERENCE_SIZE_MAX or not re.fullmatch(r"[!-~]+( [!-~]+)*", value):
        raise ValueError('must be hosts with a space between them, such as "other.example.com:8883", or empty')
    return str(value)


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _parsed_by(parse: Callable[[str], Any]) -> Reader:
    return lambda value: parse(_text(value))


OFF = "off"


def _off_or(parse: Callable[[str], Any]) -> Reader:
    return lambda value: None if value == OFF else parse(_text(value))


_address = _parsed_by(parse_address)


def _publish_url(value: Any) -> str:
    if value == "":
        return ""
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", _text(value)):
        raise ValueError('must be a URL such as "http://pki.example.com", without query, or empty')
    return str(value).rstrip("/")


EVERY_CA, OWN_CA, OPERATORS_CA, TENANT_CA = "all", "fleet", "operators", "tenant:"


def _authorities(value: Any) -> tuple[str, ...]:
    pattern = rf"{EVERY_CA}|{OWN_CA}|{OPERATORS_CA}|{TENANT_CA}[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}"
    if not isinstance(value, list) or not all(isinstance(each, str) and re.fullmatch(pattern, each) for each in value):
        raise ValueError('must be a list of CAs: "all", "fleet", "operators", "tenant:NAME"; [] for none')
    return tuple(value)


def _number_between(low: float, high: float, *, kinds: Any = int | float, kind: str = "a number") -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise ValueError(f"must be {kind} from {low} to {high}")
        return value

    return read


_count_between = partial(_number_between, kinds=int, kind="a whole number")


def parse_workers(text: str) -> int:
    """A number of workers, or `auto` (0) for one on each core. Raises: ValueError: with a sentence for people."""
    if text == WORKERS_AUTO:
        return 0
    if re.fullmatch(r"[0-9]{1,4}", text) and int(text) <= WORKERS_MAX:
        return int(text)
    raise ValueError(f'{text!r} is not a whole number from 0 to {WORKERS_MAX}, nor "{WORKERS_AUTO}"')


def _workers(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f'must be a whole number from 0 to {WORKERS_MAX}, or "{WORKERS_AUTO}"')
    return parse_workers(str(value))


class Reload(enum.Enum):
    """What puts a changed setting in force in a running server."""

    SIGHUP = enum.auto()
    SIGUSR2 = enum.auto()
    """A worker has it from its start, and nothing else has."""
    RESTART = enum.auto()


SIGHUP, SIGUSR2, RESTART = Reload


class Settings(Struct, frozen=True):
    """Everything that `fleet.toml` says: of each key its type, its table, the function that reads its value, what
    puts a change in force, and its name there where that is another.

    Times in seconds, sizes in bytes.
    """

    name: Annotated[str, "fleet", _text, RESTART] = "fleet"
    hosts: Annotated[tuple[str, ...], "fleet", _texts, SIGHUP] = ("localhost", "127.0.0.1", "::1")
    est: Annotated[Address, "listen", _address, RESTART] = Address("127.0.0.1", 8443)
    mqtt: Annotated[Address, "listen", _address, RESTART] = Address("127.0.0.1", 8883)
    http: Annotated[Address, "listen", _address, RESTART] = Address("127.0.0.1", 8444)
    publish: Annotated[Address | None, "publish", _off_or(parse_address), RESTART, "address"] = None
    """Plain HTTP, for relying parties; None: nothing is published there."""
    wss: Annotated[Address | None, "wss", _off_or(parse_address), RESTART, "address"] = None
    """MQTT over WebSocket; None: that listener is off."""
    wss_origins: Annotated[tuple[str, ...], "wss", _origins, SIGUSR2, "origins"] = ()
    """Of web pages that may connect."""
    proxy_trusted: Annotated[tuple[Network, ...], "proxy_protocol", _networks, SIGUSR2, "trusted"] = ()
    """Balancers: their connections begin with a PROXY header, and no other's."""
    proxy_listeners: Annotated[tuple[str, ...], "proxy_protocol", _some_of(NAMES), SIGUSR2, "listeners"] = (
        "est",
        "mqtt",
        "http",
        "wss",
    )
    database: Annotated[Database, "registry", _parsed_by(parse_database), RESTART] = Database()
    workers: Annotated[int, "serve", _workers, RESTART] = 1
    """Processes that share the listeners; 0: one for each core."""
    supervised: Annotated[bool, "serve", _yes_or_no, RESTART] = False
    """Whether a single one has a supervisor, too, which can replace it."""
    restart_drain_seconds: Annotated[float, "serve", _number_between(0, 3600), SIGHUP] = 5.0
    stop_drain_seconds: Annotated[float, "serve", _number_between(0, 3600), SIGHUP] = 0.0
    log_format: Annotated[str, "serve", _one_of(LOG_FORMATS), SIGHUP] = LOG_FORMATS[0]
    upstream: Annotated[Broker, "gateway", _parsed_by(parse_broker), RESTART] = Broker()
    upstream_ca: Annotated[str, "upstream", _text, SIGHUP, "ca"] = "system"
    upstream_certificate: Annotated[str, "upstream", _text_or_none, SIGHUP, "certificate"] = ""
    upstream_key: Annotated[str, "upstream", _text_or_none, SIGHUP, "key"] = ""
    upstream_user_properties: Annotated[bool, "upstream", _yes_or_no, SIGHUP, "user_properties"] = False
    upstream_proxy_v2: Annotated[bool, "upstream", _yes_or_no, SIGHUP, "proxy_v2"] = False
    upstream_refuse_dots: Annotated[bool, "upstream", _yes_or_no, SIGHUP, "refuse_dots"] = False
    upstream_password_file: Annotated[str, "upstream", _text_or_none, SIGHUP, "password_file"] = ""
    sessions_max: Annotated[int, "gateway", _count_between(1, 1_000_000), RESTART] = 9000
    durable: Annotated[bool, "gateway", _yes_or_no, RESTART] = False
    server_reference: Annotated[str, "gateway", _reference, SIGHUP] = ""
    """Where clients of MQTT 5.0 are sent when this server stops."""
    presence_events: Annotated[bool, "gateway", _yes_or_no, SIGHUP] = False
    presence_topic: Annotated[str | None, "gateway", _off_or(parse_presence_topic), SIGUSR2] = None
    """Where connects and disconnects are published at the broker; None: nowhere."""
    connect_size_max: Annotated[int, "mqtt", _count_between(1_024, 262_144), SIGHUP] = 131_072
    packet_size_max: Annotated[int, "mqtt", _count_between(524_288, PACKET_SIZE_MAX), RESTART] = 16_777_216
    filters_per_packet_max: Annotated[int, "mqtt", _count_between(1, 10_000), SIGHUP] = 1_000
    filters_per_device_max: Annotated[int, "mqtt", _count_between(1, FILTERS_PER_DEVICE_MAX), SIGHUP] = 1_000
    filter_bytes_per_device_max: Annotated[int, "mqtt", _count_between(64, 16_777_216), SIGHUP] = 65_536
    filter_levels_per_device_max: Annotated[int, "mqtt", _count_between(1, 100_000), SIGHUP] = 4_000
    in_flight_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864), SIGHUP] = 4_194_304
    in_flight_bytes_max: Annotated[int, "mqtt", _count_between(1_024, 134_217_728), SIGHUP] = 67_108_864
    queued_messages_per_device_max: Annotated[int, "mqtt", _count_between(1, 100_000), RESTART] = 2_000
    queued_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864), RESTART] = 4_194_304
    unacknowledged_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864), RESTART] = 4_194_304
    retained_messages_per_device_max: Annotated[int, "mqtt", _count_between(1, 1_000_000), SIGHUP] = 10_000
    retained_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 134_217_728), SIGHUP] = 8_388_608
    unread_bytes_per_device_max: Annotated[int, "mqtt", _count_between(65_536, 67_108_864), SIGHUP] = 8_388_608
    unread_bytes_max: Annotated[int, "mqtt", _count_between(1_048_576, 1_073_741_824), SIGHUP] = 134_217_728
    handshake_seconds_max: Annotated[float, "limits", _number_between(0.5, 120), SIGUSR2] = 10.0
    half_open_max: Annotated[int, "limits", _count_between(1, 100_000), SIGHUP] = 10_000
    half_open_per_address_max: Annotated[int, "limits", _count_between(1, 100_000), SIGHUP] = 10_000
    http_connections_max: Annotated[int, "limits", _count_between(1, 1_000_000), SIGHUP] = 2000
    http_connections_per_address_max: Annotated[int, "limits", _count_between(1, 1_000_000), SIGHUP] = 200
    connections_per_address_per_second: Annotated[float, "limits", _number_between(0, 1_000_000), SIGHUP] = 100.0
    requests_per_address_per_second: Annotated[float, "limits", _number_between(0, 1_000_000), SIGHUP] = 100.0
    requests_per_credential_per_second: Annotated[float, "limits", _number_between(0, 1_000_000), SIGHUP] = 20.0
    failures_per_credential_max: Annotated[int, "limits", _count_between(0, 1000), SIGHUP] = 5
    failure_backoff_seconds_max: Annotated[float, "limits", _number_between(1, 86_400), SIGHUP] = 300.0
    publish_url: Annotated[str, "publish", _publish_url, RESTART, "url"] = ""
    """Where relying parties fetch what is published; "": certificates and CRLs name no place."""
    publish_cdp: Annotated[tuple[str, ...], "publish", _authorities, RESTART, "cdp"] = (EVERY_CA,)
    """CAs whose certificates name their CRL, beneath `publish_url`."""
    publish_aia: Annotated[tuple[str, ...], "publish", _authorities, RESTART, "aia"] = (EVERY_CA,)
    """CAs whose certificates name the OCSP responder and the CA's certificate, likewise."""
    publish_connections_max: Annotated[int, "publish", _count_between(1, 1_000_000), SIGHUP, "connections_max"] = 10_000
    publish_connections_per_address_max: Annotated[
        int, "publish", _count_between(1, 1_000_000), SIGHUP, "connections_per_address_max"
    ] = 2000
    crl_max_delay: Annotated[float, "crl", _number_between(1, 3600), RESTART, "max_delay"] = 5.0
    crl_hours: Annotated[int, "crl", _count_between(1, 8760), RESTART, "hours"] = 24
    crl_shards: Annotated[int, "crl", _count_between(1, SHARDS_MAX), RESTART, "shards"] = 1
    crl_delta: Annotated[bool, "crl", _yes_or_no, RESTART, "delta"] = False
    events_days: Annotated[int, "retention", _count_between(0, DAYS_MAX), SIGHUP] = 90
    audit_days: Annotated[int, "retention", _count_between(0, DAYS_MAX), SIGHUP] = 0
    expired_credentials_days: Annotated[int, "retention", _count_between(0, DAYS_MAX), SIGHUP] = 365
    approval_requests_max: Annotated[int, "approval", _count_between(0, 100_000), SIGHUP] = 1000
    approval_per_model_max: Annotated[int, "approval", _count_between(0, 100_000), SIGHUP] = 500
    approval_per_address_max: Annotated[int, "approval", _count_between(0, 100_000), SIGHUP] = 50
    approval_days: Annotated[int, "approval", _count_between(1, 365), SIGHUP] = 7
    approval_stranger_days: Annotated[int, "approval", _count_between(1, 365), SIGHUP] = 1
    approval_ask_again_seconds: Annotated[int, "approval", _count_between(1, 86_400), SIGHUP] = 30
    dynsec_broker: Annotated[
        ControlAddress | None, "dynamic_security", _off_or(parse_control_address), RESTART, "broker"
    ] = None
    """None: no plugin follows the registry."""
    dynsec_user: Annotated[str, "dynamic_security", _text, RESTART, "user"] = "_fleet"
    dynsec_password_file: Annotated[str, "dynamic_security", _text, RESTART, "password_file"] = "dynsec.password"  # noqa: S105
    dynsec_ca: Annotated[str, "dynamic_security", _text, RESTART, "ca"] = "system"
    webhook_ca: Annotated[str, "webhook", _text, SIGUSR2] = "system"
    webhook_seconds_max: Annotated[float, "webhook", _number_between(0.1, 30), SIGUSR2] = 5.0
    webhook_at_once_max: Annotated[int, "webhook", _count_between(1, 10_000), SIGUSR2] = 64
    webhook_local: Annotated[bool, "webhook", _yes_or_no, SIGUSR2] = False
    forward_auth: Annotated[LocalAddress | None, "forward_auth", _off_or(parse_local_address), RESTART, "address"] = (
        None
    )
    """None: that listener is off."""
    forward_auth_secret_file: Annotated[str, "forward_auth", _text_or_none, SIGUSR2, "secret_file"] = ""
    forward_auth_group: Annotated[str, "forward_auth", _text_or_none, RESTART, "group"] = ""
    broker_auth: Annotated[LocalAddress | None, "broker_auth", _off_or(parse_local_address), RESTART, "address"] = None
    """None: that listener is off."""
    broker_auth_secret_file: Annotated[str, "broker_auth", _text_or_none, SIGUSR2, "secret_file"] = ""
    broker_auth_group: Annotated[str, "broker_auth", _text_or_none, RESTART, "group"] = ""
    rabbitmq_vhost: Annotated[str, "broker_auth", _text, SIGUSR2] = "/"
    broker_sessions: Annotated[ApiAddress | None, "broker_sessions", _off_or(parse_api_address), RESTART, "broker"] = (
        None
    )
    """None: sessions are ended in no broker but our own."""
    broker_sessions_password_file: Annotated[str, "broker_sessions", _text, RESTART, "password_file"] = (
        "broker.password"  # noqa: S105
    )
    broker_sessions_ca: Annotated[str, "broker_sessions", _text, RESTART, "ca"] = "system"


READERS: dict[str, dict[str, Reader]] = {}
"""Every table and key of fleet.toml, with the function that reads its value."""
FIELDS: dict[tuple[str, str], str] = {}
"""Table and key to the field of Settings."""
RELOADS: dict[str, Reload] = {}
"""By field of Settings."""
for _field in fields(Settings):
    _table, _reader, RELOADS[_field.name], *_key = _field.type.__metadata__
    READERS.setdefault(_table, {})[(*_key, _field.name)[0]] = _reader
    FIELDS[_table, (*_key, _field.name)[0]] = _field.name


def setting_name(field: str) -> str:
    """A field of Settings as SECTION.KEY of fleet.toml."""
    return next(f"{table}.{key}" for (table, key), name in FIELDS.items() if name == field)
