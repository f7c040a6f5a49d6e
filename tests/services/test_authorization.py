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
from fleet.domain.changes import EventKind
from fleet.domain.credential import Credential
from fleet.domain.device import Device, DeviceId, DeviceState, Model, Tags
from fleet.domain.errors import FleetError, Pending, Refused, Unavailable, Unreachable
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.domain.peer import Peer
from fleet.domain.writes import DecideRequest, Insert, TagDevice
from fleet.services import approvals
from fleet.services.authorization import Authorizer
from fleet.services.credentials import BasicCredentials, Submission
from fleet.services.enrollment import RegistrationAuthority
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.test_enrollment import NOW, STRANGER, EnrollmentHarness, enroll, peer_of, request_for, token_text

URL = "https://hooks.example/enroll"
RULES = ModelRules(admission=AdmissionRules(tuple(AdmissionPath), webhook=URL))
CAM_1 = DeviceId("cam-1")


@dataclass
class Oracle:
    """An Authorizer that says what it is told to."""

    verdict: Verdict = field(default_factory=lambda: Verdict(True))
    failing: str = ""
    asked: list[tuple[str, Question]] = field(default_factory=list)
    meanwhile: list[TagDevice | DecideRequest] = field(default_factory=list)
    authority: "WebhookHarness | None" = None

    async def ask(self, url: str, question: Question) -> Verdict:
        self.asked.append((url, question))
        for write in self.meanwhile:
            assert self.authority is not None
            await self.authority.write(write)
        if self.failing:
            raise Unreachable(self.failing)
        return self.verdict


class WebhookHarness(EnrollmentHarness):
    oracle: Authorizer | None

    async def first(
        self, name: str = "cam-1", credentials: BasicCredentials | None = None, peer: Peer = STRANGER, **more: str
    ) -> Credential:
        request = request_for(name, more.get("key", "k1"))
        ra = RegistrationAuthority(self.registry, self.issuer, authorizer=self.oracle)
        return await enroll(ra, peer, Submission(request, credentials, more.get("label")), self.now)

    async def refused(self, name: str = "cam-1", credentials: BasicCredentials | None = None) -> FleetError:
        with pytest.raises(FleetError) as caught:
            await self.first(name, credentials)
        return caught.value

    async def tags(self, name: str = "cam-1") -> Tags:
        device = await self.registry.device(name)
        assert device is not None
        return device.tags


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[WebhookHarness]:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    authority = WebhookHarness(registry, LocalIssuer(*create_issuing("Acme", *create_root("Acme", NOW), NOW)))
    known = Device(CAM_1, "cam", DeviceState.REGISTERED, NOW, tags=(("lot", "L7"), ("site", "Oslo")))
    await authority.write(Insert(Model("cam", rules=RULES)), Insert(Model("free")), Insert(known))
    authority.oracle = None
    yield authority
    await registry.close()


@pytest.fixture
def oracle(authority: WebhookHarness) -> Oracle:
    authority.oracle = made = Oracle(authority=authority)
    return made


async def test_asked_once_before_a_first_certificate(authority: WebhookHarness, oracle: Oracle) -> None:
    await authority.token()
    first = await authority.first(credentials=token_text())
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
    entry = (await authority.last_audit()).entry
    assert (entry.outcome, entry.detail["webhook"]) == ("ok", question.id)
    assert await authority.first(credentials=token_text()) == first  # the answer was lost: nothing is asked again
    await authority.reenroll(request_for("cam-1", "k2"), peer_of(first))  # nor for a renewal
    assert len(oracle.asked) == 1


async def test_not_asked_where_there_is_none(authority: WebhookHarness, oracle: Oracle) -> None:
    await authority.token(device_id=None, model="free")
    await authority.first("new-1", token_text())
    assert oracle.asked == []


async def test_asked_last_of_all(authority: WebhookHarness, oracle: Oracle) -> None:
    await authority.token(uses_max=1)
    assert (await authority.refused("cam-2", token_text())).code == "not-your-identity"
    assert (await authority.refused("cam-1", token_text(secret="wrong"))).code == "bad-token"
    with pytest.raises(Pending):
        await authority.first("new-1", label="cam")
    assert oracle.asked == []
    (waiting,) = await authority.registry.requests(now=NOW)
    await approvals.approve(authority.registry, waiting.id, act=Act("operator", NOW))
    await authority.first("new-1", label="cam")
    assert [(q.device_id, q.path) for _, q in oracle.asked] == [("new-1", "approval")]


async def test_denied(authority: WebhookHarness, oracle: Oracle) -> None:
    await authority.token()
    oracle.verdict = Verdict(False, "not on the list")
    refusal = await authority.refused(credentials=token_text())
    assert isinstance(refusal, Refused)
    assert refusal.code == "webhook-denied"
    assert "list" not in refusal.message  # its words are for the audit
    entry = (await authority.last_audit()).entry
    assert (entry.actor, entry.outcome) == ("token t1", "webhook-denied")
    assert entry.detail == {"webhook": oracle.asked[0][1].id, "webhook_reason": "not on the list"}
    assert await authority.registry.credentials("cam-1") == []
    token = await authority.registry.token("t1")
    assert token is not None
    assert token.uses == 0


@pytest.mark.parametrize("without", [True, False])
async def test_who_cannot_be_asked_has_not_said_yes(authority: WebhookHarness, without: bool) -> None:
    if not without:
        authority.oracle = Oracle(failing="it did not answer within 5 s")
    await authority.token()
    refusal = await authority.refused(credentials=token_text())
    assert isinstance(refusal, Unavailable)
    assert refusal.code == "webhook-failed"
    entry = (await authority.last_audit()).entry
    assert (entry.actor, entry.outcome) == ("token t1", "webhook-failed")
    problem = "this process asks no webhooks" if without else "it did not answer within 5 s"
    assert entry.detail["webhook_problem"] == problem
    assert await authority.registry.credentials("cam-1") == []
    for _ in range(20):  # and again, which fills no more rows
        await authority.refused(credentials=token_text())
    assert (await authority.last_audit()).entry == entry


async def test_attributes_become_tags(authority: WebhookHarness, oracle: Oracle) -> None:
    oracle.verdict = Verdict(True, "", (("owner", "Kim"), ("site", "Bergen")))
    await authority.token()
    await authority.first(credentials=token_text())
    assert await authority.tags() == (("lot", "L7"), ("owner", "Kim"), ("site", "Bergen"))
    assert (EventKind.DEVICE_TAGGED, "cam-1", "") in await authority.events()
    await authority.token("t2", device_id=None, model="cam")
    await authority.first("new-1", token_text("t2"), key="k2")
    device = await authority.registry.device("new-1")
    assert device is not None
    assert (device.tags, device.model, device.state) == (oracle.verdict.tags, "cam", DeviceState.ACTIVE)
    found = await authority.registry.devices()
    assert [d.id for d in found] == ["cam-1", "new-1"]


async def test_more_tags_than_a_device_may_have(authority: WebhookHarness, oracle: Oracle) -> None:
    oracle.verdict = Verdict(True, "", tuple((f"a{n:02}", "b") for n in range(32)))
    await authority.token()
    assert (await authority.refused(credentials=token_text())).code == "webhook-failed"
    assert "cannot be tags" in (await authority.last_audit()).entry.detail["webhook_problem"]
    assert await authority.tags() == (("lot", "L7"), ("site", "Oslo"))


async def test_what_changes_while_it_thinks_is_looked_at_again(authority: WebhookHarness, oracle: Oracle) -> None:
    """Somebody else tags the device meanwhile: neither's tags are lost, and it is not asked twice."""
    oracle.verdict = Verdict(True, "", (("owner", "Kim"),))
    oracle.meanwhile = [TagDevice(CAM_1, (("lot", "L8"),), ("pilot",), 1)]
    await authority.token()
    await authority.first(credentials=token_text())
    assert await authority.tags() == (("lot", "L8"), ("owner", "Kim"))
    device = await authority.registry.device("cam-1")
    assert device is not None
    assert device.groups == ("pilot",)
    assert len(oracle.asked) == 1


async def test_an_approval_that_is_taken_back_while_it_thinks(authority: WebhookHarness, oracle: Oracle) -> None:
    with pytest.raises(Pending):
        await authority.first("new-1", label="cam")
    (waiting,) = await authority.registry.requests(now=NOW)
    await approvals.approve(authority.registry, waiting.id, act=Act("operator", NOW))
    oracle.meanwhile = [DecideRequest(waiting.id, RequestState.DENIED, "operator", NOW, "", waiting.expires_at)]
    with pytest.raises(Refused) as caught:
        await authority.first("new-1", label="cam")
    assert caught.value.code == "request-denied"
    assert await authority.registry.device("new-1") is None
    assert await authority.registry.credentials("new-1") == []


async def test_of_many_at_once_a_token_is_still_spent_once(authority: WebhookHarness, oracle: Oracle) -> None:
    await authority.token(device_id=None, model="cam", uses_max=1)
    outcomes = await asyncio.gather(
        *(authority.first(f"n{n}", token_text(), key=f"n{n}") for n in range(8)), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(Credential) == 1
    assert len(oracle.asked) == 8
