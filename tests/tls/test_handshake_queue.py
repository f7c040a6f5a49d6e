"""Whose handshake is begun next, on a loop that the test turns."""

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from fleet.tls import handshake_queue
from fleet.tls.handshake_queue import HandshakeQueue
from fleet.tls.known_blocks import KnownBlocks
from tests.tls.stage import Bell
from tests.tls.test_half_open import Clock
from tests.tls.test_handshake import Accepting, good_client, receive


class Call:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call, self.is_cancelled = call, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop(Clock):
    """What HandshakeQueue uses of an event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.soon: deque[Call] = deque()

    def call_soon(self, call: Callable[[], None]) -> Call:
        self.soon.append(Call(call))
        return self.soon[-1]

    def turn(self) -> bool:
        """One turn of the loop; whether there was anything to do."""
        calls, self.soon = self.soon, deque()
        for call in calls:
            if not call.is_cancelled:
                call.call()
        return bool(calls)


class Entry:
    def __init__(self, begun: list["Entry"], address: str) -> None:
        self.address = address
        self._begun = begun

    def begin(self) -> None:
        self._begun.append(self)


class Door:
    """HandshakeQueue, and who has begun, in that order."""

    def __init__(self) -> None:
        self.loop, self.known = Loop(), KnownBlocks()
        self.queue = HandshakeQueue(cast(Any, self.loop), self.known)
        self.begun: list[Entry] = []

    def come(self, address: str = "192.0.2.1") -> Entry:
        entry = Entry(self.begun, address)
        if self.queue.take(entry):
            self.begun.append(entry)
        return entry

    def finish(self, count: int) -> None:
        for entry in self.begun[:count]:
            self.queue.leave(entry)

    @property
    def addresses(self) -> list[str]:
        return [entry.address for entry in self.begun]


@pytest.fixture
def door() -> Door:
    return Door()


def test_alone_one_begins_at_once(door: Door) -> None:
    for _ in range(3 * handshake_queue.UNDER_WAY_MAX):
        entry = door.come()
        assert door.begun[-1] is entry
        door.queue.leave(entry)
        door.loop.turn()
    assert (door.queue.waiting, door.queue._under_way, +door.queue._by_block) == (0, {}, {})
    door.loop.turn()
    assert not door.loop.turn()


def test_in_one_turn_of_the_loop_few_begin(door: Door) -> None:
    door.known.add("192.0.2.1")
    for _ in range(100):
        door.come()
    assert len(door.begun) == handshake_queue.AT_ONCE_MAX
    door.loop.turn()
    assert len(door.begun) == handshake_queue.AT_ONCE_MAX + handshake_queue.FROM_QUEUE_MAX
    while door.loop.turn():
        pass
    assert (len(door.begun), door.queue.waiting) == (100, 0)


def test_each_address_has_its_turn(door: Door) -> None:
    for number in range(5 * 60):
        door.come(f"203.0.113.{number % 5}")
    before = len(door.begun)
    newcomer = door.come("198.51.100.1")
    door.loop.turn()
    assert newcomer in door.begun[before : before + 6]
    assert len(set(door.addresses[before : before + 6])) == 6


def test_known_addresses_come_first_and_others_come_too(door: Door) -> None:
    door.known.add("192.0.2.1")
    for _ in range(handshake_queue.AT_ONCE_MAX):
        door.come("198.51.100.7")
    strangers = [door.come(f"203.0.113.{number}") for number in range(40)]
    for _ in range(80):
        door.come("192.0.2.1")
    del door.begun[:]
    for _ in range(9):
        door.loop.turn()
    assert door.addresses.count("192.0.2.1") == 64
    assert [entry in door.begun for entry in strangers] == [True] * 8 + [False] * 32


def test_one_address_does_not_take_all_places_and_a_known_one_takes_more(door: Door) -> None:
    door.known.add("192.0.2.1")
    for address in ("203.0.113.1", "192.0.2.1"):
        for _ in range(400):
            door.come(address)
    while door.loop.turn():
        pass
    assert door.addresses.count("203.0.113.1") == handshake_queue.OF_STRANGERS_MAX
    assert door.addresses.count("192.0.2.1") == handshake_queue.OF_KNOWN_MAX
    newcomer = door.come("198.51.100.1")
    door.loop.turn()
    assert newcomer in door.begun
    door.finish(1)
    door.loop.turn()
    assert door.addresses.count("203.0.113.1") == handshake_queue.OF_STRANGERS_MAX + 1


def test_all_come_to_their_turn(door: Door) -> None:
    door.known.add("192.0.2.1")
    for _ in range(10_000):
        door.come()
    while door.queue.waiting:
        assert door.loop.turn()
        assert len(door.queue._under_way) <= handshake_queue.OF_KNOWN_MAX
        for entry in list(door.queue._under_way)[:5]:
            door.queue.leave(entry)
    assert len({id(entry) for entry in door.begun}) == 10_000


def test_who_begins_and_says_nothing_more_keeps_others_waiting_for_a_second(door: Door) -> None:
    for number in range(handshake_queue.UNDER_WAY_MAX):
        door.come(f"203.0.113.{number}")
    while door.loop.turn():
        pass
    newcomer = door.come("198.51.100.1")
    assert not door.loop.turn()  # no loop that does nothing but look
    assert newcomer not in door.begun
    door.loop.advance(1.0)
    door.loop.turn()
    assert newcomer in door.begun


def test_who_leaves_while_it_waits_does_not_begin(door: Door) -> None:
    door.known.add("192.0.2.1")
    for _ in range(handshake_queue.AT_ONCE_MAX):
        door.come()
    first, second = door.come(), door.come()
    door.queue.leave(first)
    door.queue.leave(first)  # a second time does no harm
    door.loop.turn()
    assert (first in door.begun, second in door.begun, door.queue.waiting) == (False, True, 0)


def test_an_address_that_becomes_known_while_it_waits(door: Door) -> None:
    for _ in range(200):
        door.come()
    while door.loop.turn():
        pass
    assert len(door.begun) == handshake_queue.OF_STRANGERS_MAX
    door.known.add("192.0.2.1")
    door.come()
    door.finish(1)
    while door.loop.turn():
        pass
    assert len(door.begun) == handshake_queue.OF_KNOWN_MAX + 1


def test_a_handshake_that_fails_in_an_unexpected_way_does_not_stop_the_others(door: Door) -> None:
    door.known.add("192.0.2.1")
    for _ in range(handshake_queue.AT_ONCE_MAX):
        door.come()
    broken, next_one = door.come(), door.come()

    def fail() -> None:
        raise LookupError

    cast(Any, broken).begin = fail
    with pytest.raises(LookupError):
        door.loop.turn()
    door.loop.turn()
    assert next_one in door.begun


def test_after_close_nobody_begins(door: Door) -> None:
    for _ in range(100):
        door.come()
    begun = len(door.begun)
    door.queue.close()
    while door.loop.turn():
        pass
    door.loop.advance(5.0)
    assert (len(door.begun), door.loop.due) == (begun, [])


async def test_a_handshake_that_waits_is_complete_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake_queue, "AT_ONCE_MAX", 0)
    accepting = Accepting(deadline_s=0.5)
    handshake, raw = accepting.accept()
    client = good_client()
    client.handshake()
    hello = client.take()
    for at in range(0, len(hello), 100):  # as it trickles in
        receive(handshake, hello[at : at + 100])
    assert accepting.listener.stats.handshaking == 1
    assert not raw.sent
    await Bell().until(lambda: raw.sent)
    client.give(raw.sent)
    client.handshake()
    receive(handshake, client.take())
    assert accepting.listener.stats.established == 1
    # What is no TLS is refused in its turn, too.
    handshake, raw = accepting.accept()
    receive(handshake, b"GET / HTTP/1.1\r\n\r\n")
    await Bell().until(lambda: accepting.refused)
    assert accepting.reasons == ["not-tls"]


async def test_who_waits_is_held_to_a_size_and_not_read_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake_queue, "AT_ONCE_MAX", 0)
    accepting = Accepting()
    (first, _), (second, raw) = accepting.accept(), accepting.accept(("192.0.2.8", 4712))
    paused: list[bool] = []
    monkeypatch.setattr(raw, "pause_reading", lambda: paused.append(True))
    receive(first, b"\x16\x03\x01")
    assert len(second.get_buffer(-1)) == 4096
    receive(second, bytes(4096))
    assert paused == [True]
    accepting.listener.close()
