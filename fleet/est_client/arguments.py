"""Arguments of enrollment commands: device id, key type, MQTT address. Standard library only."""

import re

from fleet.est_client.errors import BadConfig
from fleet.wire.identifiers import DEVICE_ID, DEVICE_ID_RULE
from fleet.wire.key_types import OF_DEVICES

AGENT_KEY_TYPES = OF_DEVICES
"""Key types that a device can generate, named as in the fleet's models."""

MQTT_PORT_DEFAULT = 8883

_DEVICE_ID = re.compile(DEVICE_ID)
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")
_HOST_PORT = re.compile(r"(?:mqtts://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")


def check_device_id(text: str) -> str:
    """`text` itself, if it is a valid device id. Raises: BadConfig."""
    if not _DEVICE_ID.fullmatch(text):
        raise BadConfig(
            f"{text[:80]!r} is not a device id.",
            f"Use {DEVICE_ID_RULE}.",
        )
    return text


def check_printable(text: str, what: str) -> str:
    """`text` itself, if all its characters are printable: no control characters, no octets that are not UTF-8.

    Raises: BadConfig, naming `what`.
    """
    if not text.isprintable():
        raise BadConfig(f"{what} {text[:80]!r} has a character that cannot be printed.")
    return text


def check_host(text: str) -> str:
    """`text` itself, if it is a name or an IP address, IPv6 without brackets. Raises: BadConfig."""
    if not _HOST.fullmatch(text):
        raise BadConfig(f"{text[:80]!r} is not the name or address of a server.")
    return text


def parse_host_port(text: str) -> tuple[str, int]:
    """Host and port of `[mqtts://]HOST[:PORT]`, IPv6 in brackets; the port defaults to 8883. Raises: BadConfig."""
    match = _HOST_PORT.fullmatch(text)
    port = int(match[2] or MQTT_PORT_DEFAULT) if match else 0
    if not match or not 0 < port < 65536:
        raise BadConfig(f"{text[:80]!r} is not the address of an MQTT server.", "Write it as HOST:PORT.")
    return match[1].strip("[]"), port
