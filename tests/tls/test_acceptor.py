"""Accepting connections: many in one turn, and what happens without a descriptor."""

import asyncio
import errno
import socket
from typing import Any, cast

import pytest

from fleet.tls import acceptor as module
from fleet.tls.acceptor import Acceptor
from tests.tls.stage import Bell
from tests.waiting import PATIENCE_SECONDS


class Accepted(asyncio.Protocol):
    def __init__(self, made: list[asyncio.Transport], bell: Bell) -> None:
        self._made, self._bell = made, bell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.append(cast(asyncio.Transport, transport))
        self._bell.ring()


async def test_a_burst_is_accepted_in_few_turns_of_the_loop() -> None:
    made, bell, turns = list[asyncio.Transport](), Bell(), 0
    acceptor = Acceptor(lambda: Accepted(made, bell), 256, lambda error: None)
    await acceptor.start("127.0.0.1", 0, reuse_port=False)
    clients = [socket.create_connection(acceptor.addresses[0], PATIENCE_SECONDS) for _ in range(200)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(made) < 200:
            await asyncio.sleep(0)
            turns += 1
    assert turns < 50
    assert all(
        transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for transport in made
    )
    acceptor.close()
    acceptor.close()
    assert acceptor.addresses == ()
    for client, transport in zip(clients, made, strict=True):
        client.close()
        transport.close()


async def test_without_a_descriptor_it_says_so_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.02)
    made, bell, told = list[asyncio.Transport](), Bell(), list[int | None]()
    acceptor = Acceptor(lambda: Accepted(made, bell), 16, lambda error: told.append(error.errno))
    await acceptor.start("127.0.0.1", 0, reuse_port=False)
    (listening,) = acceptor._sockets

    class Exhausted:
        """The listening socket, twice without a descriptor."""

        def accept(self) -> Any:
            if len(told) < 2:
                raise OSError(errno.EMFILE, "Too many open files")
            return listening.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(listening, name)

    asyncio.get_running_loop().remove_reader(listening)
    exhausted: Any = Exhausted()
    acceptor._sockets[:] = [exhausted]
    asyncio.get_running_loop().add_reader(listening, acceptor._accept, exhausted)
    client = socket.create_connection(acceptor.addresses[0], PATIENCE_SECONDS)
    await bell.until(lambda: made)
    assert told == [errno.EMFILE, errno.EMFILE]
    acceptor.close()
    client.close()
    made[0].close()


async def test_an_address_that_cannot_be_bound_leaves_nothing_open() -> None:
    first, second = (Acceptor(asyncio.Protocol, 16, lambda error: None) for _ in range(2))
    await first.start("127.0.0.1", 0, reuse_port=False)
    with pytest.raises(OSError, match="in use"):
        await second.start(*first.addresses[0], reuse_port=False)
    assert second.addresses == ()
    first.close()
