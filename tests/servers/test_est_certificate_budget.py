"""The budget of certificates of one device over real TLS: whatever the right by which it asks."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import rules_of
from fleet.services import inventory
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.servers.est_fixtures import Answer, EstHarness, Identity, basic, csr_for, open_est, renewal_csr

CODE = "certificate-budget"
COUNT = 4


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        rules = {"renewal": {"certificates_per_day": COUNT}, "profile": {"server_keygen": True}}
        model = Model("few", rules=rules_of(rules))
        await inventory.add_model(est.registry, model, act=Act("test", est.clock()))
        yield est


async def enrolled(est: EstHarness, name: str) -> Identity:
    await est.device(name, "few")
    key = generate_key()
    answer = await est.enroll(csr_for(name, key), basic(await est.token(name)))
    return est.identity(answer.certificates[0], key)


async def audited(est: EstHarness) -> list[tuple[str, str]]:
    entries = [row.entry for row in await est.registry.audit()]
    return [(entry.actor, entry.action) for entry in entries if entry.outcome == CODE]


def is_over(answer: Answer) -> bool:
    if answer.status == 200:
        return False
    assert (answer.status, answer.code) == (429, CODE)
    assert 0 < int(answer.header("Retry-After") or 0) <= 86_400 // COUNT
    return True


async def test_a_device_that_renews_in_a_loop_is_refused_and_told_when_to_come_back(est: EstHarness) -> None:
    device, other = await enrolled(est, "loop-1"), await enrolled(est, "loop-2")
    last = renewal_csr(device)
    answers = [await est.reenroll(csr, device) for csr in (renewal_csr(device), renewal_csr(device), last)]
    assert [answer.status for answer in answers] == [200] * 3
    for _ in range(3):
        assert is_over(await est.reenroll(renewal_csr(device), device))
    assert await audited(est) == [("device loop-1", "device.reenroll")]  # repeats are folded
    again = await est.reenroll(last, device)  # what was issued is repeated
    assert again.certificates == answers[-1].certificates
    assert (await est.reenroll(renewal_csr(other), other)).status == 200
    held = await est.registry.credentials("loop-1")
    assert len(held) == COUNT
    assert [c.state.value for c in held].count("issued") == 1


async def test_every_right_spends_the_budget_of_the_device(est: EstHarness) -> None:
    device = await enrolled(est, "all-1")
    assert (await est.post("serverkeygen", renewal_csr(device), identity=device)).status == 200
    assert (await est.reenroll(renewal_csr(device), device)).status == 200
    assert (await est.enroll(csr_for("all-1"), basic(await est.token("all-1")))).status == 200
    for answer in (
        await est.enroll(csr_for("all-1"), basic(await est.token("all-1"))),
        await est.post("serverkeygen", renewal_csr(device), identity=device),
        await est.reenroll(renewal_csr(device), device),
    ):
        assert is_over(answer)


async def test_a_station_spends_that_of_each_device_and_none_of_its_own(est: EstHarness) -> None:
    station = await est.station("line-1", ("few",))
    for number in range(3 * COUNT):
        assert (await est.post("simpleenroll", csr_for(f"new-{number}"), identity=station)).status == 200
    over = [is_over(await est.post("simpleenroll", csr_for("new-0"), identity=station)) for _ in range(COUNT + 1)]
    assert over == [False] * (COUNT - 1) + [True] * 2
    assert await audited(est) == [("station line-1", "device.enroll")]


async def test_the_budget_holds_at_another_node_and_after_a_restart(est: EstHarness, tmp_path: Path) -> None:
    device = await enrolled(est, "node-1")
    for _ in range(COUNT - 1):
        assert (await est.reenroll(renewal_csr(device), device)).status == 200
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    found = await registry.device("node-1")
    await registry.close()
    assert found is not None
    assert found.budget_full_at is not None
    assert (found.budget_full_at - est.clock()).total_seconds() > 86_000


async def test_a_model_may_have_no_limit(est: EstHarness) -> None:
    rules: dict[str, Any] = {"renewal": {"certificates_per_day": 0}}
    model = Model("any", rules=rules_of(rules))
    await inventory.add_model(est.registry, model, act=Act("test", est.clock()))
    await est.device("any-1", "any")
    key = generate_key()
    device = est.identity(
        (await est.enroll(csr_for("any-1", key), basic(await est.token("any-1")))).certificates[0], key
    )
    for _ in range(26):
        assert (await est.reenroll(renewal_csr(device), device)).status == 200
