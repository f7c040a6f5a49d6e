"""agent.toml, the configuration of one device: read once into a frozen value; errors name the key."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.atomic_files import write_atomically
from fleet.est_client.arguments import check_device_id
from fleet.est_client.errors import BadConfig
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


@dataclass(frozen=True, slots=True)
class NewHome:
    """What a new home is given; all other settings start at their defaults."""

    device_id: str
    est_url: str
    mqtt_host: str
    mqtt_port: int
    ca_pem: bytes
    hardware_serial: str = ""


def write_config(home: Path, new: NewHome) -> Path:
    """Create `home` with ca.pem and agent.toml, and return the latter's path. agent.toml is written last: a home that
    has one is complete.

    Raises: BadConfig if the home has one already; nothing in it is changed then. OSError.
    """
    path = home / FILE_NAME
    if path.exists():
        raise BadConfig(f"{home} is already a device's home.", "Choose another --home, or use the existing one.")
    check_device_id(new.device_id)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(home / CA_NAME, new.ca_pem)
    text = _TEMPLATE.format(
        device_id=json.dumps(new.device_id),
        hardware_serial=json.dumps(new.hardware_serial),
        ca_file=json.dumps(CA_NAME),
        est_url=json.dumps(new.est_url),
        host=json.dumps(new.mqtt_host),
        port=new.mqtt_port,
        **{key.replace(".", "_"): value[0] for key, value in _NUMBERS.items()},
    )
    write_atomically(path, text.encode())
    return path


def read_config(home: Path) -> AgentConfig:
    """The configuration in `home`.

    Raises: BadConfig, naming the key or the line.
    """
    path = home / FILE_NAME
    try:
        if path.stat().st_size > FILE_SIZE_MAX:
            raise BadConfig(f"{path} is larger than {FILE_SIZE_MAX} bytes.")
        tree = tomllib.loads(without_mark(path.read_bytes()).decode())
    except FileNotFoundError:
        raise BadConfig(f"{home} is not a device's home: it has no {FILE_NAME}.", "Run `device-agent init`.") from None
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, Malformed) as error:
        raise BadConfig(f"{path}: {error}") from error
    flat = _flatten(tree)
    for key in flat:
        if key not in _NUMBERS and key not in _STRINGS and key != "mqtt.port":
            raise BadConfig(f"{path}: there is no setting {key!r}.", "Check its spelling and its [section].")
    text = {key: _string(path, flat, key) for key in _STRINGS}
    number = {key: _number(path, flat, key, *bounds) for key, bounds in _NUMBERS.items()}
    return AgentConfig(
        home=home,
        device_id=check_device_id(text["device_id"]),
        hardware_serial=text["hardware_serial"],
        est_url=text["est.url"],
        mqtt_host=text["mqtt.host"],
        mqtt_port=int(_number(path, flat, "mqtt.port", 8883, 1, 65535)),
        ca_file=home / (text["ca_file"] or CA_NAME),
        keepalive_seconds=int(number["mqtt.keepalive_seconds"]),
        session_expiry_seconds=int(number["mqtt.session_expiry_seconds"]),
        renew_at_fraction=number["renewal.at_fraction"],
        retry_base_seconds=number["retry.base_seconds"],
        retry_cap_seconds=number["retry.cap_seconds"],
        refused_retry_seconds=number["retry.refused_seconds"],
        outbox_messages_max=int(number["outbox.messages_max"]),
    )


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
    if not value and key in ("device_id", "est.url", "mqtt.host"):
        raise BadConfig(f"{path}: {key} is missing.")
    return value


def _number(path: Path, flat: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = flat.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadConfig(f"{path}: {key} must be a number from {least} to {most}.")
    return float(value)


_TEMPLATE = """\
# Configuration of one device. Beside this file: ca.pem (trust anchors), slot-a and slot-b (key and certificate,
# current and next), current (symbolic link to the slot in use).
device_id = {device_id}
hardware_serial = {hardware_serial}       # serialNumber of the certificate's subject, unless empty
ca_file = {ca_file}                # beside this file, or an absolute path

[est]
url = {est_url}

[mqtt]
host = {host}                      # verified against the server certificate's subjectAltName
port = {port}
keepalive_seconds = {mqtt_keepalive_seconds}
session_expiry_seconds = {mqtt_session_expiry_seconds}    # how long the server keeps our session while we are offline

[renewal]
at_fraction = {renewal_at_fraction}            # of the certificate's lifetime; plus a random part of a twelfth

[retry]                          # full jitter: delays are drawn from [0, min(cap, base * 2 ** failures))
base_seconds = {retry_base_seconds}
cap_seconds = {retry_cap_seconds}
refused_seconds = {retry_refused_seconds}           # minimum delay after a refusal by the server

[outbox]
messages_max = {outbox_messages_max}              # queued while offline; when full, `send` is refused
"""
