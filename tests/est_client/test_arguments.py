"""Device ids and addresses as commands take them: what is one, to the character."""

import pytest

from fleet.domain.device import KEY_TYPES, device_id
from fleet.domain.errors import Invalid
from fleet.est_client.arguments import AGENT_KEY_TYPES, check_device_id, check_printable, parse_host_port
from fleet.est_client.errors import BadConfig


@pytest.mark.parametrize("text", ["a", "Z9", "0", "02:00:5e", "a.b_c-d", "x" * 64])
def test_what_is_a_device_id(text: str) -> None:
    assert check_device_id(text) == text == device_id(text)


@pytest.mark.parametrize("text", ["", "x" * 65, ".a", "-a", ":a", "_a", "a b", "a/b", "a+", "#", "é", "a\n", "a\0"])
def test_what_is_not_one_here_or_in_the_registry(text: str) -> None:
    with pytest.raises(BadConfig):
        check_device_id(text)
    with pytest.raises(Invalid):
        device_id(text)


def test_a_wrong_id_is_repeated_in_part() -> None:
    with pytest.raises(BadConfig) as caught:
        check_device_id("+" * 5000)
    assert caught.value.message.count("+") == 80


def test_the_key_types_are_the_fleets() -> None:
    assert AGENT_KEY_TYPES == ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519")
    assert set(AGENT_KEY_TYPES) <= set(KEY_TYPES)


def test_text_that_a_terminal_can_show() -> None:
    assert check_printable("Zähler 7", "The name") == "Zähler 7"
    for text in ("a\x1b[31m", "a\n", "\udcff"):
        with pytest.raises(BadConfig, match="The name"):
            check_printable(text, "The name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h", ("h", 8883)),
        ("h:1", ("h", 1)),
        ("h:65535", ("h", 65535)),
        ("mqtts://a_b-c.example:8884", ("a_b-c.example", 8884)),
        ("[::1]", ("::1", 8883)),
        ("mqtts://[2001:db8::7]:1883", ("2001:db8::7", 1883)),
        ("h:00080", ("h", 80)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "h:",
        "h:0",
        "h:65536",
        "h:100000",
        "h:-1",
        "h:x",
        "::1",
        "[::1",
        "[]:1",
        "h/",
        "mqtt://h",
        "a b",
        "h\n",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(BadConfig):
        parse_host_port(text)
