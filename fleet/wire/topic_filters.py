"""MQTT topic filters (MQTT 5.0, 4.7): which are well-formed, what they match, which covers which."""

import re

_MISPLACED = re.compile(r"[+#](?:(?<=[^/][+#])|(?<=\+)(?=[^/])|(?<=#)(?=.))", re.DOTALL)
"""A wildcard that is not alone in its level, or # in another than the last level. It looks at wildcards alone."""


def is_well_formed(text: str) -> bool:
    """Whether a non-empty string has wildcards only where a topic filter may (MQTT 5.0, 4.7.1)."""
    return bool(text) and _MISPLACED.search(text) is None


def matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic_filter` matches `topic`, which has no wildcards (MQTT 5.0, 4.7)."""
    # [MQTT-4.7.2-1] A filter that starts with a wildcard never matches a topic that starts with $.
    if topic[:1] == "$" and topic_filter[:1] in ("#", "+"):
        return False
    return covers(topic_filter, topic)


def covers(outer: str, inner: str) -> bool:
    """Whether every topic that the filter `inner` matches is matched by the filter `outer` too."""
    if inner[:1] == "$" and outer[:1] in ("#", "+"):
        return False
    want = outer.split("/")
    have = inner.split("/", len(want))  # a level more is enough to know: there may be 32,768
    for n, level in enumerate(want):
        if level == "#":
            return True  # "a/#" covers "a" as well: [MQTT-4.7.1-2] the parent level is included
        if n >= len(have):
            return False
        if have[n] == "#" or (have[n] == "+" and level != "+") or (level != "+" and level != have[n]):
            return False
    # "a/#" within "a/b": have is longer; "a" within "a/#" has ended in the loop above.
    return len(have) == len(want)
