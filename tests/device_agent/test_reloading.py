"""SIGHUP: agent.toml and ca.pem are read again by the running agent, whole or not at all, and no message is lost."""

import os
import re
import signal
import ssl
import threading
from pathlib import Path

import pytest

from device_agent.config.agent_config import read_config
from device_agent.loop.reloading import Settings
from fleet.est_client.errors import BadConfig
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.test_runner import CONNACK_5, home_at, put, run_until
from tests.device_agent.wild_servers import read_packet, tls_server

KEEPALIVE = re.compile(rb"\x00\x04MQTT\x05.(..)", re.DOTALL)  # of a CONNECT


def edit(home: Path, old: str, new: str) -> None:
    file = home / "agent.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_another_setting_of_the_connection_is_used_by_the_next_one(authority: Authority, tmp_path: Path) -> None:
    """A reload that fails leaves the connection as it is; one that changes it comes in by a new one."""
    home, keepalives, failed = tmp_path / "a home", list[int](), threading.Event()

    def behave(stream: ssl.SSLSocket) -> None:
        found = KEEPALIVE.search(read_packet(stream))
        assert found
        keepalives.append(int.from_bytes(found[1]))
        stream.sendall(CONNACK_5)
        read_packet(stream)

    def said(text: str) -> bool:
        if " connected " in text and not failed.is_set():
            failed.set()
            edit(home, "keepalive_seconds = 60", "keepalive_seconds = sixty")
            os.kill(os.getpid(), signal.SIGHUP)
        elif text.count("reload-failed") == 1 and "keepalive_seconds = sixty" in (home / "agent.toml").read_text():
            edit(home, "keepalive_seconds = sixty", "keepalive_seconds = 90")
            os.kill(os.getpid(), signal.SIGHUP)
        return text.count(" connected ") == 2

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        log = run_until(home, said)
    assert keepalives == [60, 90]
    assert [word for word in re.findall(r"Z (\S+)", log) if word.startswith(("reload", "connected"))] == [
        "connected",
        "reloading",
        "reload-failed",
        "reloading",
        "reloaded",
        "connected",
    ]


def test_what_needs_no_other_connection_keeps_it(authority: Authority, tmp_path: Path) -> None:
    home = tmp_path / "a home"

    def behave(stream: ssl.SSLSocket) -> None:
        read_packet(stream)
        stream.sendall(CONNACK_5)
        read_packet(stream)  # SUBSCRIBE for the fleet's commands
        read_packet(stream)

    def said(text: str) -> bool:
        if text.endswith("session=new\n"):
            edit(home, "at_fraction = 0.667", "at_fraction = 0.5")
            os.kill(os.getpid(), signal.SIGHUP)
        return " reloaded reconnects=" in text

    with tls_server(authority, behave) as port:
        store = home_at(tmp_path, authority, port)
        store.promote(put(store, authority))
        log = run_until(home, said)
    assert log.count(" connected ") == 1
    assert "disconnected" not in log


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('device_id = "cam-7"', 'device_id = "cam-8"', "restart"),
        ("messages_max = 1000", "messages_max = 7", "restart"),
        ('ca_file = "ca.pem"', 'ca_file = "none.pem"', "none.pem"),
        ("[renewal]", "[renew", "agent.toml"),
    ],
)
def test_what_cannot_be_reloaded_changes_nothing(
    authority: Authority, tmp_path: Path, old: str, new: str, why: str
) -> None:
    home_at(tmp_path, authority, 1)
    home = tmp_path / "a home"
    settings = Settings(read_config(home))
    before = settings.config
    edit(home, old, new)
    with pytest.raises(BadConfig, match=why):
        settings.reload()
    assert settings.config == before
    edit(home, new, old)
    assert settings.reload() is False


def test_another_anchor_is_a_reason_to_connect_again(authority: Authority, tmp_path: Path) -> None:
    home_at(tmp_path, authority, 1)
    home = tmp_path / "a home"
    settings = Settings(read_config(home))
    (home / "ca.pem").write_bytes(authority.ca_file.read_bytes() * 2)
    assert settings.reload() is True
    assert settings.reload() is False
    (home / "ca.pem").write_bytes(b"hello")
    with pytest.raises(BadConfig):
        settings.reload()
