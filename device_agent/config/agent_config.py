"""agent.toml, the configuration of one device: read once into a frozen value; errors name the key."""

import json
import os
import shlex
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from device_agent.config.apps import NO_APPS, AppsConfig, read_apps
from device_agent.config.endpoints import SERVERS_MAX, Endpoint, parse_endpoint
from device_agent.config.hooks import Hook, read_hooks
from device_agent.config.spool import NO_SPOOL, SpoolConfig, read_spool
from device_agent.store.atomic_files import must_be_ours, opened_file, others_may_write, write_atomically
from fleet.est_client.arguments import MQTT_PORT_DEFAULT, check_device_id, check_host, check_printable
from fleet.est_client.errors import BadConfig
from fleet.est_client.server_checks import parse_pin
from fleet.wire.errors import Malformed
from fleet.wire.text import without_mark

FILE_NAME = "agent.toml"
CA_NAME = "ca.pem"
FILE_SIZE_MAX = 64 * 1024  # bytes

_NUMBERS = {
    # key: (default, least, most)
    "mqtt.keepalive_seconds": (60, 5, 3600),
    "mqtt.session_expiry_seconds": (86400, 0, 0xFFFFFFFE),
    "renewal.at_fraction": (0.667, 0.05, 0.95),
    "retry.base_seconds": (1.0, 0.01, 3600),
    "retry.cap_seconds": (120.0, 0.01, 86400),
    "retry.refused_seconds": (60.0, 0.01, 86400),
    "outbox.messages_max": (1000, 1, 1_000_000),
}
_STRINGS = {"device_id", "hardware_serial", "est.url", "mqtt.host", "ca_file"}
_LISTS = {"est.servers", "mqtt.servers", "trust.pins"}
_MANAGED = "fleet.managed"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    home: Path
    device_id: str
    hardware_serial: str
    est_url: str
    mqtt_host: str
    mqtt_port: int
    ca_file: Path
    keepalive_seconds: int
    session_expiry_seconds: int
    renew_at_fraction: float
    """Share of a certificate's lifetime after which its renewal window opens."""
    retry_base_seconds: float
    retry_cap_seconds: float
    refused_retry_seconds: float
    """Minimum delay after a refusal by the server."""
    outbox_messages_max: int
    hooks: tuple[Hook, ...] = ()
    apps: AppsConfig = NO_APPS
    spool: SpoolConfig = NO_SPOOL
    est_others: tuple[str, ...] = ()
    """URLs of EST servers that are tried after `est_url`, in this order."""
    mqtt_others: tuple[Endpoint, ...] = ()
    pins: tuple[str, ...] = ()
    """Keys of servers or trust anchors, one of which a server's chain must have; () for any that verifies."""
    managed: bool = True
    """Whether the agent takes the fleet's commands (`device_agent.managed`)."""

    @property
    def mqtt_servers(self) -> tuple[Endpoint, ...]:
        """The MQTT servers, in the order in which they are tried."""
        return (Endpoint(self.mqtt_host, self.mqtt_port), *self.mqtt_others) if self.mqtt_host else self.mqtt_others

    @property
    def est_urls(self) -> tuple[str, ...]:
        """The EST servers, in the order in which they are tried."""
        return (self.est_url, *self.est_others)


@dataclass(frozen=True, slots=True)
class NewHome:
    """What a new home is given; all other settings start at their defaults."""

    device_id: str
    est_url: str
    mqtt_host: str
    mqtt_port: int
    ca_pem: bytes
    hardware_serial: str = ""
    spool: bool = False
    mqtt_path: str = ""
    """Of a WebSocket; "" for MQTT without one."""


def must_be_free(home: Path) -> None:
    """Refuse a folder with files of others: `reset` erases all that is in a home. What an init or a reset that was cut
    off leaves is none. Raises: BadConfig. OSError.
    """
    ours = {CA_NAME, f".{CA_NAME}.new", f".{FILE_NAME}.new", "lost+found"}
    names = sorted(each.name for each in home.iterdir()) if home.is_dir() and not (home / FILE_NAME).exists() else []
    if foreign := next((name for name in names if name not in ours and not name.endswith(".lock")), ""):
        raise BadConfig(f"{home} is not empty: it has {foreign!r}.", "A home holds one device, and nothing else.")


def write_config(home: Path, new: NewHome) -> Path:
    """Create `home` with ca.pem and agent.toml, and return the latter's path. agent.toml is written last: a home that
    has one is complete.

    Raises: BadConfig if the home has one already; nothing in it is changed then. OSError, as when others own the
    folder or may write into it.
    """
    path = home / FILE_NAME
    if path.exists():
        raise BadConfig(f"{home} is already a device's home.", "Choose another --home, or use the existing one.")
    check_device_id(new.device_id)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    must_be_ours(home)
    write_atomically(home / CA_NAME, new.ca_pem)
    text = _TEMPLATE.format(
        device_id=json.dumps(new.device_id),
        hardware_serial=json.dumps(new.hardware_serial),
        ca_file=json.dumps(CA_NAME),
        est_url=json.dumps(new.est_url),
        host=json.dumps("" if new.mqtt_path else new.mqtt_host),
        port=MQTT_PORT_DEFAULT if new.mqtt_path else new.mqtt_port,
        mqtt_servers=_servers_line(Endpoint(new.mqtt_host, new.mqtt_port, new.mqtt_path)),
        spool=NO_SPOOL,
        spool_enabled=json.dumps(new.spool),
        **{key.replace(".", "_"): value[0] for key, value in _NUMBERS.items()},
    )
    write_atomically(path, text.encode())
    return path


def _servers_line(first: Endpoint) -> str:
    """Line `servers` of a new home: those beside `host`, which is empty for a WebSocket."""
    if first.path:
        return f"servers = [{json.dumps(str(first))}]"
    shown = '# servers = ["mqtt2.example:8883", "wss://mqtt.example:443/mqtt"]'
    return f"{shown}    # tried in this order when `host` cannot be reached"


def read_config(home: Path, owners: Collection[int] | None = None) -> AgentConfig:
    """The configuration in `home`, which root, this user or, for others than root, the home's owner has written: it
    names commands that are run. `owners`: the users who may have written it, instead of these.

    Raises: BadConfig, naming the key or the line.
    """
    path = home / FILE_NAME
    try:
        tree = tomllib.loads(without_mark(_read(path, owners)).decode())
    except FileNotFoundError:
        advice = "Check --home or DEVICE_HOME; `device-agent init` makes a new home."
        raise BadConfig(f"{home} is not a device's home: it has no {FILE_NAME}.", advice) from None
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, Malformed) as error:
        raise BadConfig(f"{path}: {error}") from error
    hooks = read_hooks(str(path), tree.pop("hook", []))
    if inside := next((copy.to for hook in hooks for copy in hook.copies if _is_within(copy.to, home)), None):
        raise BadConfig(f"{path}: the copy {inside} would be within the device's home.", "Copy it to another folder.")
    apps = read_apps(str(path), tree.pop("apps", {}))
    spool = read_spool(str(path), tree.pop("spool", {}))
    flat = _flatten(tree)
    for key in flat:
        if key not in _NUMBERS and key not in _STRINGS and key not in _LISTS and key not in ("mqtt.port", _MANAGED):
            raise BadConfig(f"{path}: there is no setting {key!r}.", "Check its spelling and its [section].")
    text = {key: _string(path, flat, key) for key in _STRINGS}
    number = {key: _number(path, flat, key, *bounds) for key, bounds in _NUMBERS.items()}
    servers = {key: _list(path, flat, key) for key in _LISTS}
    for key, url in (("est.url", text["est.url"]), *(("est.servers", each) for each in servers["est.servers"])):
        _checked(path, key, _https, url)
    if not text["mqtt.host"] and not servers["mqtt.servers"]:
        raise BadConfig(f"{path}: mqtt.host is missing.")
    return AgentConfig(
        home=home,
        device_id=_checked(path, "device_id", check_device_id, text["device_id"]),
        hardware_serial=text["hardware_serial"],
        est_url=text["est.url"],
        mqtt_host=_checked(path, "mqtt.host", check_host, text["mqtt.host"]) if text["mqtt.host"] else "",
        mqtt_port=int(_number(path, flat, "mqtt.port", 8883, 1, 65535)),
        ca_file=home / (text["ca_file"] or CA_NAME),
        keepalive_seconds=int(number["mqtt.keepalive_seconds"]),
        session_expiry_seconds=int(number["mqtt.session_expiry_seconds"]),
        renew_at_fraction=number["renewal.at_fraction"],
        retry_base_seconds=number["retry.base_seconds"],
        retry_cap_seconds=number["retry.cap_seconds"],
        refused_retry_seconds=number["retry.refused_seconds"],
        outbox_messages_max=int(number["outbox.messages_max"]),
        hooks=hooks,
        apps=apps,
        spool=spool,
        est_others=servers["est.servers"],
        mqtt_others=tuple(_checked(path, "mqtt.servers", parse_endpoint, each) for each in servers["mqtt.servers"]),
        pins=tuple(_checked(path, "trust.pins", parse_pin, each) for each in servers["trust.pins"]),
        managed=_boolean(path, flat, _MANAGED, default=True),
    )


def _read(path: Path, owners: Collection[int] | None) -> bytes:
    with opened_file(path) as file:
        found, folder = os.fstat(file.fileno()), path.parent.stat()
        data = file.read(FILE_SIZE_MAX + 1)
    us = os.geteuid()
    if owners is None:
        owners = {0, us} if us == 0 else {0, us, folder.st_uid}
    if found.st_uid not in owners:
        raise BadConfig(
            f"{path} belongs to user {found.st_uid}, whose settings are not followed here.",
            "Read it. If it is right, give it to the owner of the home, or to root.",
        )
    if bad := next((each for each, of in ((path, found), (path.parent, folder)) if others_may_write(of)), None):
        raise BadConfig(f"Others may write into {bad}.", f"Run: chmod go-w {shlex.quote(str(bad))}")
    if len(data) > FILE_SIZE_MAX:
        raise BadConfig(f"{path} is larger than {FILE_SIZE_MAX} bytes.")
    return data


def _is_within(file: Path, home: Path) -> bool:
    return Path(os.path.realpath(file.parent)).is_relative_to(os.path.realpath(home))


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[key] = value
    return flat


def _string(path: Path, flat: dict[str, Any], key: str) -> str:
    value = flat.get(key, "")
    if not isinstance(value, str):
        raise BadConfig(f"{path}: {key} must be a string.")
    check_printable(value, f"{path}: {key}")
    if not value and key in ("device_id", "est.url"):
        raise BadConfig(f"{path}: {key} is missing.")
    return value


def _checked(path: Path, key: str, check: Callable[[str], T], text: str) -> T:
    """What `check` makes of the value of `key`; its error names both."""
    try:
        return check(text)
    except BadConfig as error:
        raise BadConfig(f"{path}: {key}: {error.message}", error.advice) from error


def _https(url: str) -> str:
    """`url` itself. The rest of RFC 7030, 3.2.2, is checked where it is used: that module is not light."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not url.isprintable() or " " in url:
        raise BadConfig(f"{url[:80]!r} is not an EST server's URL.", "Write it as https://HOST:PORT.")
    return url


def _boolean(path: Path, flat: dict[str, Any], key: str, *, default: bool) -> bool:
    value = flat.get(key, default)
    if not isinstance(value, bool):
        raise BadConfig(f"{path}: {key} must be true or false.")
    return value


def _list(path: Path, flat: dict[str, Any], key: str) -> tuple[str, ...]:
    value = flat.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(value) > SERVERS_MAX:
        raise BadConfig(f"{path}: {key} must be a list of at most {SERVERS_MAX} strings.")
    return tuple(value)


def _number(path: Path, flat: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = flat.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadConfig(f"{path}: {key} must be a number from {least} to {most}.")
    if isinstance(default, int) and value != int(value):
        raise BadConfig(f"{path}: {key} must be a whole number.")
    return float(value)


_TEMPLATE = """\
# Configuration of one device. Beside this file: ca.pem (trust anchors), slot-a and slot-b (key and certificate,
# current and next), current (symbolic link to the slot in use).
device_id = {device_id}
hardware_serial = {hardware_serial}       # serialNumber of the certificate's subject, unless empty
ca_file = {ca_file}                # beside this file, or an absolute path

[est]
url = {est_url}
# servers = ["https://est2.example:8443"]    # tried in this order when `url` cannot be reached

[mqtt]
host = {host}                      # verified against the server certificate's subjectAltName
port = {port}
{mqtt_servers}
keepalive_seconds = {mqtt_keepalive_seconds}
session_expiry_seconds = {mqtt_session_expiry_seconds}    # how long the server keeps our session while we are offline

# [trust]
# pins = ["sha256:..."]          # keys of servers or trust anchors (SHA-256 of SubjectPublicKeyInfo)

# [fleet]
# managed = false                # takes no commands of the fleet: renew, report, trust-update, log-level

[renewal]
at_fraction = {renewal_at_fraction}            # of the certificate's lifetime; plus a random part of a twelfth

[retry]                          # full jitter: delays are drawn from [0, min(cap, base * 2 ** failures))
base_seconds = {retry_base_seconds}
cap_seconds = {retry_cap_seconds}
refused_seconds = {retry_refused_seconds}           # minimum delay after a refusal by the server

[outbox]
messages_max = {outbox_messages_max}             # queued while offline, if [spool] is off; when full, `send` is refused

[spool]                          # spool.db, beside this file: accepted messages survive a restart and a power loss
enabled = {spool_enabled}
bytes_max = {spool.bytes_max}
age_max_seconds = {spool.age_max_seconds}         # older messages are dropped
drop = "{spool.drop}"                  # when full: refuse the newest, or drop the "oldest"

# [apps]                         # other users of this machine, beside the owner of this file and root
# group = "sensors"              # may open agent.sock
# [[apps.client]]                # what is not listed is denied
# user = "camera"
# publish = ["devices/{{id}}/up/camera/#"]
# subscribe = ["devices/{{id}}/down/camera/#"]

# [[hook]]                       # after each new certificate: copies for other programs, and a command
# name = "nginx"
# run = ["systemctl", "reload", "nginx"]
# [[hook.copy]]
# content = "pair"               # certificate, issuers, chain, key, pair, anchors
# to = "/etc/nginx/tls/device.pem"
# group = "www-data"
# mode = "0640"
"""
