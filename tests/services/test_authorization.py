"""A webhook's word at an enrollment: when it is asked, and what its answer changes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.domain.access import Act
from fleet.domain.approval import RequestState
from fleet.domain.authorization import Question, Verdict
from fleet.domain.changes import AddDevice, AddModel, DecideRequest, EventKind, TagDevice
from fleet.domain.credential import Credential
from fleet.domain.device import Device, DeviceId, DeviceState, Model, Tags
from fleet.domain.errors import FleetError, Pending, Refused, Unavailable, Unreachable
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.domain.peer import Peer
from fleet.services import approvals
from fleet.services.authorization import Authoriser
from fleet.services.credentials import BasicCredentials
from fleet.services.enrollment import enroll
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.test_enrollment import NOW, STRANGER, House, peer_of, request_for, token_text

URL = "https://hooks.example/enroll"
RULES = ModelRules(admission=AdmissionRules(tuple(AdmissionPath), webhook=URL))
CAM_1 = DeviceId("cam-1")


@dataclass
class Oracle:
    """An Authoriser that says what it is told to."""

    verdict: Verdict = field(default_factory=lambda: Verdict(True))
    failing: str = ""
    asked: list[tuple[str, Question]] = field(default_factory=list)
    meanwhile: list[TagDevice | DecideRequest] = field(default_factory=list)
    house: "Hooked | None" = None

    async def ask(self, url: str, question: Question) -> Verdict:
        self.asked.append((url, question))
        for write in self.meanwhile:
            assert self.house is not None
            await self.house.write(write)
        if self.failing:
            raise Unreachable(self.failing)
        return self.verdict


class Hooked(House):
    oracle: Authoriser | None

    async def first(
        self, name: str = "cam-1", credentials: BasicCredentials | None = None, peer: Peer = STRANGER, **more: str
    ) -> Credential:
        request = request_for(name, more.get("key", "k1"))
        label = more.get("label")
        return await enroll(
            self.registry, self.issuer, peer, credentials, request, label, self.now, authoriser=self.oracle
        )

    async def refused(self, name: str = "cam-1", credentials: BasicCredentials | None = None) -> FleetError:
        with pytest.raises(FleetError) as caught:
            await self.first(name, credentials)
        return caught.value

    async def tags(self, name: str = "cam-1") -> Tags:
        device = await self.registry.device(name)
        assert device is not None
        return device.tags


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Hooked]:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    house = Hooked(registry, LocalIssuer(*create_issuing("Acme", *create_root("Acme", NOW), NOW)))
    known = Device(CAM_1, "cam", DeviceState.REGISTERED, NOW, tags=(("lot", "L7"), ("site", "Oslo")))
    await house.write(AddModel(Model("cam", rules=RULES)), AddModel(Model("free")), AddDevice(known))
    house.oracle = None
    yield house
    await registry.close()


@pytest.fixture
def oracle(house: Hooked) -> Oracle:
    house.oracle = made = Oracle(house=house)
    return made


async def test_asked_once_before_a_first_certificate(house: Hooked, oracle: Oracle) -> None:
    await house.token()
    first = await house.first(credentials=token_text())
    ((url, question),) = oracle.asked
    assert url == URL
    assert question == Question(
        id=question.id,
        device_id="cam-1",
        model="cam",
        path="token",
        key_type="EC-P256",
        key_sha256=first.key_sha256,
        address="192.0.2.7",
        at=NOW,
    )
    entry = (await house.last_audit()).entry
    assert (entry.outcome, entry.detail["webhook"]) == ("ok", question.id)
    assert await house.first(credentials=token_text()) == first  # the answer was lost: nothing is asked again
    await house.reenroll(request_for("cam-1", "k2"), peer_of(first))  # nor for a renewal
    assert len(oracle.asked) == 1


async def test_not_asked_where_there_is_none(house: Hooked, oracle: Oracle) -> None:
    await house.token(device_id=None, model="free")
    await house.first("new-1", token_text())
    assert oracle.asked == []


async def test_asked_last_of_all(house: Hooked, oracle: Oracle) -> None:
    await house.token(uses_max=1)
    assert (await house.refused("cam-2", token_text())).code == "unknown-device"
    assert (await house.refused("cam-1", token_text(secret="wrong"))).code == "bad-token"
    with pytest.raises(Pending):
        await house.first("new-1", label="cam")
    assert oracle.asked == []
    (waiting,) = await house.registry.requests(now=NOW)
    await approvals.approve(house.registry, waiting.id, act=Act("operator", NOW))
    await house.first("new-1", label="cam")
    assert [(q.device_id, q.path) for _, q in oracle.asked] == [("new-1", "approval")]


async def test_denied(house: Hooked, oracle: Oracle) -> None:
    await house.token()
    oracle.verdict = Verdict(False, "not on the list")
    refusal = await house.refused(credentials=token_text())
    assert isinstance(refusal, Refused)
    assert refusal.code == "webhook-denied"
    assert "list" not in refusal.message  # its words are for the audit
    entry = (await house.last_audit()).entry
    assert (entry.actor, entry.outcome) == ("token t1", "webhook-denied")
    assert entry.detail == {"webhook": oracle.asked[0][1].id, "webhook_reason": "not on the list"}
    assert await house.registry.credentials("cam-1") == []
    token = await house.registry.token("t1")
    assert token is not None
    assert token.uses == 0


@pytest.mark.parametrize("without", [True, False])
async def test_who_cannot_be_asked_has_not_said_yes(house: Hooked, without: bool) -> None:
    if not without:
        house.oracle = Oracle(failing="it did not answer within 5 s")
    await house.token()
    refusal = await house.refused(credentials=token_text())
    assert isinstance(refusal, Unavailable)
    assert refusal.code == "webhook-failed"
    entry = (await house.last_audit()).entry
    assert (entry.actor, entry.outcome) == ("token t1", "webhook-failed")
    problem = "this process asks no webhooks" if without else "it did not answer within 5 s"
    assert entry.detail["webhook_problem"] == problem
    assert await house.registry.credentials("cam-1") == []
    for _ in range(20):  # and again, which fills no more rows
        await house.refused(credentials=token_text())
    assert (await house.last_audit()).entry == entry


async def test_attributes_become_tags(house: Hooked, oracle: Oracle) -> None:
    oracle.verdict = Verdict(True, "", (("owner", "Kim"), ("site", "Bergen")))
    await house.token()
    await house.first(credentials=token_text())
    assert await house.tags() == (("lot", "L7"), ("owner", "Kim"), ("site", "Bergen"))
    assert (EventKind.DEVICE_TAGGED, "cam-1", "") in await house.events()
    await house.token("t2", device_id=None, model="cam")
    await house.first("new-1", token_text("t2"), key="k2")
    device = await house.registry.device("new-1")
    assert device is not None
    assert (device.tags, device.model, device.state) == (oracle.verdict.tags, "cam", DeviceState.ACTIVE)
    found = await house.registry.devices()
    assert [d.id for d in found] == ["cam-1", "new-1"]


async def test_more_tags_than_a_device_may_have(house: Hooked, oracle: Oracle) -> None:
    oracle.verdict = Verdict(True, "", tuple((f"a{n:02}", "b") for n in range(32)))
    await house.token()
    assert (await house.refused(credentials=token_text())).code == "webhook-failed"
    assert "cannot be tags" in (await house.last_audit()).entry.detail["webhook_problem"]
    assert await house.tags() == (("lot", "L7"), ("site", "Oslo"))


async def test_what_changes_while_it_thinks_is_looked_at_again(house: Hooked, oracle: Oracle) -> None:
    """Somebody else tags the device meanwhile: neither's tags are lost, and it is not asked twice."""
    oracle.verdict = Verdict(True, "", (("owner", "Kim"),))
    oracle.meanwhile = [TagDevice(CAM_1, (("lot", "L8"),), ("pilot",), 1)]
    await house.token()
    await house.first(credentials=token_text())
    assert await house.tags() == (("lot", "L8"), ("owner", "Kim"))
    device = await house.registry.device("cam-1")
    assert device is not None
    assert device.groups == ("pilot",)
    assert len(oracle.asked) == 1


async def test_an_approval_that_is_taken_back_while_it_thinks(house: Hooked, oracle: Oracle) -> None:
    with pytest.raises(Pending):
        await house.first("new-1", label="cam")
    (waiting,) = await house.registry.requests(now=NOW)
    await approvals.approve(house.registry, waiting.id, act=Act("operator", NOW))
    oracle.meanwhile = [DecideRequest(waiting.id, RequestState.DENIED, "operator", NOW, "", waiting.expires_at)]
    with pytest.raises(Refused) as caught:
        await house.first("new-1", label="cam")
    assert caught.value.code == "request-denied"
    assert await house.registry.device("new-1") is None
    assert await house.registry.credentials("new-1") == []


async def test_of_many_at_once_a_token_is_still_spent_once(house: Hooked, oracle: Oracle) -> None:
    await house.token(device_id=None, model="cam", uses_max=1)
    outcomes = await asyncio.gather(
        *(house.first(f"n{n}", token_text(), key=f"n{n}") for n in range(8)), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(Credential) == 1
    assert len(oracle.asked) == 8
