"""The block that holds most, found as if all were compared."""

import random

from fleet.tls.known_blocks import KNOWN_WEIGHT, KnownBlocks, Ranking


def weight(known: KnownBlocks, held: dict[str, int], block: str) -> int:
    return held[block] * (1 if block in known else KNOWN_WEIGHT)


def test_the_biggest_is_the_one_that_comparing_all_finds() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        known = KnownBlocks()
        ranking, held = Ranking(known), dict[str, int]()
        for _ in range(500):
            block = f"192.0.2.{chance.randrange(12)}"
            if chance.random() < 0.05:
                known.add(block)
            held[block] = max(0, held.get(block, 0) + chance.choice((1, 1, 1, -1, -1)))
            ranking.set(block, held[block])
            found = ranking.biggest()
            most = max(weight(known, held, one) for one in held)
            assert (weight(known, held, found) if found else 0) == most, seed


def test_of_equals_the_one_that_has_held_as_much_for_longest() -> None:
    ranking = Ranking(KnownBlocks())
    for block in ("a", "b", "c"):
        ranking.set(block, 1)
    assert ranking.biggest() == "a"
    ranking.set("b", 2)
    assert ranking.biggest() == "b"
    ranking.set("b", 1)
    assert ranking.biggest() == "b"
    for block in ("b", "a"):
        ranking.set(block, 0)
    assert ranking.biggest() == "c"


def test_when_nobody_holds_anything_there_is_none() -> None:
    known = KnownBlocks()
    ranking = Ranking(known)
    assert ranking.biggest() is None
    known.add("a")
    for count in (1, 2, 1, 0, 0):
        ranking.set("a", count)
    assert ranking.biggest() is None
    assert not ranking._of_known._counts
    assert not ranking._of_strangers._counts
