"""Tables that forget: which entry goes, and when."""

from random import Random

import pytest

from fleet.domain.recent import SWEEP_SECONDS_MIN, HolderCounts, Recent, Swept


@pytest.mark.parametrize("entries_max", [1, 2, 3])
def test_at_the_limit_and_one_past_it(entries_max: int) -> None:
    table: Recent[int, str] = Recent(entries_max)
    for key in range(entries_max):
        table.put(key, str(key))
    assert list(table) == list(range(entries_max))
    table.put(entries_max, "new")
    assert list(table) == list(range(1, entries_max + 1))


def test_an_entry_that_is_put_again_is_the_newest() -> None:
    table: Recent[str, int] = Recent(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        table.put(key, value)
    assert dict(table) == {"a": 3, "c": 4}
    assert list(table) == ["a", "c"]


def test_reading_does_not_prolong() -> None:
    table: Recent[str, int] = Recent(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert list(table) == ["b", "c"]
    table.pop("b", None)
    table.put("d", 4)
    assert list(table) == ["c", "d"]


def test_a_sweep_forgets_what_is_over_and_is_not_repeated_at_once() -> None:
    table: Swept[str, float] = Swept(lambda ends_at, now: now >= ends_at)
    table |= {"a": 10.0, "b": 10.1, "c": 10.2}
    table.sweep(10.0)
    assert set(table) == {"b", "c"}
    table.sweep(10.0 + SWEEP_SECONDS_MIN - 0.001)
    assert set(table) == {"b", "c"}
    table.sweep(10.0 + SWEEP_SECONDS_MIN)
    assert not table


def test_the_biggest_holder_is_the_one_that_has_had_most_for_longest() -> None:
    held = HolderCounts()
    assert (held.biggest(), held["a"]) == (None, 0)
    steps = [("a", 1, "a"), ("b", 1, "a"), ("b", 2, "b"), ("c", 2, "b")]
    steps += [("b", 2, "b"), ("b", 1, "c"), ("c", 0, "b"), ("b", 0, "a")]
    for holder, count, biggest in steps:
        held.set(holder, count)
        assert (held.biggest(), held[holder], held.most) == (biggest, count, max(held[each] for each in "abc"))
    held.set("a", 0)
    held.set("a", 0)
    assert (held.biggest(), held.most) == (None, 0)


def test_holdings_agree_with_a_count_of_all() -> None:
    held, counts, dice = HolderCounts(), dict.fromkeys("abcdef", 0), Random(7)
    for _ in range(2_000):
        holder = dice.choice("abcdef")
        counts[holder] = max(0, counts[holder] + dice.choice((-3, -1, 0, 1, 2)))
        held.set(holder, counts[holder])
        most = max(counts.values())
        biggest = held.biggest()
        assert held.most == most
        assert biggest is None if not most else counts[biggest or ""] == most
