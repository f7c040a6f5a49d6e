"""agent.toml: written once, read strictly."""

from pathlib import Path

import pytest

from device_agent.agent_config import NewHome, read_config, write_config
from fleet.est_client.arguments import check_device_id, parse_host_port
from fleet.est_client.errors import BadConfig

CA = b"-----BEGIN CERTIFICATE-----\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_config(tmp_path / "a home", NewHome("cam-7", "https://h:8443", "mqtt.example", 8883, CA, "SN 1"))
    return tmp_path / "a home"


def test_what_is_written_is_read(home: Path) -> None:
    config = read_config(home)
    assert (config.device_id, config.hardware_serial) == ("cam-7", "SN 1")
    assert (config.est_url, config.mqtt_host, config.mqtt_port) == ("https://h:8443", "mqtt.example", 8883)
    assert config.ca_file.read_bytes() == CA
    assert config.renew_at_fraction == pytest.approx(2 / 3, abs=0.001)
    assert (home / "agent.toml").stat().st_mode & 0o777 == 0o600


def test_a_second_one_is_refused(home: Path) -> None:
    before = (home / "agent.toml").read_bytes(), (home / "ca.pem").read_bytes()
    with pytest.raises(BadConfig, match="already"):
        write_config(home, NewHome("other", "https://h", "h", 1, b"other"))
    assert before == ((home / "agent.toml").read_bytes(), (home / "ca.pem").read_bytes())


def test_a_home_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="not a device's home"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('device_id = "cam-7"', "device_id = 7", "device_id"),
        ('device_id = "cam-7"', 'device_id = "a/b"', "device id"),
        ('device_id = "cam-7"', "", "device_id"),
        ("port = 8883", "port = 0", "mqtt.port"),
        ("port = 8883", "port = true", "mqtt.port"),
        ("port = 8883", "port = 8883\nhots = 1", "mqtt.hots"),
        ("keepalive_seconds = 60", 'keepalive_seconds = "60"', "keepalive_seconds"),
        ("keepalive_seconds = 60", "keepalive_seconds = nan", "keepalive_seconds"),
        ("at_fraction = 0.667", "at_fraction = 1.5", "renewal.at_fraction"),
        ("[est]", "[est", "line"),
        ("[est]", "est = 1\n[other]", "est"),
    ],
)
def test_a_mistake_is_named(home: Path, old: str, new: str, named: str) -> None:
    file = home / "agent.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(BadConfig, match=named):
        read_config(home)


def test_not_text_or_too_long(home: Path) -> None:
    file = home / "agent.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfig):
        read_config(home)
    file.write_bytes(b"#" * (64 * 1024 + 1))
    with pytest.raises(BadConfig, match="larger"):
        read_config(home)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h:1", ("h", 1)),
        ("mqtts://h:1", ("h", 1)),
        ("h.example", ("h.example", 8883)),
        ("[::1]:8884", ("::1", 8884)),
        ("127.0.0.1:8883", ("127.0.0.1", 8883)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize("text", ["", ":1", "h:", "h:0", "h:65536", "h:x", "::1:1", "http://h:1", "a b:1", "h:1/x"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(BadConfig):
        parse_host_port(text)


@pytest.mark.parametrize("text", ["", "-a", "a/b", "a+b", "a#", "$a", "a b", "a\0", "ä", "a" * 65, "a\n"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(BadConfig):
        check_device_id(text)


def test_an_editors_byte_order_mark(home: Path) -> None:
    file = home / "agent.toml"
    text = file.read_text()
    file.write_text(text, "utf-8-sig")
    assert read_config(home).device_id == "cam-7"
    file.write_text(text, "utf-16")
    with pytest.raises(BadConfig, match="UTF-16 text; save it as UTF-8"):
        read_config(home)
