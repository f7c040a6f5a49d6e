"""Rules of a model for the MQTT sessions of its devices."""

import enum
from datetime import timedelta
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

from fleet.config.mqtt_bounds import FILTERS_PER_DEVICE_MAX, PACKET_SIZE_MAX
from fleet.domain.errors import Invalid
from fleet.domain.members import about, at_most, between, seconds

QOS_MAX = 2
RATE_MAX = 2**31 - 1
BYTES_PER_SECOND_MIN = 1_024  # less, and one read of the transport would take longer than a session is kept waiting
PACKET_SIZE_MIN = 1_024
SESSIONS_MAX = 16  # client ids of one device
FILTERS_MAX = 64  # of each kind in a model: each is tried for a new topic
FILTER_SIZE_MAX = 1024
OVERRIDES_MAX = 16  # of a model: each is tried for each connection
TAG_SIZE_MAX = 161  # KEY=VALUE
BURST_MIN, BURST_MAX = timedelta(seconds=1), timedelta(hours=1)


class OnDenied(enum.StrEnum):
    """What becomes of an MQTT 3.1.1 session whose PUBLISH is denied: that version has no refusal for a message."""

    ACKNOWLEDGE = "acknowledge"
    """The message is acknowledged and dropped, as brokers do."""
    CLOSE = "close"
    """The connection is closed. Many clients then send the same message again in the next one."""


class ClientIdBinding(enum.StrEnum):
    """Which client ids a device may use."""

    EXACT = "exact"
    """Its device id alone: it has one session."""
    PREFIX = "prefix"
    """Also the device id, a slash and a name: it has several sessions at once."""
    ANY = "any"
    """Any. The broker gets another, which begins with the device id."""


_MessagesPerSecond = Annotated[
    int, between(0, RATE_MAX, "MQTT packets that a device may send on average; 0 for no limit.")
]
_BytesPerSecond = Annotated[
    int,
    between(
        0, RATE_MAX, f"Bytes that a device may send on average; 0 for no limit, else at least {BYTES_PER_SECOND_MIN}."
    ),
]
_SubscriptionsMax = Annotated[
    int, between(0, FILTERS_PER_DEVICE_MAX, "Topic filters of a device, if fewer than fleet.toml allows; else 0.")
]
_PacketSizeMax = Annotated[
    int,
    between(
        0,
        PACKET_SIZE_MAX,
        f"Bytes of an MQTT packet of a device, if fewer than fleet.toml allows: at least {PACKET_SIZE_MIN}; else 0.",
    ),
]
_QosMax = Annotated[
    int, between(0, QOS_MAX, "Highest QoS that a device may publish with, and that a subscription is granted.")
]
_SharedSubscriptions = Annotated[bool, about("Whether a device may subscribe to $share/GROUP/FILTER.")]
_OnDenied = Annotated[
    OnDenied, about("MQTT 3.1.1 only: whether a denied PUBLISH is acknowledged and dropped, or closes the connection.")
]
_ClientIds = Annotated[
    ClientIdBinding,
    about("Client ids of a device: its id alone, with prefix also names beneath it (`cam-7/bridge`), or any."),
]
_SessionsMax = Annotated[
    int, between(1, SESSIONS_MAX, "Client ids that a device may have sessions of, where client_id is not exact.")
]
_Filters = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=FILTER_SIZE_MAX)], ...],
    at_most(FILTERS_MAX, "MQTT topic filters, in place of the model's."),
]


class MqttOverride(Struct, frozen=True, forbid_unknown_fields=True):
    """What applies to a model's devices with one tag, in place of what the model says. Each may be left out."""

    tag: Annotated[str, Meta(max_length=TAG_SIZE_MAX, description="The tag: KEY=VALUE.")]
    publish: _Filters | UnsetType = UNSET
    subscribe: _Filters | UnsetType = UNSET
    retain: Annotated[bool, about("Whether devices may publish retained messages.")] | UnsetType = UNSET
    qos_max: _QosMax | UnsetType = UNSET
    shared_subscriptions: _SharedSubscriptions | UnsetType = UNSET
    messages_per_second: _MessagesPerSecond | UnsetType = UNSET
    bytes_per_second: _BytesPerSecond | UnsetType = UNSET
    subscriptions_max: _SubscriptionsMax | UnsetType = UNSET
    packet_size_max: _PacketSizeMax | UnsetType = UNSET
    client_id: _ClientIds | UnsetType = UNSET
    sessions_max: _SessionsMax | UnsetType = UNSET
    on_denied: _OnDenied | UnsetType = UNSET

    @property
    def said(self) -> dict[str, Any]:
        """What it says, by the names of a model and of MqttRules."""
        values = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "tag")
        return {name: value for name, value in values if value is not UNSET}


class MqttRules(Struct, frozen=True):
    """How MQTT sessions are treated."""

    on_denied: _OnDenied = OnDenied.ACKNOWLEDGE
    """With 5.0 the acknowledgement says that the message was refused."""
    messages_per_second: _MessagesPerSecond = 10_000
    bytes_per_second: _BytesPerSecond = 4_194_304
    burst: Annotated[
        timedelta,
        seconds(
            BURST_MIN, BURST_MAX, "What a device may send at once after a rest: what the rates allow in that time."
        ),
    ] = field(default=timedelta(seconds=10), name="burst_seconds")
    check_response_topic: Annotated[
        bool, about("Whether a Response Topic (MQTT 5.0) must be one that the device may subscribe to.")
    ] = True
    """Of a message or will: where it asks for a response."""
    subscriptions_max: _SubscriptionsMax = 0
    packet_size_max: _PacketSizeMax = 0
    client_id: _ClientIds = ClientIdBinding.EXACT
    sessions_max: _SessionsMax = 4
    """Its own id is one of them, and never refused for the others."""
    qos_max: _QosMax = QOS_MAX
    shared_subscriptions: _SharedSubscriptions = True
    overrides: Annotated[
        tuple[MqttOverride, ...],
        at_most(OVERRIDES_MAX, "For devices with a tag; where two say the same member, the first in the list decides."),
    ] = ()

    @property
    def other_client_ids(self) -> bool:
        """Whether a device may have client ids besides its own id."""
        return self.client_id is not ClientIdBinding.EXACT

    @property
    def sessions(self) -> int:
        """How many client ids a device may have sessions of."""
        return self.sessions_max if self.other_client_ids else 1


def lowered(limit: int, by_model: int) -> int:
    """`limit`, or the model's if that is lower; 0: the model has none."""
    return min(limit, by_model or limit)


def check_mqtt_rules(rules: MqttRules) -> None:
    """Raises: Invalid (`bad-rule`)."""
    octets, filters, size = rules.bytes_per_second, rules.subscriptions_max, rules.packet_size_max
    must(0 <= rules.messages_per_second <= RATE_MAX, f"Messages per second are 0, for no limit, to {RATE_MAX}.")
    bytes_ = f"Bytes per second are 0, for no limit, or {BYTES_PER_SECOND_MIN} to {RATE_MAX}."
    must(not octets or BYTES_PER_SECOND_MIN <= octets <= RATE_MAX, bytes_)
    must(BURST_MIN <= rules.burst <= BURST_MAX, "A burst lasts from one second to an hour.")
    must(0 <= rules.qos_max <= QOS_MAX, f"A QoS is 0 to {QOS_MAX}.")
    subscriptions = f"The subscriptions must be 0, for the limit of fleet.toml, or 1 to {FILTERS_PER_DEVICE_MAX}."
    must(0 <= filters <= FILTERS_PER_DEVICE_MAX, subscriptions)
    sizes = f"{PACKET_SIZE_MIN} to {PACKET_SIZE_MAX} bytes."
    what = f"The packet size must be 0, for the limit of fleet.toml, or {sizes}"
    must(not size or PACKET_SIZE_MIN <= size <= PACKET_SIZE_MAX, what)
    must(1 <= rules.sessions_max <= SESSIONS_MAX, f"A device may have sessions of 1 to {SESSIONS_MAX} client ids.")


def must(holds: bool, message: str, advice: str = "") -> None:
    """Raises: Invalid (`bad-rule`): it does not hold."""
    if not holds:
        raise Invalid("bad-rule", message, advice)
