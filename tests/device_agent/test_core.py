"""The agent's decisions, one by one: no clock, no socket."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from device_agent import core
from device_agent.core import Link, Phase, Role, View, decide
from fleet.est_client.validity import Lifetime

NOW = datetime(2026, 1, 15, tzinfo=UTC)
MONOTONIC = 1000.0
GOOD = Lifetime(NOW - timedelta(days=10), NOW + timedelta(days=20))
OLD = Lifetime(NOW - timedelta(days=40), NOW - timedelta(days=1))

IDLE = View(
    current=GOOD,
    candidate=None,
    link=Link.UP,
    link_uses=Role.CURRENT,
    phase=Phase.SERVING,
    in_flight=0,
    renewing=False,
    renewal_due=False,
    renewal_forced=False,
    candidate_refused=False,
    last_tried=None,
    connect_at=0.0,
    connecting_until=0.0,
    renew_at=0.0,
    prove_at=0.0,
    quiescing_until=0.0,
    promote_at=0.0,
)
DOWN = replace(IDLE, link=Link.DOWN, link_uses=None)


def ask(view: View, now: datetime = NOW, monotonic: float = MONOTONIC) -> core.Decision:
    return decide(view, now, monotonic)


def test_nothing_to_do_is_a_tick() -> None:
    assert ask(IDLE) == core.Wait(core.TICK_SECONDS)


# Connecting


def test_down_connects_with_what_there_is() -> None:
    assert ask(DOWN) == core.Connect(Role.CURRENT)
    assert ask(replace(DOWN, current=None, candidate=GOOD)) == core.Connect(Role.CANDIDATE)
    assert isinstance(ask(replace(DOWN, current=None)), core.Wait)


def test_down_waits_for_its_time() -> None:
    assert ask(replace(DOWN, connect_at=MONOTONIC + 7)) == core.Wait(7)


def test_the_candidate_comes_first_and_then_they_take_turns() -> None:
    both = replace(DOWN, candidate=GOOD)
    assert ask(both) == core.Connect(Role.CANDIDATE)
    assert ask(replace(both, last_tried=Role.CANDIDATE)) == core.Connect(Role.CURRENT)
    assert ask(replace(both, last_tried=Role.CURRENT)) == core.Connect(Role.CANDIDATE)


def test_an_only_candidate_is_tried_again_and_again() -> None:
    view = replace(DOWN, current=None, candidate=GOOD, last_tried=Role.CANDIDATE)
    assert ask(view) == core.Connect(Role.CANDIDATE)


def test_an_expired_certificate_is_still_tried() -> None:
    assert ask(replace(DOWN, current=OLD)) == core.Connect(Role.CURRENT)
    assert ask(replace(DOWN, current=GOOD, candidate=OLD)) == core.Connect(Role.CURRENT)


@pytest.mark.parametrize("now", [datetime(1970, 1, 1, tzinfo=UTC), GOOD.not_before - timedelta(days=1)])
def test_a_clock_that_is_not_set_keeps_nobody_from_connecting(now: datetime) -> None:
    assert ask(DOWN, now) == core.Connect(Role.CURRENT)


def test_a_connection_that_takes_too_long_is_given_up() -> None:
    view = replace(IDLE, link=Link.CONNECTING, connecting_until=MONOTONIC + 5)
    assert ask(view) == core.Wait(5)
    assert ask(view, monotonic=MONOTONIC + 5) == core.HangUp()


# Renewing


def test_due_or_forced_renews() -> None:
    assert ask(replace(IDLE, renewal_due=True)) == core.Renew()
    assert ask(replace(IDLE, renewal_forced=True)) == core.Renew()


def test_a_failed_renewal_waits_unless_it_is_forced() -> None:
    later = replace(IDLE, renewal_due=True, renew_at=MONOTONIC + 9)
    assert ask(later) == core.Wait(9)
    assert ask(replace(later, renewal_forced=True)) == core.Renew()


def test_it_renews_while_down_too() -> None:
    """An expired certificate may be refused by the gateway and still be renewed by the EST server."""
    view = replace(DOWN, current=OLD, renewal_due=True, connect_at=MONOTONIC + 60)
    assert ask(view) == core.Renew()


def test_one_renewal_at_a_time() -> None:
    assert isinstance(ask(replace(IDLE, renewal_due=True, renewing=True)), core.Wait)


def test_a_candidate_nobody_has_judged_is_not_overwritten() -> None:
    view = replace(DOWN, candidate=GOOD, renewal_due=True, connect_at=MONOTONIC + 60)
    assert isinstance(ask(view), core.Wait)


@pytest.mark.parametrize("view", [replace(IDLE, candidate=GOOD, candidate_refused=True), replace(IDLE, candidate=OLD)])
def test_a_candidate_that_is_no_use_is_overwritten(view: View) -> None:
    assert ask(replace(view, renewal_due=True)) == core.Renew()


# Proving


def test_a_candidate_is_proven_beside_the_working_connection() -> None:
    view = replace(IDLE, candidate=GOOD)
    assert ask(view) == core.Quiesce()
    assert ask(replace(view, prove_at=MONOTONIC + 3)) == core.Wait(3)
    assert isinstance(ask(replace(view, renewing=True)), core.Wait)


def test_in_flight_messages_are_waited_for() -> None:
    view = replace(IDLE, candidate=GOOD, phase=Phase.QUIESCING, in_flight=2, quiescing_until=MONOTONIC + 4)
    assert ask(view) == core.Wait(4)
    assert ask(replace(view, in_flight=0)) == core.Prove()


def test_the_session_is_not_taken_over_with_acknowledgements_on_their_way() -> None:
    view = replace(IDLE, candidate=GOOD, phase=Phase.QUIESCING, in_flight=1, quiescing_until=MONOTONIC)
    assert ask(view) == core.AbandonProof()


def test_a_connection_lost_while_quiescing_ends_the_proof() -> None:
    assert ask(replace(DOWN, candidate=GOOD, phase=Phase.QUIESCING)) == core.AbandonProof()


def test_a_proof_without_an_answer_is_abandoned() -> None:
    view = replace(IDLE, candidate=GOOD, phase=Phase.PROVING, connecting_until=MONOTONIC + 5)
    assert ask(view) == core.Wait(5)
    assert ask(view, monotonic=MONOTONIC + 5) == core.AbandonProof()


def test_a_candidate_that_connected_is_promoted() -> None:
    view = replace(IDLE, candidate=GOOD, link_uses=Role.CANDIDATE)
    assert ask(view) == core.Promote()
    assert ask(replace(view, promote_at=MONOTONIC + 2)) == core.Wait(2)
    assert ask(replace(view, renewal_due=True, promote_at=MONOTONIC + 2)) == core.Wait(2)


# Boundaries: a time that has come counts as come, and times of another state do not matter


@pytest.mark.parametrize(
    ("view", "decision"),
    [
        (replace(DOWN, connect_at=MONOTONIC), core.Connect(Role.CURRENT)),
        (replace(IDLE, renewal_due=True, renew_at=MONOTONIC), core.Renew()),
        (replace(IDLE, candidate=GOOD, prove_at=MONOTONIC), core.Quiesce()),
        (replace(IDLE, candidate=GOOD, link_uses=Role.CANDIDATE, promote_at=MONOTONIC), core.Promote()),
        (replace(IDLE, link=Link.CONNECTING, connecting_until=MONOTONIC), core.HangUp()),
    ],
)
def test_a_time_that_has_come(view: View, decision: core.Decision) -> None:
    assert ask(view) == decision
    assert isinstance(ask(view, monotonic=MONOTONIC - 0.5), core.Wait)


SOON = MONOTONIC + 2


@pytest.mark.parametrize(
    "view",
    [
        replace(IDLE, promote_at=SOON),
        replace(IDLE, connect_at=SOON),
        replace(IDLE, connecting_until=SOON),
        replace(IDLE, prove_at=SOON),
        replace(IDLE, renew_at=SOON),
        replace(IDLE, renewal_due=True, renewing=True, renew_at=SOON),
        replace(IDLE, candidate=GOOD, candidate_refused=True, prove_at=SOON),
        replace(IDLE, candidate=OLD, prove_at=SOON),
        replace(IDLE, candidate=GOOD, renewing=True, prove_at=SOON),
        replace(IDLE, candidate=GOOD, link_uses=Role.CANDIDATE, promote_at=MONOTONIC + 90, prove_at=SOON),
        replace(DOWN, current=None, link_uses=Role.CANDIDATE, promote_at=SOON),
        replace(DOWN, connect_at=MONOTONIC + 90, link_uses=Role.CANDIDATE, promote_at=SOON),
        replace(DOWN, connect_at=MONOTONIC + 90, candidate=GOOD, prove_at=SOON),
        replace(DOWN, connect_at=MONOTONIC + 90, connecting_until=SOON),
    ],
)
def test_a_time_of_another_state_is_not_waited_for(view: View) -> None:
    assert ask(view) == core.Wait(core.TICK_SECONDS)


@pytest.mark.parametrize("renewal", [{"renewal_due": True}, {"renewal_forced": True}])
def test_what_is_never_renewed(renewal: dict[str, bool]) -> None:
    for view in (
        replace(DOWN, current=None),
        replace(DOWN, current=None, candidate=OLD),
        replace(IDLE, renewing=True),
        replace(IDLE, link=Link.CONNECTING, link_uses=Role.CANDIDATE, connecting_until=SOON),
    ):
        assert isinstance(ask(replace(view, **renewal)), core.Wait)  # type: ignore[arg-type]


def test_a_candidate_that_is_still_connecting_is_not_promoted() -> None:
    view = replace(IDLE, candidate=GOOD, link=Link.CONNECTING, link_uses=Role.CANDIDATE, connecting_until=SOON)
    assert ask(view) == core.Wait(2)


def test_a_wait_is_never_longer_than_a_tick() -> None:
    far = MONOTONIC + 3600
    for view in (
        replace(DOWN, connect_at=far),
        replace(IDLE, phase=Phase.PROVING, candidate=GOOD, connecting_until=far),
        replace(IDLE, link=Link.CONNECTING, connecting_until=far),
    ):
        assert ask(view) == core.Wait(core.TICK_SECONDS)


@pytest.mark.parametrize("now", [datetime(1970, 1, 1, tzinfo=UTC), NOW])
def test_a_proof_needs_no_clock(now: datetime) -> None:
    view = replace(IDLE, candidate=GOOD, phase=Phase.QUIESCING)
    assert ask(view, now) == core.Prove()
    alone = replace(DOWN, current=None, candidate=GOOD)
    assert ask(alone, now) == core.Connect(Role.CANDIDATE)


def test_a_decision_is_shown_in_words() -> None:
    assert core.shown(core.Connect(Role.CURRENT)) == "connect role=current"
    assert core.shown(core.Promote()) == "promote"
