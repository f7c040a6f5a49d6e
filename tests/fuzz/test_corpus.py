"""Everything that fuzzing found worth keeping, and a well-formed start for each decoder: read or refused, each time."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.run import CORPUS
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS
from tests.tiers import Tier

KEPT = sorted(CORPUS.glob("*/*"))


def test_there_is_a_corpus_for_every_target() -> None:
    assert {file.parent.name for file in KEPT} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_is_read_or_refused(name: str) -> None:
    files = [file for file in KEPT if file.parent.name == name]
    for file in files:
        TARGETS[name](Path(file).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_well_formed_ones_cut_at_every_byte_and_with_every_byte_gone_wrong(name: str, tier: Tier) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)
        step = max(1, len(seed) // tier.times(200, all=200, quick=40))
        for at in range(0, len(seed), step):
            TARGETS[name](seed[:at])
            TARGETS[name](seed[:at] + bytes((seed[at] ^ 0xFF,)) + seed[at + 1 :])
            TARGETS[name](seed[:at] + seed[at + 1 :])


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_with_a_few_bytes_changed_is_read_or_refused(name: str, tier: Tier) -> None:
    chance = random.Random(name)
    kept = [file.read_bytes() for file in KEPT if file.parent.name == name] + list(seeds(name))
    for _ in range(tier.times(100, all=20_000)):
        data = bytearray(chance.choice(kept))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
        TARGETS[name](bytes(data))
