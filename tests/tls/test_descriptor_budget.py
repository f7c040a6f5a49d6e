"""Descriptors that several listeners share."""

from typing import Any

import pytest

from fleet.tls.descriptor_budget import DescriptorBudget
from fleet.tls.errors import Refusal
from tests.tls.test_handshake import Accepting
from tests.tls.test_listener_counts import Waiting, connect, leave


class Sharers:
    def __init__(self, total: int) -> None:
        self.full = 0
        self.descriptor_budget = DescriptorBudget(total, self._count)
        self.mqtt, self.http = self._listener(2), self._listener(1)
        self.http.listener._protocol_factory = Waiting

    def _listener(self, each: int, **limits: Any) -> Accepting:
        return Accepting(descriptor_budget=self.descriptor_budget, descriptors_each=each, **limits)

    def _count(self) -> None:
        self.full += 1


async def test_each_listener_counts_what_its_connections_take() -> None:
    sharers = Sharers(10)
    sharers.mqtt.accept()
    raw = connect(sharers.mqtt)
    connect(sharers.http)
    assert (sharers.descriptor_budget.taken, sharers.full) == (5, 0)
    leave(raw)
    assert sharers.descriptor_budget.taken == 3


async def test_a_newcomer_gets_the_place_of_strangers_at_another_listener() -> None:
    sharers = Sharers(10)
    session = connect(sharers.mqtt, "192.0.2.1")
    strangers = [sharers.http.accept((f"203.0.113.{number % 4}", 1))[1] for number in range(8)]
    assert sharers.descriptor_budget.taken == 10
    newcomer = connect(sharers.mqtt, "192.0.2.2")
    assert (newcomer.ends, session.ends) == ([], [])
    assert [raw.ends for raw in strangers[:3]] == [["abort"], ["abort"], []]
    assert (sharers.descriptor_budget.taken, sharers.full) == (10, 2)


async def test_a_stranger_whose_address_holds_most_is_refused_and_takes_nobodys_place() -> None:
    sharers = Sharers(10)
    session, (_, handshaking) = connect(sharers.mqtt, "192.0.2.1"), sharers.mqtt.accept(("192.0.2.2", 1))
    strangers = [sharers.http.accept(("203.0.113.1", 1))[1] for _ in range(7)]
    assert [raw.ends for raw in strangers] == [[]] * 6 + [["abort"]]
    assert sharers.http.reasons == [Refusal.NO_DESCRIPTOR]
    assert (session.ends, handshaking.ends) == ([], [])


async def test_idle_connections_give_way_and_sessions_do_not() -> None:
    sharers = Sharers(6)
    session = connect(sharers.mqtt, "192.0.2.1")
    idle = [connect(sharers.http, "203.0.113.1") for _ in range(4)]
    newcomer = connect(sharers.mqtt, "192.0.2.2")
    assert [raw.ends for raw in idle] == [["abort"], ["abort"], [], []]
    assert (session.ends, newcomer.ends) == ([], [])
    last = connect(sharers.mqtt, "192.0.2.3")
    assert [raw.ends for raw in idle] == [["abort"]] * 4
    assert last.ends == []
    assert sharers.mqtt.accept(("192.0.2.4", 1))[1].ends == ["abort"]  # sessions only: nobody gives way
    assert sharers.mqtt.reasons == [Refusal.NO_DESCRIPTOR]


@pytest.mark.parametrize("total", [0, 1])
async def test_where_there_is_no_place_at_all_everybody_is_refused(total: int) -> None:
    sharers = Sharers(total)
    assert sharers.mqtt.accept()[1].ends == ["abort"]
    assert sharers.descriptor_budget.taken == 0
