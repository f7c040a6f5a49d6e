"""The configuration of a mosquitto bridge, and the hook that maintains it."""

from pathlib import Path
from typing import Any

import pytest

from device_agent.apps.bridge import Bridge
from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.config.hooks import Copy
from fleet.est_client.errors import BadConfig


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_config(tmp_path / "home", NewHome("cam-7", "https://localhost", "fleet.example", 8883, b"root"))
    return tmp_path / "home"


def bridge(home: Path, **given: Any) -> Bridge:
    return Bridge(read_config(home), home.parent / "etc", **given)


def test_it_is_a_session_of_its_own_with_the_devices_topics(home: Path) -> None:
    conf = bridge(home, name="b1", publish=("devices/{id}/up/#", "x/{id}")).mosquitto().splitlines()
    assert "remote_clientid cam-7/b1" in conf
    assert "addresses fleet.example:8883" in conf
    assert [line for line in conf if line.startswith("topic ")] == [
        "topic devices/cam-7/up/# out 1",
        "topic x/cam-7 out 1",
        "topic devices/cam-7/down/# in 1",
    ]


def test_other_servers_are_tried_too_but_no_websocket(home: Path) -> None:
    file = home / "agent.toml"
    text = file.read_text().replace("[mqtt]\n", '[mqtt]\nservers = ["b.example:1883", "wss://c.example/mqtt"]\n')
    file.write_text(text)
    assert "addresses fleet.example:8883 b.example:1883" in bridge(home).mosquitto()
    file.write_text(text.replace('"b.example:1883", ', "").replace('"fleet.example"', '""'))
    with pytest.raises(BadConfig, match="WebSocket"):
        bridge(home).mosquitto()


def test_installed_twice_is_once(home: Path) -> None:
    before = (home / "agent.toml").read_bytes()
    first = bridge(home, user="daemon", reload=("touch", 'a "file"')).install()
    installed = (home / "agent.toml").read_bytes()
    assert bridge(home, user="daemon", reload=("touch", 'a "file"')).install() == first
    assert (home / "agent.toml").read_bytes() == installed
    assert installed.startswith(before)
    etc = home.parent / "etc"
    (hook,) = first.hooks
    assert (hook.name, hook.run) == ("bridge-bridge", ("touch", 'a "file"'))
    assert hook.copies == (
        Copy("anchors", etc / "ca.pem", "pem", 0o644, "daemon"),
        Copy("chain", etc / "cert.pem", "pem", 0o644, "daemon"),
        Copy("key", etc / "key.pem", "pem", 0o600, "daemon"),
    )
    assert (etc / "bridge.conf").stat().st_mode & 0o777 == 0o644
    with pytest.raises(BadConfig, match="no user 'no-such-user'"):
        bridge(home, user="no-such-user").install()
    assert (home / "agent.toml").read_bytes() == installed
    (home / "agent.toml").write_bytes(installed.replace(b"# bridge-bridge, written by", b"# by hand, not by"))
    with pytest.raises(BadConfig, match="another hook"):
        bridge(home, user="daemon").install()


def test_the_same_name_again_replaces_its_own_and_it_can_be_removed(home: Path) -> None:
    file = home / "agent.toml"
    before = file.read_text()
    other = Bridge(read_config(home), home.parent / "etc2", "other", "daemon")
    other.install()
    bridge(home, user="daemon").install()
    file.write_text(f'{file.read_text()}\n[[hook]]\nname = "mine"\nrun = ["true"]\n')
    changed = bridge(home, user="", reload=("true",)).install()
    assert [(hook.name, hook.run) for hook in changed.hooks] == [
        ("bridge-other", ()),
        ("mine", ("true",)),
        ("bridge-bridge", ("true",)),
    ]
    made = bridge(home)
    etc = home.parent / "etc"
    assert {copy.to for copy in made.remove()} == {
        etc / name for name in ("ca.pem", "cert.pem", "key.pem", "bridge.conf")
    }
    bridge(home, name="other").remove()
    with pytest.raises(BadConfig, match="no bridge named 'bridge'"):
        bridge(home).remove()
    assert [hook.name for hook in read_config(home).hooks] == ["mine"]
    assert file.read_text().startswith(before.rstrip())


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "a\nremote_username x"},
        {"name": "x" * 65},
        {"publish": ("a/#/b",)},
        {"publish": ("a\nb",)},
        {"subscribe": ("a b",)},
    ],
)
def test_what_cannot_stand_in_it_is_refused_and_nothing_is_written(home: Path, given: dict[str, Any]) -> None:
    before = (home / "agent.toml").read_bytes()
    with pytest.raises(BadConfig):
        bridge(home, **given).install()
    with pytest.raises(BadConfig, match="cannot stand"):
        Bridge(read_config(home), Path("/a\nb")).install()
    assert (home / "agent.toml").read_bytes() == before
    assert not (home.parent / "etc").exists()


def test_a_hook_that_agent_toml_cannot_take_is_taken_back(home: Path) -> None:
    file = home / "agent.toml"
    to = home.parent / "etc" / "key.pem"
    file.write_text(f'{file.read_text()}[[hook]]\nname = "x"\n[[hook.copy]]\ncontent = "key"\nto = "{to}"\n')
    before = file.read_bytes()
    with pytest.raises(BadConfig, match="two copies"):
        bridge(home).install()
    assert file.read_bytes() == before
