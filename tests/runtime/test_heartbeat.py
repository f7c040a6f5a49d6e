"""Which worker is replaced for its silence."""

from collections.abc import Mapping

import pytest

from fleet.runtime.heartbeat import ALL_UNANSWERED_MAX, UNANSWERED_MAX, counted, silent_worker


@pytest.mark.parametrize(
    ("unanswered", "replaced"),
    [
        ({}, None),
        ({1: 0, 2: 1}, None),
        ({1: UNANSWERED_MAX - 1, 2: 0}, None),
        ({1: 0, 2: UNANSWERED_MAX}, 2),
        ({1: UNANSWERED_MAX, 2: UNANSWERED_MAX - 2}, 1),
        ({1: UNANSWERED_MAX, 2: UNANSWERED_MAX}, None),  # all at once: the machine
        ({1: UNANSWERED_MAX, 2: UNANSWERED_MAX - 1}, None),  # which stopped while they answered
        ({1: ALL_UNANSWERED_MAX - 1, 2: UNANSWERED_MAX}, None),
        ({1: UNANSWERED_MAX, 2: ALL_UNANSWERED_MAX}, 2),
        ({1: ALL_UNANSWERED_MAX, 2: ALL_UNANSWERED_MAX}, 1),  # one at a time
        ({2: UNANSWERED_MAX}, None),  # the only one that listens
        ({2: ALL_UNANSWERED_MAX}, 2),
        ({1: UNANSWERED_MAX, 2: UNANSWERED_MAX + 1, 3: 0}, 2),
    ],
)
def test_one_worker_is_replaced_when_the_fault_is_its_own(unanswered: Mapping[int, int], replaced: int | None) -> None:
    assert silent_worker(unanswered) == replaced


@pytest.mark.parametrize(
    ("before", "now", "replaced"),
    [
        ({1: 8, 2: 8}, {1: 0, 2: 9}, None),  # the machine goes on, and one of them is the first to answer
        ({1: 8, 2: 8}, {1: 9, 2: 9}, None),
        ({1: UNANSWERED_MAX, 2: UNANSWERED_MAX - 1}, {1: UNANSWERED_MAX + 1, 2: 0}, None),
        ({1: 0, 2: UNANSWERED_MAX - 1}, {1: 0, 2: UNANSWERED_MAX}, 2),
        ({1: 8, 2: 0}, {1: 9, 2: 0}, 1),
        ({}, {1: 0, 2: UNANSWERED_MAX}, 2),
        ({1: ALL_UNANSWERED_MAX, 2: 8}, {2: 0}, None),
    ],
)
def test_after_a_pause_of_all_the_first_to_answer_condemns_no_other(
    before: Mapping[int, int], now: Mapping[int, int], replaced: int | None
) -> None:
    assert silent_worker(counted(before, now)) == replaced
