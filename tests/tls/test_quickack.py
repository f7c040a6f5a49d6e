"""QuickAcks: only who has said nothing and is still there is acknowledged early."""

import asyncio
import socket
from typing import Any, cast

from fleet.tls.quickack import QuickAcks
from fleet.tls.transport import TlsTransport

DEADLINE_S = 120.0


class Watched:
    """What QuickAcks sees of a transport, and what it asks of its socket."""

    def __init__(self, *, has_received_data: bool = False, closing: bool = False) -> None:
        self.has_received_data = has_received_data
        self.closing = closing
        self.asked: list[tuple[int, int, int]] = []
        self.acknowledged = asyncio.Event()

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> "Watched":
        assert name == "socket"
        return self

    def setsockopt(self, *words: int) -> None:
        self.asked.append(cast(Any, words))
        self.acknowledged.set()


def watch(silent: QuickAcks, watched: Watched) -> None:
    silent.watch(cast(TlsTransport, watched))


async def test_only_the_silent_ones_are_acknowledged() -> None:
    silent = QuickAcks(asyncio.get_running_loop())
    talker, closing, gone, quiet = Watched(has_received_data=True), Watched(closing=True), Watched(), Watched()
    for each in (talker, closing, gone, quiet):
        watch(silent, each)
    silent.forget(cast(TlsTransport, gone))
    async with asyncio.timeout(DEADLINE_S):
        await quiet.acknowledged.wait()
    assert quiet.asked == [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)]
    assert talker.asked == closing.asked == gone.asked == []


async def test_it_looks_again_for_those_who_come_later() -> None:
    silent = QuickAcks(asyncio.get_running_loop())
    for _ in range(2):
        quiet = Watched()
        watch(silent, quiet)
        async with asyncio.timeout(DEADLINE_S):
            await quiet.acknowledged.wait()
    silent.close()
