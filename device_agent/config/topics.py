"""Topics and topic filters of settings and commands, with the device id filled in."""

from fleet.est_client.errors import BadConfig
from fleet.wire.topic_filters import is_well_formed

TOPIC_SIZE_MAX = 1024  # bytes; the protocol allows 65,535


def topic_for(template: str, device_id: str) -> str:
    """The topic `template` with `{id}` replaced by the device id.

    Raises: BadConfig if it is not a valid topic name.
    """
    topic = template.replace("{id}", device_id)
    if not topic or set(topic) & set("+#\0") or not topic.isprintable():
        raise BadConfig(f"{template[:80]!r} is not a topic to publish to.", "Leave out +, # and control characters.")
    if len(topic.encode("utf-8", "surrogateescape")) > TOPIC_SIZE_MAX:
        raise BadConfig(f"The topic is longer than {TOPIC_SIZE_MAX} bytes.")
    return topic


def filter_for(template: str, device_id: str) -> str:
    """The topic filter `template` with `{id}` replaced by the device id.

    Raises: BadConfig if it is not a valid topic filter.
    """
    text = template.replace("{id}", device_id)
    if not text.isprintable() or not is_well_formed(text):
        raise BadConfig(
            f"{template[:80]!r} is not a topic filter.",
            "+ and # stand for whole levels; # is allowed as the last level only: devices/{id}/down/#.",
        )
    if len(text.encode()) > TOPIC_SIZE_MAX:
        raise BadConfig(f"The topic filter is longer than {TOPIC_SIZE_MAX} bytes.")
    return text
