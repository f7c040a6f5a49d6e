"""Probing a Unix socket leaves nothing behind that could close somebody else's file later."""

import asyncio
import gc
import os
import socket
from pathlib import Path

import pytest
import uvloop

from fleet.servers.gateway.broker.private_socket import connect_unix, private_directory, probe_unix
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_probe_gives_its_number_back_for_good(loop_factory: object, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        async def work() -> None:
            await probe_unix(path)
            with socket.socket() as next_one:  # it gets the number that the probe had
                for _ in range(5):
                    await asyncio.sleep(0)
                gc.collect()
                os.fstat(next_one.fileno())
                next_one.getsockname()

        with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
            runner.run(work())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await probe_unix(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone"))
    with pytest.raises(ConnectionRefusedError):
        await probe_unix(tmp_path / "gone")


def test_a_private_directory_is_made_ours_alone(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b"
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert private_directory(made).stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_file_is_no_private_directory(tmp_path: Path) -> None:
    """It could lead to another user's directory."""
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        private_directory(tmp_path / "link")
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        private_directory(tmp_path / "file")


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError):
        private_directory(tmp_path / "theirs")
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o755


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert private_directory(Path("here")) == tmp_path / "here"


@pytest.mark.parametrize("name", ["d", "d" * 120])  # sockaddr_un holds 108 bytes
async def test_a_socket_is_reached_whatever_the_length_of_its_path(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(directory)
        listener.bind(path.name)
        listener.listen()
        listener.setblocking(False)
        greeted = asyncio.get_running_loop().create_future()

        class Greeting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                greeted.set_result(transport)

        open_before = open_files()
        await probe_unix(path)
        assert open_files() == open_before
        await connect_unix(path, Greeting)
        async with asyncio.timeout(PATIENCE_SECONDS):
            transport = await greeted
        transport.abort()


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        filling = socket.socket(socket.AF_UNIX)
        filling.connect(str(path))
        probe = asyncio.create_task(probe_unix(path))
        done, _ = await asyncio.wait({probe}, timeout=0.05)
        assert not done
        listener.accept()[0].close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await probe
        filling.close()
