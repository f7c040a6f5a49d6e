"""Role new roots a device takes: those that a root it trusts has signed for, and no other."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from device_agent.store.root_rollover import ANCHORS_MAX, new_roots
from fleet.ca.authority import create_issuing, create_root, succeed_root
from fleet.est_client.certificate_checks import find_chain, is_root
from tests.unknown_curve import with_unknown_curve

NOW = datetime(2030, 1, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=400)
OLD, OLD_KEY = create_root("Acme", BEFORE)
STEP = succeed_root(OLD, OLD_KEY, NOW)
NEW, NEW_KEY = STEP.certified
FOREIGN, FOREIGN_KEY = create_root("Acme", BEFORE)  # of the same name
FOREIGN_STEP = succeed_root(FOREIGN, FOREIGN_KEY, NOW)


def test_the_old_root_has_signed_for_it() -> None:
    offered = [NEW, OLD, STEP.new_with_old, STEP.old_with_new]
    assert new_roots([OLD], offered, NOW) == (NEW,)
    assert new_roots([OLD], offered[::-1], NOW) == (NEW,)
    assert new_roots([OLD, NEW], offered, NOW) == ()
    assert new_roots([NEW], offered, NOW) == ()  # nobody goes back


def test_over_several_roots() -> None:
    third = succeed_root(NEW, NEW_KEY, NOW + timedelta(days=1))
    offered = [NEW, STEP.new_with_old, third.certified[0], third.new_with_old]
    assert set(new_roots([OLD], offered, NOW + timedelta(days=2))) == {NEW, third.certified[0]}


@pytest.mark.parametrize(
    "offered",
    [
        [],
        [NEW],
        [NEW, STEP.old_with_new],
        [STEP.new_with_old],
        [FOREIGN],
        [FOREIGN, STEP.new_with_old],  # of the right name, and another key
        [FOREIGN_STEP.certified[0], FOREIGN_STEP.new_with_old, FOREIGN],
        [create_issuing("Acme", OLD, OLD_KEY, NOW)[0]],
        [NEW, with_unknown_curve(STEP.new_with_old)],
        [with_unknown_curve(NEW), STEP.new_with_old],
    ],
)
def test_nothing_less_will_do(offered: list[x509.Certificate]) -> None:
    assert new_roots([OLD], offered, NOW) == ()


def test_an_issuing_ca_makes_no_roots() -> None:
    issuing, key = create_issuing("Acme", OLD, OLD_KEY, NOW)
    own = succeed_root(issuing, key, NOW)
    assert new_roots([OLD], [issuing, own.certified[0], own.new_with_old], NOW) == ()


def test_a_root_that_has_ended_makes_no_successor() -> None:
    ended = NOW - timedelta(days=21 * 365)
    old, key = create_root("Acme", ended)
    step = succeed_root(old, key, ended + timedelta(days=1))
    assert new_roots([old], [step.certified[0], step.new_with_old], NOW) == ()


def test_they_are_never_too_many() -> None:
    anchors = [OLD, *(create_root("Acme", NOW)[0] for _ in range(ANCHORS_MAX - 1))]
    assert new_roots(anchors, [NEW, STEP.new_with_old], NOW) == ()


def test_a_chain_goes_between_roots_and_not_through_one() -> None:
    assert (is_root(NEW), is_root(STEP.new_with_old), is_root(STEP.old_with_new)) == (True, False, False)
    issuing, _ = create_issuing("Acme", NEW, NEW_KEY, NOW)
    offered = [NEW, OLD, STEP.old_with_new, STEP.new_with_old]
    assert find_chain(issuing, offered, [OLD], NOW) == ((STEP.new_with_old,), True)
    assert find_chain(issuing, offered, [NEW], NOW) == ((), True)
    before, _ = create_issuing("Acme", OLD, OLD_KEY, NOW)
    assert find_chain(before, offered, [NEW], NOW) == ((STEP.old_with_new,), True)
