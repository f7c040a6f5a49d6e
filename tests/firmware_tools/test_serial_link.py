"""The port: locked, lost, found again; over a pty and over a TCP port server."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from device_agent.emulated.pty_port import PtyPort, pty_port
from firmware_tools.station.errors import LinkError
from firmware_tools.station.serial_link import REOPEN_SECONDS, SerialLink, ports
from tests.firmware_tools.boards import DEADLINE_SECONDS


def read_from(port: PtyPort, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = port.read(DEADLINE_SECONDS)
        assert data, "nothing arrives"
        received += data
    return received


def read_link(link: SerialLink, size: int) -> bytes:
    received = b""
    while len(received) < size:
        data = link.read(DEADLINE_SECONDS)
        assert data, "nothing arrives"
        received += data
    return received


def test_octets_both_ways(tmp_path: Path) -> None:
    with pty_port(tmp_path / "port") as port, SerialLink(str(tmp_path / "port")) as link:
        link.write(bytes(range(256)))
        assert read_from(port, 256) == bytes(range(256))
        port.write(bytes(range(256)))
        assert read_link(link, 256) == bytes(range(256))
        assert link.read(0.0) == b""
        link.write(b"")


def test_one_station_at_a_time(tmp_path: Path) -> None:
    with pty_port(tmp_path / "port"):
        with SerialLink(str(tmp_path / "port")), pytest.raises(LinkError) as caught:
            SerialLink(str(tmp_path / "port"))
        assert caught.value.code == "port-busy"
        SerialLink(str(tmp_path / "port")).close()  # free again


@pytest.mark.parametrize(
    ("port", "code"),
    [("missing", "port-missing"), ("folder", "port-failed"), ("file", "port-failed"), ("x://y", "port-failed")],
)
def test_no_such_port(tmp_path: Path, port: str, code: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(LinkError) as caught:
        SerialLink(port if "://" in port else str(tmp_path / port))
    assert caught.value.code == code


def test_a_port_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    """As with native USB, when the chip resets: the name goes, and later it leads to another device."""
    name = tmp_path / "port"
    with pty_port(name) as first:
        link = SerialLink(str(name))
        first.write(b"before")
        assert read_link(link, 6) == b"before"
    waited: list[float] = []
    with pty_port(tmp_path / "other") as second:

        def pause(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                name.symlink_to((tmp_path / "other").readlink())

        link._pause = pause
        assert link.read(DEADLINE_SECONDS) == b""  # lost, and open again
        assert link.reopened == 1
        assert len(waited) == 3
        second.write(b"after")
        assert read_link(link, 5) == b"after"
        link.write(b"hello")
        assert read_from(second, 5) == b"hello"
        link.close()


def test_a_port_that_stays_away(tmp_path: Path) -> None:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    with pty_port(tmp_path / "port"):
        link = SerialLink(str(tmp_path / "port"), monotonic=lambda: now[0], pause=pause)
    with pytest.raises(LinkError) as caught:
        link.read(DEADLINE_SECONDS)
    assert caught.value.code == "port-lost"
    assert now[0] >= REOPEN_SECONDS
    with pytest.raises(LinkError):
        link.write(b"hello")


def test_a_port_behind_a_port_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100).upper())

        thread = threading.Thread(target=echo)
        thread.start()
        with SerialLink(f"socket://127.0.0.1:{server.getsockname()[1]}") as link:
            link.write(b"hello")
            assert read_link(link, 5) == b"HELLO"
        thread.join(DEADLINE_SECONDS)


def test_each_port_has_the_same_keys() -> None:
    for port in ports():
        assert set(port) == {"port", "description", "usb", "usb_serial"}


def test_a_port_that_may_not_be_opened(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open anything")
    (tmp_path / "port").touch(mode=0)
    with pytest.raises(LinkError, match="may not be opened") as caught:
        SerialLink(str(tmp_path / "port"))
    assert caught.value.__cause__ is not None
    assert getattr(caught.value.__cause__, "errno", None) == errno.EACCES
