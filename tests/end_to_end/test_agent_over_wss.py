"""The agent at the gateway's own listener for MQTT over WebSocket: a device's life by wss alone, and as the way out."""

import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.addresses import Address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.home.layout import Home
from tests.end_to_end.apps_fixtures import Backend
from tests.end_to_end.live_device import LiveDevice
from tests.end_to_end.test_device_apps import Command
from tests.serving import Served, run_fleet


@pytest.fixture(scope="module")
def served(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    home = Path(shutil.copytree(pristine_home, folder / "home", symlinks=True))
    settings = Home(home).settings_file
    settings.write_text(render(replace(read_settings(settings), wss=Address("127.0.0.1", 0))))
    serving = Served(home, folder / "ready.json").start()
    yield serving
    serving.stop()


class Passage:
    """A port that leads to another one, until it is closed with all its connections."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._target, self._open = target, [self._listening]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            self.connections += 1
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):  # closed by the other end
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def uses(device: LiveDevice, *, port: int, others: str = "[]") -> None:
    """Its settings name the MQTT servers: the first by its port, 0 for none, then `others`."""
    file = device.home / "agent.toml"
    text = re.sub(r"(?m)^host = .*$", f'host = "{"127.0.0.1" if port else ""}"', file.read_text())
    text = re.sub(r"(?m)^port = .*$", f"port = {port or 8883}", text)
    text, found = re.subn(r"(?m)^# servers = .*wss:.*$", f"servers = {others}", text)
    assert found == 1
    file.write_text(text)


def at(port: int) -> str:
    return json.dumps([f"wss://127.0.0.1:{port}/mqtt"])


def test_it_enrolls_publishes_receives_and_renews_over_wss_alone(served: Served, tmp_path: Path) -> None:
    device = LiveDevice(served, tmp_path, "wss-1")
    uses(device, port=0, others=at(served.address("wss")[1]))  # and no other server
    device.run()
    up, down = (f"devices/{device.name}/{way}/t" for way in ("up", "down"))
    try:
        with Backend(served.home, up) as backend:
            for certificate in ("the first", "the next"):
                device.call("send", up, certificate, "--wait")
                assert backend.next().payload == certificate.encode()
                command = Command(device, "subscribe", down, "--count", "1", "--keep", "0")
                command.has_subscribed()
                backend.publish(down, certificate.encode())
                assert command.output() == f"{down} {certificate}\n"
                device.call("renew")
        shown = json.loads(run_fleet(served.home, "device", "show", device.name, "-o", "json"))
        assert [each["state"] for each in shown["certificates"]] == ["superseded", "superseded", "active"]
    finally:
        device.stop()


def test_it_goes_on_by_wss_where_the_mqtts_port_is_closed(served: Served, tmp_path: Path) -> None:
    mqtts, wss = Passage(served.address("mqtt")), Passage(served.address("wss"))
    device = LiveDevice(served, tmp_path, "wss-2")
    uses(device, port=mqtts.port, others=at(wss.port))
    agent = device.run()
    try:
        assert (mqtts.connections, wss.connections) == (1, 0)
        seen = len(agent.lines)
        mqtts.close()
        agent.wait_for(lambda line: " connected " in line, "that it is back", since=seen)
        assert wss.connections == 1
        log = "".join(line for _, line in agent.lines[seen:])  # says which of them
        assert f" server=127.0.0.1:{mqtts.port} cause=network" in log
        assert f" server=wss://127.0.0.1:{wss.port}/mqtt " in log
        device.call("send", f"devices/{device.name}/up/t", "by wss", "--wait")
        device.call("renew")
        assert wss.connections == 2  # the new certificate is proven where the session is
    finally:
        device.stop()
        mqtts.close()
        wss.close()
