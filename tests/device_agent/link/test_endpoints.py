"""Addresses of MQTT servers, and the lists of them in agent.toml."""

from pathlib import Path

import pytest

from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.config.endpoints import SERVERS_MAX, Endpoint, parse_endpoint
from fleet.est_client.errors import BadConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt.example", Endpoint("mqtt.example", 8883)),
        ("mqtts://[::1]:1883", Endpoint("::1", 1883)),
        ("wss://mqtt.example", Endpoint("mqtt.example", 443, "/")),
        ("wss://[2001:db8::1]:8084/mqtt", Endpoint("2001:db8::1", 8084, "/mqtt")),
    ],
)
def test_addresses(text: str, expected: Endpoint) -> None:
    assert parse_endpoint(text) == expected
    assert parse_endpoint(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "ws://a", "mqtt://a", "wss://", "wss://a:70000/", "wss://u@a/", "wss://a/?q", "wss://a/\r\nX: y", "wss://ä/"],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(BadConfig, match="not the address"):
        parse_endpoint(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_config(tmp_path / "home", NewHome("cam-7", "https://a", "mqtt.example", 8883, b""))


def test_the_first_server_and_the_others(file: Path) -> None:
    text = file.read_text()
    assert read_config(file.parent).mqtt_servers == (Endpoint("mqtt.example", 8883),)
    file.write_text(text.replace("# servers", "servers"))  # the examples in the file itself
    config = read_config(file.parent)
    assert config.est_urls == ("https://a", "https://est2.example:8443")
    others = (Endpoint("mqtt2.example", 8883), Endpoint("mqtt.example", 443, "/mqtt"))
    assert config.mqtt_servers == (Endpoint("mqtt.example", 8883), *others)
    file.write_text(text.replace("# servers", "servers").replace('host = "mqtt.example"', 'host = ""'))
    assert read_config(file.parent).mqtt_servers == others


def test_pins(file: Path) -> None:
    pin = "sha256:" + "0f" * 32
    file.write_text(f"{file.read_text()}\n[trust]\npins = ['{pin.upper()}']\n")
    assert read_config(file.parent).pins == (pin,)
    file.write_text(file.read_text().replace(pin.upper(), "sha1:00"))
    with pytest.raises(BadConfig, match="is not a pin"):
        read_config(file.parent)


@pytest.mark.parametrize(
    "line", ['servers = "a"', "servers = [1]", f"servers = {['a'] * (SERVERS_MAX + 1)}", 'servers = ["a b"]']
)
def test_lists_that_are_refused(file: Path, line: str) -> None:
    file.write_text(file.read_text().replace('# servers = ["mqtt2', f"{line} #"))
    with pytest.raises(BadConfig):
        read_config(file.parent)
