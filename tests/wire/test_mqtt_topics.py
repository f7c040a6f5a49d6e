"""Topic names and filters, by the tables of MQTT 5.0, 4.7 and 4.8.2."""

import pytest

from fleet.wire.errors import Malformed
from fleet.wire.mqtt.topics import is_topic_filter, topic_name


@pytest.mark.parametrize("text", ["a", "/", "a/b", "/a", "a/", "a//b", "$SYS/x", "grün", " ", "a b"])
def test_topic_names(text: str) -> None:
    assert topic_name(text.encode()) == text
    assert is_topic_filter(text)


@pytest.mark.parametrize("data", [b"", b"#", b"a/+", b"a#", b"a\x00", b"\xff", b"\xed\xa0\x80", b"+"])
def test_what_is_no_topic_name(data: bytes) -> None:
    with pytest.raises(Malformed):
        topic_name(data)


@pytest.mark.parametrize(
    "text",
    ["#", "+", "a/#", "+/#", "+/+", "/+", "a/+/b", "$SYS/#", "$share/g/#", "$share/g/a", "$share/g//", "$shares",
     "$share", "g" * 65_535, "$share/g/" + "g" * 65_535],
)  # fmt: skip
def test_filters(text: str) -> None:
    assert is_topic_filter(text) is True


@pytest.mark.parametrize(
    "text",
    ["", "a#", "#/a", "a/#/b", "a+", "+a", "a/b+/c", "##", "$share/g", "$share/g/", "$share//a", "$share/+/a",
     "$share/a#/b", "$share/g/a#", "$share/", "g" * 65_536, "\ud800",
     "$share/g/" + "g" * 65_536],
)  # fmt: skip
def test_what_is_no_filter(text: str) -> None:
    assert is_topic_filter(text) is False
