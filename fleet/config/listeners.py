"""The listeners of `fleet serve`, each by the name that its setting, its log lines and the ready file have."""

from msgspec import Struct


class ListenerKind(Struct, frozen=True):
    name: str
    """Also the field of Settings with its address."""
    scheme: str
    """Of its URL."""
    is_mqtt: bool = False
    is_local: bool = False
    """For programs of this machine, which have ended TLS with devices: no balancer is in front."""
    by_option: bool = False
    """Whether its address is an option of `fleet serve` too, and in [listen]; else `address` in a table of its name."""


LISTENERS = (
    ListenerKind("est", "https", by_option=True),
    ListenerKind("mqtt", "mqtts", is_mqtt=True, by_option=True),
    ListenerKind("http", "https", by_option=True),
    ListenerKind("wss", "wss", is_mqtt=True),
    ListenerKind("publish", "http"),
    ListenerKind("forward_auth", "http", is_local=True),
    ListenerKind("broker_auth", "http", is_local=True),
)
LOCAL_NAMES = tuple(each.name for each in LISTENERS if each.is_local)
NAMES = tuple(each.name for each in LISTENERS if not each.is_local)
"""Those whose port may be reached from elsewhere, a balancer in front or not."""
MQTT_NAMES = tuple(each.name for each in LISTENERS if each.is_mqtt)
IN_FILE_ALONE = tuple(each.name for each in LISTENERS if not each.by_option)
