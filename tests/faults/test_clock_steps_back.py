"""The clock steps back, as it does when NTP corrects it: nothing is lost, nothing doubled, nobody let in."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.audit_log import sound_leaves
from fleet.domain.errors import Refused
from fleet.services import revocation
from fleet.services.sealing import seal
from tests.servers.est_fixtures import EstHarness, basic, csr_for, open_est, renewal_csr

STEP = timedelta(hours=6)


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        est.now = datetime.now(UTC)
        yield est


def step_back(est: EstHarness) -> None:
    assert est.now is not None
    est.now -= STEP


async def test_enrollment_goes_on_and_every_row_keeps_its_place(est: EstHarness) -> None:
    token = await est.token(model="cam", uses=9)
    assert (await est.enroll(csr_for("before"), basic(token), label="cam")).status == 200
    events = await est.registry.last_event()
    step_back(est)
    assert (await est.enroll(csr_for("after"), basic(token), label="cam")).status == 200
    rows = await est.registry.audit()
    assert len(list(sound_leaves(rows))) == len(rows)
    assert rows[-1].entry.at < rows[-2].entry.at
    assert [event.seq for event in await est.registry.events(after=events)] == [events + 1, events + 2]


async def test_a_certificate_of_the_future_opens_nothing_until_its_time(est: EstHarness) -> None:
    device = await est.enrolled()
    step_back(est)
    with pytest.raises((OSError, IndexError)):  # the engine refuses it: not yet valid
        _ = (await est.reenroll(renewal_csr(device), device)).status
    assert est.now is not None
    est.now += STEP
    assert (await est.reenroll(renewal_csr(device), device)).status == 200


async def test_a_token_does_not_come_back_to_life_once_it_is_used_up(est: EstHarness) -> None:
    token = await est.token(model="cam")
    assert (await est.enroll(csr_for("one"), basic(token), label="cam")).status == 200
    step_back(est)
    assert (await est.enroll(csr_for("two"), basic(token), label="cam")).code == "token-used-up"


async def test_a_revoked_device_stays_out(est: EstHarness) -> None:
    await est.enrolled("cam-1")
    await revocation.revoke(est.registry, "cam-1", act=Act("test", est.clock()))
    step_back(est)
    with pytest.raises(Refused, match="permanently"):
        await est.token("cam-1")


async def test_heads_of_the_audit_grow_though_their_times_do_not(est: EstHarness) -> None:
    signer = LocalHeadSigner(generate_key())
    await est.token(model="cam")
    first = await seal(est.registry, signer, est.clock())
    step_back(est)
    await est.token(model="cam")
    second = await seal(est.registry, signer, est.clock())
    assert first is not None
    assert second is not None
    assert second.size == first.size + 1
    assert second.at < first.at
    assert await est.registry.audit_heads() == [first, second]
