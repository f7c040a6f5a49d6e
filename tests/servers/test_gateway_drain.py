"""Sessions are ended one after the other, spread evenly over the time given, and between packets."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from fleet.servers.gateway.close_reasons import SERVER_RESTARTING, CloseReason, shutting_down
from fleet.servers.gateway.session import drain as session_drain
from fleet.servers.gateway.session.phases import Phase
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.session.session import Session
from fleet.wire.mqtt.codes import Reason
from fleet.wire.mqtt.fields import Fields
from fleet.wire.mqtt.properties import Property, decode_properties
from tests import simulated_time

SECONDS = 8.0
TICK_SECONDS = 0.25  # binary fractions: shares of the time are exact


@dataclass(eq=False)
class Relaying:
    sessions: "SessionRegistry[Relaying]"
    is_between_packets: bool = True
    is_stuck: bool = False
    phase: Phase = Phase.RELAYING
    closed_at: float | None = None
    reasons: list[CloseReason] = field(default_factory=list)

    def close(self, reason: CloseReason) -> None:
        self.closed_at = asyncio.get_running_loop().time()
        self.reasons.append(reason)
        self.sessions.remove(self, None, "")


@pytest.fixture(autouse=True)
def exact_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_drain, "TICK_SECONDS", TICK_SECONDS)


def begun(sessions: "SessionRegistry[Relaying]", count: int) -> "list[Relaying]":
    made = [Relaying(sessions) for _ in range(count)]
    for each in made:
        sessions.add(each, None)
    return made


def drained(sessions: "SessionRegistry[Relaying]", later: dict[float, Callable[[], object]] | None = None) -> float:
    """Drains them in simulated time, while `later` happens; when that began."""

    async def drain_them() -> float:
        loop = asyncio.get_running_loop()
        for seconds, happen in (later or {}).items():
            loop.call_later(seconds, happen)
        began = loop.time()
        await session_drain.drain(cast("SessionRegistry[Session]", sessions), SECONDS, SERVER_RESTARTING)
        assert loop.time() - began == SECONDS
        return began

    return simulated_time.run(drain_them())


def ends_of(relaying: "list[Relaying]", began: float) -> dict[float, int]:
    """How many ended when."""
    return Counter(each.closed_at - began for each in relaying if each.closed_at is not None)


def test_they_are_spread_evenly() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    relaying = begun(sessions, 64)
    began = drained(sessions)
    assert ends_of(relaying, began) == {(n + 1) * TICK_SECONDS: 2 for n in range(32)}
    assert [each.reasons for each in relaying] == [[SERVER_RESTARTING]] * 64
    assert len(sessions) == 0


def test_those_that_begin_meanwhile_are_spread_over_what_is_left() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    relaying = begun(sessions, 64)
    began = drained(sessions, {4.125: lambda: relaying.extend(begun(sessions, 32))})
    early, late = (
        {(n + 1) * TICK_SECONDS: count for n in half} for half, count in ((range(16), 2), (range(16, 32), 4))
    )
    assert ends_of(relaying, began) == early | late
    assert len(sessions) == 0


def test_one_in_the_midst_of_a_packet_is_left_until_it_is_not() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    for_all, for_a_while = begun(sessions, 2)
    for_all.is_between_packets = for_a_while.is_between_packets = False
    began = drained(sessions, {6.125: lambda: setattr(for_a_while, "is_between_packets", True)})
    assert ends_of([for_a_while], began) == {6.25: 1}
    assert (for_all.closed_at, len(sessions)) == (None, 1)


def test_what_is_left_ends_when_it_can_and_what_does_not_read_at_once() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    slow, deaf = relaying = begun(sessions, 2)
    slow.is_between_packets = deaf.is_between_packets = False
    deaf.is_stuck = True

    async def drain_them() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(SECONDS + 2.125, lambda: setattr(slow, "is_between_packets", True))
        began = loop.time()
        await session_drain.drain_wholly(cast("SessionRegistry[Session]", sessions), SECONDS, SERVER_RESTARTING)
        return began

    began = simulated_time.run(drain_them())
    assert ends_of(relaying, began) == {SECONDS: 1, SECONDS + 2.25: 1}
    assert deaf.closed_at == began + SECONDS
    assert len(sessions) == 0


def test_one_whose_packet_has_no_end_is_cut_and_one_that_connects_is_not() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    trickles, connects = relaying = begun(sessions, 2)
    trickles.is_between_packets = connects.is_between_packets = False
    connects.phase = Phase.CONNECTING

    async def drain_them() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(SECONDS + 9.125, lambda: setattr(connects, "is_between_packets", True))
        began = loop.time()
        await session_drain.drain_wholly(cast("SessionRegistry[Session]", sessions), SECONDS, SERVER_RESTARTING)
        return began

    began = simulated_time.run(drain_them())
    assert trickles.closed_at == began + SECONDS + session_drain.PACKET_SECONDS_MAX
    assert ends_of(relaying, began)[SECONDS + 9.25] == 1


async def test_without_time_they_end_at_once() -> None:
    sessions: SessionRegistry[Relaying] = SessionRegistry()
    [session] = begun(sessions, 1)
    await session_drain.drain(cast("SessionRegistry[Session]", sessions), 0.0, SERVER_RESTARTING)
    assert session.reasons == [SERVER_RESTARTING]


def test_another_server_is_named_in_disconnect() -> None:
    assert shutting_down("").packet("")[2:] == bytes((Reason.SERVER_SHUTTING_DOWN,))
    packet = shutting_down("b.example:8883").packet("Elsewhere.")
    assert packet[1] == len(packet) - 2
    assert packet[2] == Reason.USE_ANOTHER_SERVER
    properties = decode_properties(Fields(packet[2:], 1))
    assert dict(properties) == {Property.SERVER_REFERENCE: "b.example:8883", Property.REASON_STRING: "Elsewhere."}
