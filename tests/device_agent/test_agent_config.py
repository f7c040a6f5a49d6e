"""agent.toml: written once, read strictly."""

import os
import re
from operator import attrgetter
from pathlib import Path

import pytest

from device_agent.config import settings
from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.config.settings import SETTINGS, Setting
from device_agent.config.spool import SpoolConfig
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


def test_a_home_begins_without_a_spool_unless_asked(home: Path) -> None:
    assert read_config(home).spool == SpoolConfig()
    file = home / "agent.toml"
    before, after = file.read_text().split("\n[spool]")
    file.write_text(before)  # as homes of before have it
    assert read_config(home).spool == SpoolConfig()
    after = after.replace("enabled = false", "enabled = true").replace("newest", "oldest")
    file.write_text(f"{before}\n[spool]{after}")
    assert read_config(home).spool == SpoolConfig(enabled=True, drop="oldest")
    new = NewHome("cam-7", "https://h:8443", "h", 8883, CA, spool=True)
    assert read_config(write_config(home / "other", new).parent).spool.enabled


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
        ("enabled = false", "enabled = 1", "spool.enabled"),
        ("enabled = false", 'on = "yes"', "spool.on"),
        ("bytes_max = 16777216", "bytes_max = 1", "spool.bytes_max"),
        ("bytes_max = 16777216", "bytes_max = 20000000.5", "spool.bytes_max"),
        ("age_max_seconds = 604800", "age_max_seconds = nan", "spool.age_max_seconds"),
        ('drop = "newest"', 'drop = "all"', "spool.drop"),
        ("[spool]  ", "[[spool]]  ", "spool must be a section"),
        ("[est]", "est = 1\n[other]", "est"),
        ('device_id = "cam-7"', 'device_id = "a/b"', r"agent\.toml, line \d+: device_id"),
        ('hardware_serial = "SN 1"', 'hardware_serial = "SN\\u0000"', r"agent\.toml, line \d+: hardware_serial"),
        ('ca_file = "ca.pem"', 'ca_file = "ca\\u0000"', r"agent\.toml, line \d+: ca_file"),
        ("port = 8883", "port = 8883.9", r"agent\.toml, line \d+: mqtt\.port"),
        ("keepalive_seconds = 60", "keepalive_seconds = 60.9", r"agent\.toml, line \d+: mqtt\.keepalive_seconds"),
        (
            "session_expiry_seconds = 86400",
            "session_expiry_seconds = 0.5",
            r"agent\.toml, line \d+: mqtt\.session_expiry_seconds",
        ),
        ("messages_max = 1000", "messages_max = 1.5", r"agent\.toml, line \d+: outbox\.messages_max"),
        ('url = "https://h:8443"', 'url = "ftp://nonsense"', r"agent\.toml, line \d+: est\.url"),
        ('url = "https://h:8443"', 'url = "https://"', r"agent\.toml, line \d+: est\.url"),
        ('url = "https://h:8443"', 'url = "https://h:99999"', r"agent\.toml, line \d+: est\.url"),
        (
            'url = "https://h:8443"',
            'url = "https://h"\nservers = ["https://[h"]',
            r"agent\.toml, line \d+: est\.servers",
        ),
        ('host = "mqtt.example"', 'host = "mqtts://mqtt.example"', r"agent\.toml, line \d+: mqtt\.host"),
        ("port = 8883", 'port = 8883\nservers = ["h:x"]', r"agent\.toml, line \d+: mqtt\.servers"),
        ("[renewal]", '[trust]\npins = ["x"]\n[renewal]', r"agent\.toml, line \d+: trust\.pins"),
    ],
)
def test_a_mistake_is_named(home: Path, old: str, new: str, named: str) -> None:
    file = home / "agent.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(BadConfig, match=named):
        read_config(home)


def test_a_whole_number_may_be_written_with_a_point(home: Path) -> None:
    file = home / "agent.toml"
    file.write_text(file.read_text().replace("keepalive_seconds = 60", "keepalive_seconds = 90.0"))
    assert read_config(home).keepalive_seconds == 90


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


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "taken"),
    [
        (0, 0, 0o755, True),
        (0, 0, 0o775, True),
        (0, 12345, 0o775, False),
        (0, 0, 0o777, False),
        (12345, 0, 0o700, False),
    ],
)
def test_a_folder_that_others_may_change_is_no_home(
    tmp_path: Path, owner: int, group: int, mode: int, taken: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, owner, group)
    home.chmod(mode)
    if taken:
        write_config(home, NewHome("cam-7", "https://h", "h", 1, b"ca"))
    else:
        with pytest.raises(PermissionError, match="others may write"):
            write_config(home, NewHome("cam-7", "https://h", "h", 1, b"ca"))
    assert any(home.iterdir()) is taken


def test_a_new_home_may_be_behind_a_websocket(tmp_path: Path) -> None:
    write_config(tmp_path / "home", NewHome("cam-7", "https://h", "mqtt.example", 443, b"root", mqtt_path="/mqtt"))
    config = read_config(tmp_path / "home")
    assert [str(each) for each in config.mqtt_servers] == ["wss://mqtt.example:443/mqtt"]


def test_no_hook_copies_into_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = write_config(home, NewHome("cam-7", "https://h", "h", 1, b"root"))
    text = file.read_text()
    (tmp_path / "link").symlink_to(home)
    for folder in (home, home / "slot-a", tmp_path / "link"):
        file.write_text(f'{text}[[hook]]\nname = "x"\n[[hook.copy]]\ncontent = "key"\nto = "{folder}/ca.pem"\n')
        with pytest.raises(BadConfig, match="within the device's home"):
            read_config(home)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_each_setting_is_refused_where_it_stands(home: Path, setting: Setting) -> None:
    """By its name and line: a date is a value of none."""
    file = home / "agent.toml"
    kept = [line for line in file.read_text().splitlines() if not re.match(rf"(# )?{setting.key} =", line)]
    line = 3
    if setting.section:
        at = next(number for number, text in enumerate(kept) if re.match(rf"(# )?\[{setting.section}\]", text))
        kept[at] = f"[{setting.section}]"
        line = at + 2
    kept.insert(line - 1, f"{setting.key} = 1979-05-27")
    file.write_text("\n".join(kept))
    with pytest.raises(BadConfig, match=rf"agent\.toml, line {line}: {setting.name} must be"):
        read_config(home)


def test_a_new_home_has_every_setting_at_its_default(home: Path) -> None:
    config, text = read_config(home), (home / "agent.toml").read_text()
    given = {"device_id", "hardware_serial", "est.url", "mqtt.host", "mqtt.port", "ca_file"}
    for setting in SETTINGS:
        assert re.search(rf"^(# )?{setting.key} = ", text, re.MULTILINE), setting.name
        if setting.name not in given:
            assert attrgetter(setting.field)(config) == setting.default, setting.name


def test_the_page_has_the_table() -> None:
    page = Path(settings.__file__).with_name("README.md").read_text()
    assert settings.table() in page  # python -m device_agent.config.settings


def test_a_misspelled_setting_has_a_hint(home: Path) -> None:
    file = home / "agent.toml"
    file.write_text(file.read_text().replace("keepalive_seconds =", "keepalive_secs ="))
    with pytest.raises(BadConfig) as refused:
        read_config(home)
    assert refused.value.advice == "Did you mean mqtt.keepalive_seconds?"
