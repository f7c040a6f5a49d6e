"""The settings of a home: `fleet.toml`, read once into frozen values.

An unknown key, a value of the wrong type or out of range is an error that names the file, the line and the key, and
the server does not start. A misspelled key never falls back to a default.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import fields

from fleet.config.addresses import (
    Address,
    Broker,
    ControlAddress,
    Database,
    LocalAddress,
    parse_address,
    parse_broker,
    parse_control_address,
    parse_database,
    parse_local_address,
)
from fleet.config.logs import LOG_FORMATS
from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX

DAYS_MAX = 36_500  # a century
SHARDS_MAX = 4096  # CRLs of one CA: each is signed again before its nextUpdate
SETTINGS_SIZE_MAX = 256 * 1024  # a settings file is a page or two; anything larger is a mistake
WORKERS_MAX = 256  # each takes 60 MB and a core when there is work
WORKERS_AUTO = "auto"


class SettingsError(Exception):
    """`fleet.toml` cannot be used. The message names the file, the line and the key."""

    def __init__(self, file: Path, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")
        self.file, self.line, self.problem = file, line, problem


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


def _one_of(choices: Sequence[str]) -> Reader:
    shown = " or ".join(f'"{choice}"' for choice in choices)

    def read(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"must be {shown}")
        return value

    return read


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


class Settings(Struct, frozen=True):
    """Everything that `fleet.toml` says: of each key its type, its table, the function that reads its value, and its
    name there where that is another.

    Times in seconds, sizes in bytes.
    """

    name: Annotated[str, "fleet", _text] = "fleet"
    hosts: Annotated[tuple[str, ...], "fleet", _texts] = ("localhost", "127.0.0.1", "::1")
    est: Annotated[Address, "listen", _address] = Address("127.0.0.1", 8443)
    mqtt: Annotated[Address, "listen", _address] = Address("127.0.0.1", 8883)
    http: Annotated[Address, "listen", _address] = Address("127.0.0.1", 8444)
    publish: Annotated[Address | None, "publish", _off_or(parse_address), "address"] = None
    """Plain HTTP, for relying parties; None: nothing is published there."""
    database: Annotated[Database, "registry", _parsed_by(parse_database)] = Database()
    workers: Annotated[int, "serve", _workers] = 1
    """Processes that share the listeners; 0: one for each core."""
    log_format: Annotated[str, "serve", _one_of(LOG_FORMATS)] = LOG_FORMATS[0]
    upstream: Annotated[Broker, "gateway", _parsed_by(parse_broker)] = Broker()
    sessions_max: Annotated[int, "gateway", _count_between(1, 1_000_000)] = 9000
    durable: Annotated[bool, "gateway", _yes_or_no] = False
    connect_size_max: Annotated[int, "mqtt", _count_between(1_024, 262_144)] = 131_072
    packet_size_max: Annotated[int, "mqtt", _count_between(524_288, PACKET_SIZE_MAX)] = 16_777_216
    filters_per_packet_max: Annotated[int, "mqtt", _count_between(1, 10_000)] = 1_000
    filters_per_device_max: Annotated[int, "mqtt", _count_between(1, FILTERS_PER_DEVICE_MAX)] = 1_000
    filter_bytes_per_device_max: Annotated[int, "mqtt", _count_between(64, 16_777_216)] = 65_536
    filter_levels_per_device_max: Annotated[int, "mqtt", _count_between(1, 100_000)] = 4_000
    in_flight_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864)] = 4_194_304
    in_flight_bytes_max: Annotated[int, "mqtt", _count_between(1_024, 134_217_728)] = 67_108_864
    queued_messages_per_device_max: Annotated[int, "mqtt", _count_between(1, 100_000)] = 2_000
    queued_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864)] = 16_777_216
    unacknowledged_bytes_per_device_max: Annotated[int, "mqtt", _count_between(1_024, 67_108_864)] = 16_777_216
    handshake_seconds_max: Annotated[float, "limits", _number_between(0.5, 120)] = 10.0
    half_open_max: Annotated[int, "limits", _count_between(1, 100_000)] = 10_000
    half_open_per_address_max: Annotated[int, "limits", _count_between(1, 100_000)] = 10_000
    http_connections_max: Annotated[int, "limits", _count_between(1, 1_000_000)] = 2000
    http_connections_per_address_max: Annotated[int, "limits", _count_between(1, 1_000_000)] = 200
    connections_per_address_per_second: Annotated[float, "limits", _number_between(0, 1_000_000)] = 100.0
    requests_per_address_per_second: Annotated[float, "limits", _number_between(0, 1_000_000)] = 100.0
    requests_per_credential_per_second: Annotated[float, "limits", _number_between(0, 1_000_000)] = 20.0
    failures_per_credential_max: Annotated[int, "limits", _count_between(0, 1000)] = 5
    failure_backoff_seconds_max: Annotated[float, "limits", _number_between(1, 86_400)] = 300.0
    publish_url: Annotated[str, "publish", _publish_url, "url"] = ""
    """Where relying parties fetch what is published; "": certificates and CRLs name no place."""
    publish_cdp: Annotated[tuple[str, ...], "publish", _authorities, "cdp"] = (EVERY_CA,)
    """CAs whose certificates name their CRL, beneath `publish_url`."""
    publish_aia: Annotated[tuple[str, ...], "publish", _authorities, "aia"] = (EVERY_CA,)
    """CAs whose certificates name the OCSP responder and the CA's certificate, likewise."""
    crl_max_delay: Annotated[float, "crl", _number_between(1, 3600), "max_delay"] = 5.0
    crl_hours: Annotated[int, "crl", _count_between(1, 8760), "hours"] = 24
    crl_shards: Annotated[int, "crl", _count_between(1, SHARDS_MAX), "shards"] = 1
    crl_delta: Annotated[bool, "crl", _yes_or_no, "delta"] = False
    events_days: Annotated[int, "retention", _count_between(0, DAYS_MAX)] = 90
    audit_days: Annotated[int, "retention", _count_between(0, DAYS_MAX)] = 0
    expired_credentials_days: Annotated[int, "retention", _count_between(0, DAYS_MAX)] = 365
    approval_requests_max: Annotated[int, "approval", _count_between(0, 100_000)] = 1000
    approval_per_model_max: Annotated[int, "approval", _count_between(0, 100_000)] = 500
    approval_per_address_max: Annotated[int, "approval", _count_between(0, 100_000)] = 50
    approval_days: Annotated[int, "approval", _count_between(1, 365)] = 7
    approval_stranger_days: Annotated[int, "approval", _count_between(1, 365)] = 1
    approval_ask_again_seconds: Annotated[int, "approval", _count_between(1, 86_400)] = 30
    dynsec_broker: Annotated[ControlAddress | None, "dynamic_security", _off_or(parse_control_address), "broker"] = None
    """None: no plugin follows the registry."""
    dynsec_user: Annotated[str, "dynamic_security", _text, "user"] = "_fleet"
    dynsec_password_file: Annotated[str, "dynamic_security", _text, "password_file"] = "dynsec.password"  # noqa: S105
    dynsec_ca: Annotated[str, "dynamic_security", _text, "ca"] = "system"
    webhook_ca: Annotated[str, "webhook", _text] = "system"
    webhook_seconds_max: Annotated[float, "webhook", _number_between(0.1, 30)] = 5.0
    webhook_at_once_max: Annotated[int, "webhook", _count_between(1, 10_000)] = 64
    webhook_local: Annotated[bool, "webhook", _yes_or_no] = False
    forward_auth: Annotated[LocalAddress | None, "forward_auth", _off_or(parse_local_address), "address"] = None
    """None: that listener is off."""
    forward_auth_secret_file: Annotated[str, "forward_auth", _text_or_none, "secret_file"] = ""
    forward_auth_group: Annotated[str, "forward_auth", _text_or_none, "group"] = ""


READERS: dict[str, dict[str, Reader]] = {}
"""Every table and key of fleet.toml, with the function that reads its value."""
_FIELDS: dict[tuple[str, str], str] = {}
"""Table and key to the field of Settings."""
for _field in fields(Settings):
    _table, _reader, *_key = _field.type.__metadata__
    READERS.setdefault(_table, {})[(*_key, _field.name)[0]] = _reader
    _FIELDS[_table, (*_key, _field.name)[0]] = _field.name


def read_settings(file: Path) -> Settings:
    """The settings in `file`. Raises: SettingsError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsError(file, 0, f"cannot be read: {error.strerror}") from error
    if len(data) > SETTINGS_SIZE_MAX:
        raise SettingsError(file, 0, f"is larger than {SETTINGS_SIZE_MAX} bytes")
    try:
        text = data.decode("utf-8-sig")  # an editor's byte order mark aside
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SettingsError(file, 1, "is UTF-16; save it as UTF-8") from error
        raise SettingsError(file, data.count(b"\n", 0, error.start) + 1, "is not UTF-8") from error
    return parse_settings(text, file)


def parse_settings(text: str, file: Path) -> Settings:
    """The settings in `text`, which came from `file`. Raises: SettingsError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise SettingsError(file, line, f"is not TOML: {error}") from error
    if not text.strip():
        raise SettingsError(file, 1, "is empty: `fleet init` writes one with every setting")
    values: dict[str, Any] = {}
    for table, keys in document.items():
        if table not in READERS or not isinstance(keys, dict):
            raise SettingsError(file, _line_of(text, table, None), f"{table!r} is not a section{_near(table, READERS)}")
        for key, value in keys.items():
            values[_FIELDS[table, key]] = _read_value(file, text, table, key, value)
    settings = Settings(**values)
    _check_forward_auth(file, text, settings)
    return settings


def _check_forward_auth(file: Path, text: str, settings: Settings) -> None:
    """On a TCP port every user of the machine could ask in the proxy's place. Raises: SettingsError."""
    if settings.forward_auth is None or settings.forward_auth.address is None:
        return
    if not settings.forward_auth_secret_file:
        problem = "forward_auth.address is a TCP port: it needs forward_auth.secret_file"
        raise SettingsError(file, _line_of(text, "forward_auth", "address"), problem)
    if settings.forward_auth_group:
        problem = "forward_auth.group is for a Unix socket, and forward_auth.address is a TCP port"
        raise SettingsError(file, _line_of(text, "forward_auth", "group"), problem)


def _read_value(file: Path, text: str, table: str, key: str, value: Any) -> Any:
    if key not in READERS[table]:
        problem = f"{table}.{key} is not a setting{_near(key, READERS[table])}"
        raise SettingsError(file, _line_of(text, table, key), problem)
    try:
        return READERS[table][key](value)
    except ValueError as error:
        raise SettingsError(file, _line_of(text, table, key), f"{table}.{key} {error}") from error


def _near(word: str, known: dict[str, Any]) -> str:
    import difflib  # for the hint alone

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _line_of(text: str, table: str, key: str | None) -> int:
    """The line of `table` or of its `key`, which tomllib does not report."""
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
