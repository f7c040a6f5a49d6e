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
from tests.servers.est_house import House, basic, csr_for, open_house, renewal_csr

STEP = timedelta(hours=6)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        house.now = datetime.now(UTC)
        yield house


def step_back(house: House) -> None:
    assert house.now is not None
    house.now -= STEP


async def test_enrollment_goes_on_and_every_row_keeps_its_place(house: House) -> None:
    token = await house.token(model="cam", uses=9)
    assert (await house.enroll(csr_for("before"), basic(token), label="cam")).status == 200
    events = await house.registry.last_event()
    step_back(house)
    assert (await house.enroll(csr_for("after"), basic(token), label="cam")).status == 200
    rows = await house.registry.audit()
    assert len(list(sound_leaves(rows))) == len(rows)
    assert rows[-1].entry.at < rows[-2].entry.at
    assert [event.seq for event in await house.registry.events(after=events)] == [events + 1, events + 2]


async def test_a_certificate_of_the_future_opens_nothing_until_its_time(house: House) -> None:
    device = await house.enrolled()
    step_back(house)
    with pytest.raises((OSError, IndexError)):  # the engine refuses it: not yet valid
        _ = (await house.reenroll(renewal_csr(device), device)).status
    assert house.now is not None
    house.now += STEP
    assert (await house.reenroll(renewal_csr(device), device)).status == 200


async def test_a_token_does_not_come_back_to_life_once_it_is_used_up(house: House) -> None:
    token = await house.token(model="cam")
    assert (await house.enroll(csr_for("one"), basic(token), label="cam")).status == 200
    step_back(house)
    assert (await house.enroll(csr_for("two"), basic(token), label="cam")).code == "token-used-up"


async def test_a_revoked_device_stays_out(house: House) -> None:
    await house.enrolled("cam-1")
    await revocation.revoke(house.registry, "cam-1", act=Act("test", house.clock()))
    step_back(house)
    with pytest.raises(Refused, match="for good"):
        await house.token("cam-1")


async def test_heads_of_the_audit_grow_though_their_times_do_not(house: House) -> None:
    signer = LocalHeadSigner(generate_key())
    await house.token(model="cam")
    first = await seal(house.registry, signer, house.clock())
    step_back(house)
    await house.token(model="cam")
    second = await seal(house.registry, signer, house.clock())
    assert first is not None
    assert second is not None
    assert second.size == first.size + 1
    assert second.at < first.at
    assert await house.registry.audit_heads() == [first, second]
