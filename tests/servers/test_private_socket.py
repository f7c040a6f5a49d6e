"""Probing a Unix socket leaves nothing behind that could close somebody else's file later."""

import asyncio
import gc
import os
import socket
from pathlib import Path

import pytest
import uvloop

from fleet.servers.gateway.private_socket import probe_unix


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


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await probe_unix(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone"))
    with pytest.raises(ConnectionRefusedError):
        await probe_unix(tmp_path / "gone")
