"""Who may use the socket: settings, rights, and a process of another user."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from device_agent.apps.access import Access, Rights, socket_gid
from device_agent.apps.control_server import CLIENTS_OF_USER_MAX, Client, ControlServer, Exchange, Peer
from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.config.apps import AppRule, AppsConfig
from fleet.est_client.errors import BadConfig
from tests.device_agent.apps.test_control_server import serve

NOBODY = 65534
RULES = AppsConfig(
    clients=(
        AppRule(NOBODY, None, ("devices/{id}/up/#",), ("devices/{id}/down/x/#",)),
        AppRule(None, 4711, ("devices/{id}/alarm",)),
    )
)


def test_the_owner_may_everything_and_who_is_not_listed_nothing() -> None:
    access = Access(RULES, "cam-7")
    assert access.rights(Peer(os.geteuid(), 0)) == access.rights(Peer(0, 0)) == Rights(owner=True, listed=True)
    assert access.rights(Peer(4242, 4242)) == Rights()
    assert not access.rights(Peer(4242, 4242)).may_publish("devices/cam-7/up/x")


def test_rights_are_those_of_the_user_and_of_its_groups() -> None:
    access = Access(RULES, "cam-7")
    sensor, in_group = access.rights(Peer(NOBODY, 1)), access.rights(Peer(4242, 4711))
    assert sensor.may_publish("devices/cam-7/up/x")
    assert not sensor.may_publish("devices/cam-8/up/x")
    assert not sensor.may_publish("devices/cam-7/alarm")
    assert sensor.may_subscribe("devices/cam-7/down/x/+")
    assert not sensor.may_subscribe("devices/cam-7/down/#")
    assert in_group.may_publish("devices/cam-7/alarm")
    assert access.rights(Peer(NOBODY, 4711)).publish == ("devices/cam-7/up/#", "devices/cam-7/alarm")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apps = 1", "apps must be a table"),
        ("[apps]\ngroups = 1", "no setting 'apps.groups'"),
        ("[apps]\ngroup = true", "apps.group must be"),
        ('[apps]\ngroup = ""', "apps.group must be"),
        ("[apps]\nclient = 1", "apps.client must be"),
        ("[apps]\nclient = [1]", "apps.client must be tables"),
        ("[[apps.client]]\npublish = []", "needs a user or a group"),
        ("[[apps.client]]\nuser = 1\nread = []", "no setting 'apps.client.read'"),
        ("[[apps.client]]\nuser = 1.5", "apps.client.user must be"),
        ("[[apps.client]]\nuser = -1", "apps.client.user must be"),
        ('[[apps.client]]\nuser = 1\npublish = "a"', "apps.client.publish must be"),
        ("[[apps.client]]\nuser = 1\npublish = [1]", "apps.client.publish must be"),
        ('[[apps.client]]\nuser = 1\nsubscribe = ["a/#/b"]', "apps.client.subscribe: 'a/#/b' is not a topic filter"),
        ('[[apps.client]]\nuser = 1\nsubscribe = ["a\\n"]', "is not a topic filter"),
    ],
)
def test_a_setting_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write_config(tmp_path / "home", NewHome("cam-7", "https://localhost", "localhost", 8883, b""))
    before, after = (text, "") if text.startswith("apps") else ("", text)
    path.write_text(f"{before}\n{path.read_text()}{after}")
    with pytest.raises(BadConfig, match=r"agent\.toml: ") as caught:
        read_config(tmp_path / "home")
    assert said in caught.value.message


def test_settings_are_read(tmp_path: Path) -> None:
    path = write_config(tmp_path / "home", NewHome("cam-7", "https://localhost", "localhost", 8883, b""))
    assert read_config(tmp_path / "home").apps == AppsConfig()
    path.write_text(path.read_text() + '[apps]\ngroup = "root"\n[[apps.client]]\nuser = "root"\npublish = ["{id}/#"]\n')
    apps = read_config(tmp_path / "home").apps
    assert apps == AppsConfig("root", (AppRule("root", None, ("{id}/#",)),))
    assert socket_gid(AppsConfig(os.getegid())) == os.getegid()
    for unknown in (AppsConfig("no-such-group"), AppsConfig(clients=(AppRule("no-such-user", None),))):
        with pytest.raises(BadConfig, match="on this system"):
            socket_gid(unknown)
            Access(unknown, "cam-7")


def as_nobody(home: Path, count: int) -> list[Any]:
    """What a process of another user, in the socket's group, is told on each of its connections."""
    descriptor = os.open(home, os.O_PATH)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest's may run here
        try:
            os.setgroups([])
            os.setgid(4711)
            os.setuid(NOBODY)
            connections = []
            answers = []
            for number in range(count):
                connections.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                connections[-1].settimeout(60)
                connections[-1].connect(f"/proc/self/fd/{descriptor}/agent.sock")
                if number < CLIENTS_OF_USER_MAX:
                    connections[-1].sendall(b'{"do": "who"}\n')
                answers.append(json.loads(connections[-1].recv(4096)))
            os.write(writer, json.dumps(answers).encode())
        except BaseException as error:
            os.write(writer, json.dumps([repr(error)]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    os.close(descriptor)
    return list(json.loads(said))


def who(exchange: Exchange, _: dict[str, Any]) -> None:
    exchange.answer(uid=exchange.client.peer.uid, gid=exchange.client.peer.gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_the_group_may_open_the_socket_and_one_user_not_every_connection(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    gone: list[Client] = []
    with serve(ControlServer(home, {"who": who}, gone.append, gid=4711)):
        answers = as_nobody(home, CLIENTS_OF_USER_MAX + 1)
    assert answers[:-1] == [{"ok": True, "uid": NOBODY, "gid": 4711}] * CLIENTS_OF_USER_MAX
    assert "connections already" in answers[-1]["message"]
    assert (home.stat().st_mode & 0o777, home.stat().st_gid) == (0o710, 4711)
    with serve(ControlServer(home, {"who": who})):
        assert "Permission" in as_nobody(home, 1)[0]
