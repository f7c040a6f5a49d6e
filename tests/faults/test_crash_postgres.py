"""The same truth with the registry in PostgreSQL, whose own processes are killed among the others."""

import re

import pytest

from hw_bench.peers import postgres
from hw_bench.scenarios.crash import Crash
from hw_bench.turns import Plan
from tests.tiers import Tier

SEED = 20260629  # the first to be killed is the supervisor, the second of postgres


@pytest.mark.usefixtures("forked_programs")
@pytest.mark.skipif(postgres.missing() is not None, reason="postgresql: not installed")
def test_every_certificate_token_and_event_is_accounted_for_when_the_database_is_killed_too(tier: Tier) -> None:
    kills = tier.times(10, all=50)
    report = Crash().run(Plan(kills=kills, seed=SEED, database="postgres"), lambda text: None)
    checks = "\n".join(report.checks)
    found = re.match(rf"{kills} kills, (\d+) of them of the supervisor, (\d+) of postgres; seed {SEED}\n", checks)
    assert found
    assert int(found[1]) >= 1
    assert int(found[2]) >= kills / 10
    assert "certificates received are in the registry; no serial twice" in checks
    assert "none too often, and uses = certificates issued by each" in checks
    assert "events without a gap, one of them for each certificate issued" in checks
    assert "the audit's chain verifies" in checks
    assert "the registry is postgres on" in checks
