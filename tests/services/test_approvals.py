"""A device that shows nothing, an operator's yes or no, and the certificate that comes of it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import structs

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.domain.access import Act
from fleet.domain.approval import ApprovalRequest, RequestState, WaitingLimits, ask_again_seconds
from fleet.domain.changes import EventKind
from fleet.domain.credential import Credential
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import FleetError, Pending, Refused, TooMany, Unauthenticated
from fleet.domain.issuance_context import Names
from fleet.domain.manifest import ListedDevice, ManifestEntry
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.domain.peer import Peer
from fleet.domain.writes import ImportDevices, Insert, MarkUsed, SetModel
from fleet.services import approvals
from fleet.services.credentials import Submission, accepts_unauthenticated
from fleet.services.enrollment import RegistrationAuthority
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.test_enrollment import NOW, STRANGER, EnrollmentHarness, enroll, request_for, token_text

OPEN = ModelRules(admission=AdmissionRules((AdmissionPath.TOKEN, AdmissionPath.APPROVAL)))
LIMITS = WaitingLimits(requests_max=4, per_model_max=3, per_address_max=2)
MINUTE = timedelta(minutes=1)


class ApprovalHarness(EnrollmentHarness):
    async def ask(
        self, name: str = "new-1", key: str = "k1", label: str | None = "open", peer: Peer = STRANGER
    ) -> Credential:
        request = request_for(name, key)
        ra = RegistrationAuthority(self.registry, self.issuer, LIMITS)
        return await enroll(ra, peer, Submission(request, None, label), self.now)

    async def told(self, name: str = "new-1", key: str = "k1", **more: object) -> FleetError:
        try:
            await self.ask(name, key, **more)  # type: ignore[arg-type]
        except FleetError as error:
            return error
        raise AssertionError("a certificate was issued")

    async def code(self, name: str = "new-1", key: str = "k1", **more: object) -> str:
        return (await self.told(name, key, **more)).code

    async def only(self) -> ApprovalRequest:
        (found,) = await self.registry.requests(now=self.now)
        return found

    @property
    def act(self) -> Act:
        return Act("operator ann", self.now)

    async def approve(self, request: ApprovalRequest) -> None:
        await approvals.approve(self.registry, request.id, act=self.act, reason="seen it")

    async def audited(self) -> list[tuple[str, str, str]]:
        return [(r.entry.actor, r.entry.action, r.entry.outcome) for r in await self.registry.audit()][1:]


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[ApprovalHarness]:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    authority = ApprovalHarness(registry, LocalIssuer(*create_issuing("Acme", *create_root("Acme", NOW), NOW)))
    known = Device(DeviceId("cam-1"), "open", DeviceState.REGISTERED, NOW)
    await authority.write(Insert(Model("closed")), Insert(Model("open", rules=OPEN)), Insert(known))
    yield authority
    await registry.close()


async def test_asked_approved_and_issued_once(authority: ApprovalHarness) -> None:
    told = await authority.told()
    assert isinstance(told, Pending)
    request = await authority.only()
    assert (request.device_id, request.model, request.state) == ("new-1", "open", RequestState.PENDING)
    assert request.facts == "CN=new-1"
    assert request.id in told.message
    assert request.fingerprint in told.message
    assert await authority.registry.device("new-1") is None  # it reserves nothing
    await authority.approve(request)
    credential = await authority.ask()
    assert (credential.holder, credential.key_sha256) == ("new-1", request.key_sha256)
    assert credential.grant == f"request {request.id}"
    device = await authority.registry.device("new-1")
    assert device is not None
    assert (device.model, device.state) == ("open", DeviceState.ACTIVE)
    assert (await authority.only()).state is RequestState.ISSUED
    assert await authority.ask() == credential  # the answer was lost
    assert len(await authority.registry.credentials("new-1")) == 1
    assert await authority.audited() == [
        ("nobody", "device.enroll", "approval-pending"),
        ("operator ann", "request.approve", "ok"),
        (f"request {request.id}", "device.enroll", "ok"),
        (f"request {request.id}", "device.enroll", "ok"),
    ]
    events = await authority.events()
    assert (EventKind.REQUEST_PENDING, request.id, "new-1") in events
    assert (EventKind.REQUEST_DECIDED, request.id, "approved") in events


async def test_a_hundred_who_come_for_it_at_once_get_one_certificate(authority: ApprovalHarness) -> None:
    await authority.told()
    await authority.approve(await authority.only())
    got = await asyncio.gather(*(authority.ask() for _ in range(100)), return_exceptions=True)
    serials = {each.serial for each in got if isinstance(each, Credential)}
    assert len(serials) == 1
    assert {type(each) for each in got} == {Credential}
    assert len(await authority.registry.credentials("new-1")) == 1


async def test_once_it_was_used_the_request_earns_nothing_more(authority: ApprovalHarness) -> None:
    await authority.told()
    await authority.approve(await authority.only())
    first = await authority.ask()
    await authority.write(MarkUsed(first.fingerprint))
    assert await authority.code() == "request-used-up"


async def test_a_registered_device_asks_for_its_own_model(authority: ApprovalHarness) -> None:
    assert await authority.code("cam-1", label=None) == "approval-pending"
    assert (await authority.only()).model == "open"
    await authority.approve(await authority.only())
    assert (await authority.ask("cam-1", label=None)).holder == "cam-1"
    assert await authority.code("cam-1", "k2", label="closed") == "not-your-model"


@pytest.mark.parametrize(("name", "label"), [("new-1", None), ("new-1", "closed"), ("new-1", "none-such")])
async def test_where_nobody_may_wait_it_is_as_ever(authority: ApprovalHarness, name: str, label: str | None) -> None:
    told = await authority.told(name, label=label)
    assert isinstance(told, Unauthenticated)
    assert told.code == "no-credentials"
    assert await authority.registry.requests(now=NOW) == []


async def test_who_shows_something_does_not_wait(authority: ApprovalHarness) -> None:
    with pytest.raises(Unauthenticated, match="token"):
        await enroll(authority.ra, STRANGER, Submission(request_for("new-1"), token_text("none"), "open"), NOW)
    await authority.told("cam-1", "k1", label=None)
    await authority.approve(await authority.only())
    own = await authority.ask("cam-1", "k1", label=None)
    peer = Peer(address="192.0.2.8", certificate_der=own.der, fingerprint=own.fingerprint)
    assert await authority.code("new-1", "k2", peer=peer) == "use-reenroll"
    assert [r.device_id for r in await authority.registry.requests(now=NOW)] == ["cam-1"]


async def test_what_would_be_refused_anyway_is_never_put_to_an_operator(authority: ApprovalHarness) -> None:
    bad_key = replace(request_for("new-1", "k1"), key_type="RSA-1024")
    with pytest.raises(FleetError) as caught:
        await enroll(authority.ra, STRANGER, Submission(bad_key, None, "open"), NOW)
    assert caught.value.code == "key-not-allowed"
    await authority.told()
    await authority.approve(await authority.only())
    await authority.ask()
    assert await authority.code("new-2", "k1") == "key-in-use"
    assert await authority.code("new-1", "k2") == "already-enrolled"  # another key after the name of an enrolled device
    assert len(await authority.registry.requests(now=NOW)) == 1


async def test_denied(authority: ApprovalHarness) -> None:
    await authority.told()
    request = await authority.only()
    decided = await approvals.deny(authority.registry, request.id, act=authority.act, reason="not ours")
    assert (decided.state, decided.reason, decided.decided_by) == (RequestState.DENIED, "not ours", "operator ann")
    assert decided == await authority.only()
    told = await authority.told()
    assert isinstance(told, Refused)
    assert (told.code, told.message) == ("request-denied", "An operator has denied this request.")
    for _ in range(20):  # and again, which fills no more rows
        await authority.code()
    rows = [row for row in await authority.audited() if row[2] == "request-denied"]
    assert rows == [(f"request {request.id}", "device.enroll", "request-denied")]
    authority.now += timedelta(days=7)
    assert await authority.code() == "approval-pending"  # forgotten by then


async def test_an_approval_is_taken_back(authority: ApprovalHarness) -> None:
    await authority.told()
    await authority.approve(await authority.only())
    await approvals.deny(authority.registry, (await authority.only()).id, act=authority.act)
    assert await authority.code() == "request-denied"


async def test_an_approval_that_nobody_comes_for_ends(authority: ApprovalHarness) -> None:
    await authority.told()
    await authority.approve(await authority.only())
    authority.now += timedelta(days=7)
    assert await authority.code() == "approval-pending"


async def test_two_keys_for_one_name_are_two_requests(authority: ApprovalHarness) -> None:
    assert await authority.code(key="k1") == "approval-pending"
    mine = await authority.only()
    assert await authority.code(key="k2") == "approval-pending"
    await authority.approve(mine)
    assert await authority.code(key="k2") == "request-denied"
    assert (await authority.ask(key="k1")).key_sha256 == mine.key_sha256


async def test_another_model_than_the_one_that_was_asked_for(authority: ApprovalHarness) -> None:
    await authority.write(Insert(Model("other", rules=OPEN)))
    await authority.told()
    await authority.approve(await authority.only())
    assert await authority.code(label="other") == "not-your-model"
    await authority.write(SetModel(Model("open")))
    assert await authority.code() == "no-credentials"  # the model has been closed to approval meanwhile


async def test_who_asks_again_is_counted_and_fills_no_audit(authority: ApprovalHarness) -> None:
    for _ in range(50):
        assert await authority.code() == "approval-pending"
    assert (await authority.only()).asked == 2
    authority.now += MINUTE
    await authority.code()
    found = await authority.only()
    assert (found.asked, found.last_seen) == (51, authority.now)
    assert [row for row in await authority.audited() if row[2] == "approval-pending"] == [
        ("nobody", "device.enroll", "approval-pending"),
        (f"request {found.id}", "device.enroll", "approval-pending"),
        (f"request {found.id}", "device.enroll", "approval-pending"),
    ]


async def test_no_more_wait_than_there_is_room_for(authority: ApprovalHarness) -> None:
    assert await authority.code("d1") == await authority.code("d2", "k2") == "approval-pending"
    told = await authority.told("d3", "k3")
    assert isinstance(told, TooMany)
    assert (told.code, told.retry_after_seconds) == ("too-many-requests", approvals.NO_ROOM_SECONDS)
    elsewhere = Peer(address="2001:db8::1")
    assert await authority.code("d3", "k3", peer=elsewhere) == "approval-pending"
    assert await authority.code("d4", "k4", peer=Peer(address="2001:db8::2")) == "too-many-requests"  # of the model
    for n in range(20):
        assert await authority.code(f"x{n}", f"x{n}") == "too-many-requests"
    refused = [row for row in await authority.audited() if row[2] == "too-many-requests"]
    assert len(refused) == 2  # one for each network, however many keys were made
    assert len(await authority.registry.requests(now=NOW)) == 3


@pytest.mark.parametrize(("junk", "others"), [("2001:db8:{:x}::7", "2001:db9::5"), ("198.51.{}.7", "203.0.113.5")])
async def test_junk_from_many_blocks_of_one_provider_keeps_no_honest_device_out(
    authority: ApprovalHarness, junk: str, others: str
) -> None:
    codes = [await authority.code(f"j{n}", f"j{n}", peer=Peer(address=junk.format(n))) for n in range(1, 5)]
    assert codes == ["approval-pending"] * 3 + ["too-many-requests"]
    assert await authority.code("honest", "h", peer=Peer(address=others)) == "approval-pending"
    assert await authority.code("j9", "j9", peer=Peer(address=junk.format(9))) == "too-many-requests"
    assert "honest" in {r.device_id for r in await authority.registry.requests(now=NOW)}


async def test_junk_from_some_addresses_keeps_no_honest_device_out(authority: ApprovalHarness) -> None:
    limits = WaitingLimits(per_model_max=100, per_address_max=10)
    ra = RegistrationAuthority(authority.registry, authority.issuer, limits)

    async def code(name: str, key: str, address: str) -> str:
        with pytest.raises(FleetError) as caught:
            await enroll(ra, Peer(address=address), Submission(request_for(name, key), None, "open"), authority.now)
        return caught.value.code

    junk = [(f"j{n}", f"j{n}", f"198.51.{n % 11}.7") for n in range(110)]
    codes = Counter(await asyncio.gather(*(code(*each) for each in junk)))
    assert codes["approval-pending"] == limits.per_model_max
    assert set(codes) <= {"approval-pending", "too-many-requests"}
    assert await code("honest-1", "h1", "203.0.113.5") == "approval-pending"
    again = [(f"n{n}", f"n{n}", f"198.51.{n % 11}.7") for n in range(22)]
    await asyncio.gather(*(code(*each) for each in again))
    waiting = await authority.registry.requests(now=NOW)
    assert "honest-1" in {r.device_id for r in waiting}
    assert len(waiting) == limits.per_model_max
    # Strangers who do not ask again are gone in a day; who does stays.
    authority.now += timedelta(hours=20)
    assert await code("honest-1", "h1", "203.0.113.5") == "approval-pending"
    authority.now += timedelta(hours=20)
    assert [r.device_id for r in await authority.registry.requests(now=authority.now)] == ["honest-1"]


async def test_an_announced_key_waits_however_many_others_do(authority: ApprovalHarness) -> None:
    """At a model that admits by approval alone, a listed key gets in no sooner, and always has room."""
    for n in range(3):
        assert await authority.code(f"d{n}", f"k{n}", peer=Peer(address=f"192.0.{n}.1")) == "approval-pending"
    assert await authority.code("cam-9", "k9", peer=Peer(address="192.0.2.1")) == "too-many-requests"
    device = Device(DeviceId("cam-9"), "open", DeviceState.REGISTERED, NOW)
    entry = ManifestEntry(DeviceId("cam-9"), "open", "", request_for("cam-9", "k9").key_sha256, bytes(32))
    await authority.write(ImportDevices((ListedDevice(device, entry),)))
    assert await authority.code("cam-9", "k9", peer=Peer(address="192.0.2.1")) == "approval-pending"
    assert await authority.code("cam-9", "other", peer=Peer(address="192.0.2.1")) == "not-your-key"


async def test_one_subscriber_of_ipv6_is_one_address(authority: ApprovalHarness) -> None:
    codes = [await authority.code(f"d{n}", f"k{n}", peer=Peer(address=f"2001:db8::{n}")) for n in range(3)]
    assert codes == ["approval-pending", "approval-pending", "too-many-requests"]


async def test_decisions_that_cannot_be_made(authority: ApprovalHarness) -> None:
    await authority.told()
    request = await authority.only()

    async def code(decide: object, id_: str = request.id, **more: object) -> str:
        with pytest.raises(FleetError) as caught:
            await decide(authority.registry, id_, act=authority.act, **more)  # type: ignore[operator]
        return caught.value.code

    assert await code(approvals.approve, "0" * 16) == "no-such-request"
    assert await code(approvals.approve, reason="two\nlines") == "bad-reason"
    assert await code(approvals.approve, revision=7) == "changed-meanwhile"
    await authority.approve(request)
    assert await code(approvals.approve) == "request-approved"
    await authority.ask()
    assert await code(approvals.deny) == "request-issued"
    authority.now += timedelta(days=7)
    assert await code(approvals.deny) == "no-such-request"


async def test_what_a_csr_says_is_made_harmless(authority: ApprovalHarness) -> None:
    names = Names((("2.5.4.3", "new-1"), ("2.5.4.10", "A\x1b[31m\0\n" + "x" * 2000)), ("dns:a",))
    request = replace(request_for("new-1", "k1"), names=names)
    with pytest.raises(Pending):
        await enroll(authority.ra, STRANGER, Submission(request, None, "open"), NOW)
    facts = (await authority.only()).facts
    assert facts.startswith("CN=new-1, O=A?[31m??xxx")
    assert facts.isprintable()
    assert len(facts) == 1001


async def test_strangers_are_heard_only_where_a_model_lets_them(authority: ApprovalHarness) -> None:
    async def may_ask(label: str | None) -> bool:
        return await accepts_unauthenticated(authority.registry, label, authority.now)

    assert await may_ask(None)
    assert await may_ask("open")
    assert not await may_ask("closed")
    assert not await may_ask("none-such")
    await authority.write(SetModel(Model("open")))
    assert not await may_ask("open")
    assert await may_ask(None)  # all models are looked through once a second
    authority.now += timedelta(seconds=1)
    assert not await may_ask(None)


async def test_the_pause_grows_with_the_age_and_is_spread(authority: ApprovalHarness) -> None:
    await authority.told()
    request = await authority.only()

    def pauses(age: timedelta, first: int = 30) -> list[int]:
        each = (structs.replace(request, id=f"{n:016x}") for n in range(200))
        return [ask_again_seconds(r, request.first_seen + age, first) for r in each]

    for age, around in ((0 * MINUTE, 30), (4 * MINUTE, 60), (40 * MINUTE, 600), (600 * MINUTE, 900)):
        found = pauses(age)
        assert around * 0.8 <= min(found) < around * 0.9
        assert around * 1.1 < max(found) <= around * 1.2
    assert set(pauses(0 * MINUTE, first=1)) == {1}
    assert min(pauses(-10 * MINUTE)) >= 24  # the clock was put back
