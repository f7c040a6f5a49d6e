"""A device that shows nothing, over EST: 202 with Retry-After (RFC 7030, 4.2.3) until an operator has decided."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.approval import ApprovalRequest, WaitingLimits
from fleet.domain.model_rules import AdmissionPath, AdmissionRules
from fleet.services import approvals, inventory
from tests.servers.est_house import House, basic, csr_for, open_house

LIMITS = WaitingLimits(requests_max=2)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Devices of model cam may wait; those of model pump may not."""
    async with open_house(tmp_path, waiting=LIMITS) as house:
        cam = await house.registry.model("cam")
        assert cam is not None
        admission = AdmissionRules((AdmissionPath.TOKEN, AdmissionPath.APPROVAL))
        opened = replace(cam, rules=replace(cam.rules, admission=admission))
        await inventory.set_model(house.registry, opened, act=Act("test", house.clock()))
        yield house


async def waiting(house: House) -> ApprovalRequest:
    (found,) = await house.registry.requests(now=house.clock())
    return found


async def test_accepted_and_issued_when_an_operator_says_so(house: House) -> None:
    csr = csr_for("new-1", generate_key())
    for _ in range(2):
        answer = await house.enroll(csr, label="cam")
        assert (answer.status, answer.code) == (202, "approval-pending")
        assert 24 <= int(answer.header("Retry-After") or "") <= 36
        assert (await waiting(house)).fingerprint in answer.text
    await approvals.approve(house.registry, (await waiting(house)).id, act=Act("operator", house.clock()))
    got = [await house.enroll(csr, label="cam") for _ in range(2)]
    assert [answer.status for answer in got] == [200, 200]
    assert got[0].certificates == got[1].certificates
    assert house.servers["est"].counters["202 approval-pending"] == 2


async def test_denied(house: House) -> None:
    csr = csr_for("new-1")
    await house.enroll(csr, label="cam")
    await approvals.deny(house.registry, (await waiting(house)).id, act=Act("operator", house.clock()))
    answer = await house.enroll(csr, label="cam")
    assert (answer.status, answer.text) == (403, "An operator has denied this request. (request-denied)\n")


async def test_no_room(house: House) -> None:
    for n in range(2):
        assert (await house.enroll(csr_for(f"new-{n}"), label="cam")).status == 202
    answer = await house.enroll(csr_for("new-3"), label="cam")
    assert (answer.status, answer.code, answer.header("Retry-After")) == (429, "too-many-requests", "600")


@pytest.mark.parametrize("label", ["pump", "none-such", ""])
async def test_elsewhere_it_takes_something_to_show(house: House, label: str) -> None:
    answer = await house.enroll(csr_for("new-1"), label=label)
    assert (answer.status, answer.code) == (401, "no-credentials")
    assert answer.header("WWW-Authenticate") == 'Basic realm="estrealm"'
    assert await house.registry.requests(now=house.clock()) == []


async def test_a_registered_device_needs_no_label(house: House) -> None:
    await house.device("cam-1")
    assert (await house.enroll(csr_for("cam-1"))).status == 202
    await house.device("pump-1", "pump")
    assert (await house.enroll(csr_for("pump-1"))).code == "no-credentials"


async def test_a_wrong_token_is_not_put_to_an_operator(house: House) -> None:
    answer = await house.enroll(csr_for("new-1"), basic("abc.def"), label="cam")
    assert (answer.status, answer.code) == (401, "bad-token")
    assert await house.registry.requests(now=house.clock()) == []


@pytest.mark.parametrize(
    ("body", "status", "code"), [(b"", 400, "malformed"), (b"\x30\x03\x02\x01\x05", 400, "malformed")]
)
async def test_what_is_no_csr_waits_for_nobody(house: House, body: bytes, status: int, code: str) -> None:
    answer = await house.enroll(body, label="cam")
    assert (answer.status, answer.code) == (status, code)
    assert await house.registry.requests(now=house.clock()) == []
