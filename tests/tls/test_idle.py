"""Which connection is ended for a newcomer's, and that it is found without looking at all of them."""

from collections.abc import Callable

import pytest

from fleet.domain.peer import Peer
from fleet.tls.errors import Refusal
from fleet.tls.idle import OnIdle
from fleet.tls.listener import Listener, ListenerLimits
from fleet.tls.plain import PlainConnection
from tests.call_counts import calls
from tests.tls.stage import Recorder
from tests.tls.test_handshake import Socket
from tests.tls.test_listener_counts import leave

MINE, OTHERS = "192.0.2.7", "192.0.2.8"


class Working(Recorder):
    """An application that is busy until `on_idle` is called."""

    def watch_idle(self, on_idle: OnIdle) -> None:
        self.on_idle = on_idle


class Full:
    """A listener without TLS that has as many connections as it takes, all of one address."""

    def __init__(self, count: int) -> None:
        self.applications: list[Working] = []
        self.refused: list[tuple[str, str]] = []
        limits = ListenerLimits(connected_max=count)
        self.listener = Listener(self._make, None, limits, lambda *refusal: self.refused.append(refusal))
        self.raws = [self.connect(MINE) for _ in range(count)]

    def _make(self, peer: Peer) -> Working:
        self.applications.append(Working(peer))
        return self.applications[-1]

    def connect(self, address: str) -> Socket:
        raw = Socket((address, 4711))
        raw.protocol = PlainConnection(self.listener)
        raw.protocol.connection_made(raw)
        return raw

    @property
    def ended(self) -> list[int]:
        return [number for number, raw in enumerate(self.raws) if raw.ends]


def _all_busy(full: Full) -> None: ...


def _last_idle(full: Full) -> None:
    full.applications[-1].on_idle(True)


def _all_idle(full: Full) -> None:
    for application in full.applications:
        application.on_idle(True)


@pytest.mark.parametrize("prepare", [_all_busy, _last_idle, _all_idle])
async def test_a_newcomer_to_a_full_listener_costs_the_same_however_many_are_connected(
    prepare: Callable[[Full], None],
) -> None:
    """Each of them was asked, for each newcomer: with 4,000, seconds of the event loop for those of one turn."""
    few, many = Full(10), Full(400)
    for full in (few, many):
        prepare(full)
    assert calls(lambda: few.connect(OTHERS)) == calls(lambda: many.connect(OTHERS))


async def test_the_connection_that_has_been_idle_for_longest_gives_way() -> None:
    full = Full(4)
    for number in (2, 0, 1):
        full.applications[number].on_idle(True)
    full.applications[2].on_idle(False)
    full.connect(OTHERS)
    assert full.ended == [0]
    full.applications[2].on_idle(True)
    full.connect(OTHERS)
    assert full.ended == [0, 1]
    full.connect(OTHERS)
    assert full.ended == [0, 1, 2]
    assert full.connect(OTHERS).ends == ["abort"]  # two are busy, and nobody else holds more
    assert full.refused == [(MINE, Refusal.GAVE_WAY)] * 3 + [(OTHERS, Refusal.CONNECTED_CAP)]


async def test_connections_without_a_certificate_give_way_first() -> None:
    full = Full(0)
    listener = full.listener
    listener.set_limits(ListenerLimits(connected_max=3))
    raws = []
    for certificate in (b"a certificate", None, None):
        raw = Socket((MINE, 4711))
        connection = PlainConnection(listener)
        connection._raw, connection.peer = raw, Peer(MINE, certificate)
        listener.establish(connection, b"")
        raws.append(raw)
    _all_idle(full)
    for number, ended in enumerate(([1], [1, 2], [0, 1, 2])):
        full.connect(f"198.51.100.{number}")
        assert [number for number, raw in enumerate(raws) if raw.ends] == ended


async def test_what_has_given_way_or_ended_does_not_give_way_again() -> None:
    full = Full(2)
    full.applications[0].on_idle(True)
    full.connect(OTHERS)
    full.applications[0].on_idle(False)
    full.applications[0].on_idle(True)  # its end is not known to it yet
    assert full.connect(OTHERS).ends == ["abort"]
    leave(full.raws[0])
    full.applications[1].on_idle(True)
    leave(full.raws[1])
    assert full.connect(OTHERS).ends == []
    assert full.listener.stats.connected == 2
    assert full.connect(OTHERS).ends == ["abort"]


async def test_no_connection_gives_way_for_one_of_another_address_while_the_biggest_holder_is_busy() -> None:
    full = Full(3)
    full.applications[0].on_idle(True)
    other = full.connect(OTHERS)
    full.applications[-1].on_idle(True)
    newcomer = full.connect("192.0.2.9")
    assert (other.ends, newcomer.ends) == ([], ["abort"])
