"""Validation of topic names and topic filters (MQTT 5.0, 4.7; the same in 3.1.1)."""

from fleet.wire.errors import Malformed
from fleet.wire.mqtt.fields import FIELD_SIZE_MAX, utf8
from fleet.wire.topic_filters import is_well_formed

_SHARE = "$share/"

BRIDGE_TOPICS = "$SYS/broker/connection/"
"""What the topics begin with by which a mosquitto bridge tells of itself."""


def topic_name(data: bytes) -> str:
    """The topic name that `data` encodes. Raises: Malformed."""
    text = utf8(data)
    # [MQTT-4.7.3-1] at least one character
    if not text:
        raise Malformed("A topic name is empty.")
    # [MQTT-3.3.2-2] no wildcard characters
    if "#" in text or "+" in text:
        raise Malformed("A topic name contains a wildcard.")
    return text


def is_topic_name(text: str) -> bool:
    """Whether `text`, a string of MQTT, is a topic name."""
    return text != "" and "#" not in text and "+" not in text


def is_shared(topic_filter: str) -> bool:
    """Whether the filter is that of a shared subscription (MQTT 5.0, 4.8.2)."""
    return topic_filter.startswith(_SHARE)


def is_topic_filter(text: str) -> bool:
    """Whether `text` is a well-formed topic filter; that of a shared subscription too."""
    if text.startswith(_SHARE):
        group, _, text = text[len(_SHARE) :].partition("/")
        # [MQTT-4.8.2-1], [MQTT-4.8.2-2] a group of one character at least, without wildcards, and a filter after it
        if not group or "+" in group or "#" in group:
            return False
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate: how Python decodes an argument that is not UTF-8
        return False
    # [MQTT-4.7.3-1], [MQTT-4.7.3-3]
    if not 1 <= size <= FIELD_SIZE_MAX:
        return False
    # [MQTT-4.7.1-1], [MQTT-4.7.1-2] (5.0), [MQTT-4.7.1-2], [MQTT-4.7.1-3] (3.1.1)
    return is_well_formed(text)
