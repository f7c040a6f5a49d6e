"""The settings of agent.toml, one row each: what the parser, a new home's file, the page and SIGHUP go by.

`python -m device_agent.config.settings` prints the page's table. [apps] and the lists of tables, [[hook]] and
[[apps.client]], have rules of their own: hooks.py, apps.py.
"""

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from device_agent.config.endpoints import SERVERS_MAX, parse_endpoint
from device_agent.store.key_store import FILE, KEY_STORES, openssl_value, token_uri
from fleet.est_client.arguments import MQTT_PORT_DEFAULT, check_device_id, check_host, check_printable
from fleet.est_client.errors import BadConfig
from fleet.est_client.server_checks import parse_pin


class Reload(enum.StrEnum):
    """What a change of a setting takes to be in force."""

    SIGNAL = "HUP"
    RECONNECT = "HUP, reconnects"
    RESTART = "restart"


class Values(Protocol):
    """What a setting can be."""

    @property
    def shown(self) -> str:
        """For the page."""

    def read(self, value: Any) -> Any:
        """The value in use. Raises: ValueError: "must be ..."; BadConfig."""


@dataclass(frozen=True, slots=True)
class Number:
    least: float
    most: float
    unit: str = ""
    is_whole: bool = False

    @property
    def shown(self) -> str:
        return f"{'whole ' if self.is_whole else ''}number from {self.least} to {self.most} {self.unit}".rstrip()

    def read(self, value: Any) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError(f"must be a number from {self.least} to {self.most}")
        if self.is_whole and value != int(value):
            raise ValueError("must be a whole number")
        return int(value) if self.is_whole else float(value)


@dataclass(frozen=True, slots=True)
class Text:
    check: Callable[[str], Any] = str
    shown: str = "text"

    def read(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        check_printable(value, "The text")
        return self.check(value) if value else value


@dataclass(frozen=True, slots=True)
class Texts:
    check: Callable[[str], Any]
    shown: str

    def read(self, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(value) > SERVERS_MAX:
            raise ValueError(f"must be a list of at most {SERVERS_MAX} strings")
        return tuple(self.check(each) for each in value)


@dataclass(frozen=True, slots=True)
class Flag:
    shown: str = "true or false"

    def read(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    choices: tuple[str, ...]

    @property
    def shown(self) -> str:
        return " or ".join(json.dumps(each) for each in self.choices)

    def read(self, value: Any) -> Any:
        if value not in self.choices:
            raise ValueError(f"must be {self.shown}")
        return value


def https_url(url: str) -> str:
    """`url` itself. The rest of RFC 7030, 3.2.2, is checked where it is used: that module is not light."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not url.isprintable() or " " in url:
        raise BadConfig(f"{url[:80]!r} is not an EST server's URL.", "Write it as https://HOST:PORT.")
    return url


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    """Section and key."""
    field: str
    """Of AgentConfig; after a dot, of its member."""
    values: Values
    default: Any
    help: str
    reload: Reload = Reload.SIGNAL
    is_required: bool = False
    example: str = ""
    """A new home's file has it in a comment, with this value, unless it is given one."""

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[2]


DROPS = ("newest", "oldest")
DAY = 86400
_RETRY = Number(0.01, DAY, "seconds")

SETTINGS = (
    Setting("device_id", "device_id", Text(check_device_id, "device id"), "", "the device's id in the fleet's registry",
            Reload.RESTART, is_required=True),
    Setting("hardware_serial", "hardware_serial", Text(), "", "serialNumber of the certificate's subject, if any"),
    Setting("ca_file", "ca_file", Text(shown="path"), "ca.pem", "trust anchors: beside this file, or an absolute path"),
    Setting("key.store", "key_store.kind", OneOf(KEY_STORES), FILE, "of private keys, for as long as it is enrolled",
            Reload.RESTART),
    Setting("key.tcti", "key_store.tcti", Text(openssl_value), "", "how the TPM is reached, as tpm2-tss names it",
            Reload.RESTART, example='"device:/dev/tpmrm0"'),
    Setting("key.uri", "key_store.uri", Text(token_uri, "PKCS#11 URI"), "", "the token (RFC 7512)", Reload.RESTART,
            example='"pkcs11:token=device?pin-source=file:/etc/device.pin"'),
    Setting("key.module", "key_store.module", Text(openssl_value, "path"), "", "the token's PKCS#11 module",
            Reload.RESTART, example='"/usr/lib/softhsm/libsofthsm2.so"'),
    Setting("est.url", "est_url", Text(https_url, "https URL"), "", "the EST server", is_required=True),
    Setting("est.servers", "est_others", Texts(https_url, "list of https URLs"), (),
            "tried in this order when `url` cannot be reached", example='["https://est2.example:8443"]'),
    Setting("mqtt.host", "mqtt_host", Text(check_host, "host name or address"), "",
            "verified against the server certificate's subjectAltName", Reload.RECONNECT),
    Setting("mqtt.port", "mqtt_port", Number(1, 65535, is_whole=True), MQTT_PORT_DEFAULT, "of `host`",
            Reload.RECONNECT),
    Setting("mqtt.servers", "mqtt_others", Texts(parse_endpoint, "list of HOST:PORT or wss://HOST/PATH"), (),
            "tried in this order when `host` cannot be reached", Reload.RECONNECT,
            example='["mqtt2.example:8883", "wss://mqtt.example:443/mqtt"]'),
    Setting("mqtt.keepalive_seconds", "keepalive_seconds", Number(5, 3600, "seconds", True), 60,
            "between two packets of an idle connection", Reload.RECONNECT),
    Setting("mqtt.session_expiry_seconds", "session_expiry_seconds", Number(0, 0xFFFFFFFE, "seconds", True), DAY,
            "how long the server keeps our session while we are offline", Reload.RECONNECT),
    Setting("trust.pins", "pins", Texts(parse_pin, "list of sha256:HEX"), (),
            "keys of servers or trust anchors (SHA-256 of SubjectPublicKeyInfo)", Reload.RECONNECT,
            example='["sha256:..."]'),
    Setting("fleet.managed", "managed", Flag(), True,
            "whether the fleet's commands are taken: renew, report, trust-update, log-level", Reload.RESTART,
            example="false"),
    Setting("renewal.at_fraction", "renew_at_fraction", Number(0.05, 0.95), 0.667,
            "of the certificate's lifetime; plus a random part of a twelfth"),
    Setting("retry.base_seconds", "retry_base_seconds", Number(0.01, 3600, "seconds"), 1.0, "the first delay's bound"),
    Setting("retry.cap_seconds", "retry_cap_seconds", _RETRY, 120.0, "the last delays' bound"),
    Setting("retry.refused_seconds", "refused_retry_seconds", _RETRY, 60.0, "minimum delay after a refusal"),
    Setting("outbox.messages_max", "outbox_messages_max", Number(1, 1_000_000, "messages", True), 1000,
            "queued while offline, if [spool] is off; when full, `send` is refused", Reload.RESTART),
    Setting("spool.enabled", "spool.enabled", Flag(), False, "accepted messages survive a restart and a power loss",
            Reload.RESTART),
    Setting("spool.bytes_max", "spool.bytes_max", Number(1024 * 1024, 2**36, "bytes", True), 16 * 1024 * 1024,
            "of the messages that wait", Reload.RESTART),
    Setting("spool.age_max_seconds", "spool.age_max_seconds", Number(1, 10 * 365 * DAY, "seconds"), 7 * DAY,
            "older messages are dropped", Reload.RESTART),
    Setting("spool.drop", "spool.drop", OneOf(DROPS), DROPS[0], "what gives way when it is full", Reload.RESTART),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}

_SECTIONS = {
    "retry": "full jitter: delays are drawn from [0, min(cap, base * 2 ** failures))",
    "spool": "spool.db, beside this file",
}
_HEAD = """\
# Configuration of one device. Beside this file: ca.pem (trust anchors), slot-a and slot-b (key and certificate,
# current and next), current (symbolic link to the slot in use).
"""
_TABLES = """
# [apps]                         # other users of this machine, beside the owner of this file and root
# group = "sensors"              # may open agent.sock
# [[apps.client]]                # what is not listed is denied
# user = "camera"
# publish = ["devices/{id}/up/camera/#"]
# subscribe = ["devices/{id}/down/camera/#"]

# [[hook]]                       # after each new certificate: copies for other programs, and a command
# name = "nginx"
# run = ["systemctl", "reload", "nginx"]
# [[hook.copy]]
# content = "pair"               # certificate, issuers, chain, key, pair, anchors
# to = "/etc/nginx/tls/device.pem"
# group = "www-data"
# mode = "0640"
"""


def rendered(given: dict[str, Any]) -> str:
    """agent.toml of a new home: `given` by name, all others at their defaults."""
    lines, section = [], ""
    for setting in SETTINGS:
        named = setting.name in given
        commented = "# " * bool(setting.example and not named)
        if setting.section != section:
            section = setting.section
            whole = any(each.section == section and (not each.example or each.name in given) for each in SETTINGS)
            note = _SECTIONS.get(section, "")
            lines += ["", _with_note(f"{'' if whole else '# '}[{section}]", note)]
        value = setting.example if commented else json.dumps(given.get(setting.name, setting.default))
        lines.append(_with_note(f"{commented}{setting.key} = {value}", setting.help))
    return _HEAD + "\n".join(lines) + "\n" + _TABLES


def _with_note(text: str, note: str) -> str:
    return f"{text:<32} # {note}" if note else text


def table() -> str:
    """All settings, as the page shows them."""
    lines = ["| setting | values | default | takes effect by | |", "| --- | --- | --- | --- | --- |"]
    for each in SETTINGS:
        default = "required" if each.is_required else f"`{json.dumps(each.default)}`"
        lines.append(f"| `{each.name}` | {each.values.shown} | {default} | {each.reload} | {each.help} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
