"""Who goes when."""

import os

import pytest

from hw_bench.processes import pick_cores
from hw_bench.turns import Contender, Outcome, Plan, take_turns

CORES = pick_cores()


def contender(name: str, seen: list[str]) -> Contender:
    def act(seconds: float) -> Outcome:
        seen.append(f"{name} {seconds:g}")
        return Outcome(operations=10, failed=1, wall=seconds)

    return Contender(name, "v1", (os.getpid(),), act, lambda: 0.0, lambda seconds: seen.append(f"{name} prepares"))


def test_contenders_alternate_in_slices_after_a_warm_up() -> None:
    seen: list[str] = []
    turns = take_turns([contender("a", seen), contender("b", seen)], Plan(1.0, 2), CORES, lambda text: None)
    handlers = [word for word in seen if "prepares" not in word]
    assert handlers == ["a 0.3", "b 0.3"] + 2 * ["a 0.5", "b 0.5", "a 0.5", "b 0.5"]
    assert seen[0:2] == ["a prepares", "a 0.3"]
    assert [(turn.contender, turn.round) for turn in turns] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {(turn.operations, turn.failed, turn.wall) for turn in turns} == {(20, 2, 1.0)}  # the warm-up is not in it


def test_a_short_turn_is_one_slice() -> None:
    seen: list[str] = []
    take_turns([contender("a", seen)], Plan(0.2, 1), CORES, lambda text: None)
    assert [word for word in seen if "prepares" not in word] == ["a 0.2", "a 0.2"]


def test_progress_names_each_turn() -> None:
    said: list[str] = []
    take_turns([contender("a", [])], Plan(0.1, 2), CORES, said.append)
    assert said[0] == "warming up: a"
    assert said[1].startswith("round 1 of 2: a, 10 in 0.1 s, ")
    assert said[2].startswith("round 2 of 2: a, 10 in 0.1 s, ")


def test_an_act_that_fails_ends_the_run() -> None:
    def act(seconds: float) -> Outcome:
        raise ConnectionRefusedError

    one = Contender("a", "", (os.getpid(),), act, lambda: 0.0)
    with pytest.raises(ConnectionRefusedError):
        take_turns([one], Plan(0.1, 1), CORES, lambda text: None)
