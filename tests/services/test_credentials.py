"""What a client presented becomes a grant: which credential decides, and what the registry says about it."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace as with_changes
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.approval import WaitingLimits
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import FleetError, Refused, Unauthenticated
from fleet.domain.grants import ApprovalGrant, ClaimGrant, IdevidGrant, ManifestGrant, StationGrant, TokenGrant
from fleet.domain.idevid import Anchor, IdevidBinding, IdevidCertificate
from fleet.domain.issuance_context import EnrollmentRequest, Grant, Names
from fleet.domain.manifest import ListedDevice, ManifestEntry
from fleet.domain.model_rules import AdmissionPath, AdmissionRules, ModelRules
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential, AddRequest, BindIdevid, ImportDevices, Insert, RevokeCredentials, Write
from fleet.services import credentials
from fleet.services.credentials import (
    TOKEN_TEXT_SIZE_MAX,
    BasicCredentials,
    Submission,
    authenticate,
    present,
    token_parts,
    verified_token,
)
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
STRANGER = Peer("192.0.2.7")
SECRET = "s3cret"
ANY_PATH = ModelRules(admission=AdmissionRules(tuple(AdmissionPath)))
TOKEN = Token("t1", hashlib.sha256(SECRET.encode()).digest(), DeviceId("cam-1"), None, 1, 0, NOW, NOW + HOUR)
BY_TOKEN = BasicCredentials("", f"t1.{SECRET}")
LEAF, ROOT = b"the manufacturer's leaf", b"the manufacturer's root"
ANCHOR = Anchor("acme", ("cam", "pump"), hashlib.sha256(ROOT).digest(), ROOT, NOW)
IDEVID = IdevidCertificate(hashlib.sha256(LEAF).digest(), b"i" * 32, ("SN7", "534e37"))
MANUFACTURED = Peer("192.0.2.7", LEAF, (LEAF, ROOT), IDEVID.fingerprint, tenant=None)


def entry(device: str, model: str = "cam", serial: str = "", key: bytes | None = None) -> ManifestEntry:
    return ManifestEntry(DeviceId(device), model, serial, key, hashlib.sha256(device.encode()).digest())


def listed(each: ManifestEntry) -> ListedDevice:
    return ListedDevice(Device(each.device_id, each.model, DeviceState.REGISTERED, NOW), each)


def request_for(device: str = "cam-1", key: bytes = b"k" * 32) -> EnrollmentRequest:
    return EnrollmentRequest(Names((("2.5.4.3", device),)), "EC-P256", b"spki", key)


def credential(kind: CredentialKind, holder: str) -> Credential:
    der = f"{kind} {holder}".encode()
    digest = hashlib.sha256(der).digest()
    lifetime = (NOW - HOUR, NOW + HOUR)
    return Credential(digest, digest[:8].hex(), kind, holder, digest, *lifetime, CredentialState.ACTIVE, NOW, der)


def shows(held: Credential) -> Peer:
    return Peer("192.0.2.7", held.der, (held.der,), held.fingerprint)


def reads_idevid(der: bytes) -> IdevidCertificate:
    assert der == LEAF
    return IDEVID


class Registry(SqliteRegistry):
    async def write(self, *writes: Write) -> None:
        await self.commit(Change(AuditEntry(NOW, "test", "prepare", "", "ok"), writes))

    async def grant(
        self,
        peer: Peer = STRANGER,
        given: BasicCredentials | None = None,
        *,
        device: str = "cam-1",
        key: bytes = b"k" * 32,
        label: str | None = None,
        now: datetime = NOW,
    ) -> Grant | None:
        submission = Submission(request_for(device, key), given, label)
        return await authenticate(await present(self, peer, submission, now, reads_idevid))

    async def refusal(self, *args: object, **given: object) -> str:
        with pytest.raises(FleetError) as caught:
            await self.grant(*args, **given)  # type: ignore[arg-type]  # as grant's
        return caught.value.code


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    opened = await Registry.open(tmp_path / "registry.db")
    assert isinstance(opened, Registry)
    models = [Model("cam"), Model("pump"), Model("open", rules=ANY_PATH)]
    await opened.write(*[Insert(model) for model in models])
    await opened.write(Insert(Device(DeviceId("cam-1"), "cam", DeviceState.REGISTERED, NOW)))
    yield opened
    await opened.close()


# Tokens


async def test_a_token_with_its_secret(registry: Registry) -> None:
    await registry.write(Insert(TOKEN))
    assert await registry.grant(given=BY_TOKEN) == TokenGrant(TOKEN, "")
    assert await registry.grant(given=with_changes(BY_TOKEN, username="cam-1")) == TokenGrant(TOKEN, "cam-1")


@pytest.mark.parametrize("password", ["t1.wrong", "t1.", "t1", ".s3cret", "t2.s3cret", "", "t1.s3cret.", "T1.s3cret"])
async def test_any_other_token_is_answered_the_same(registry: Registry, password: str) -> None:
    await registry.write(Insert(TOKEN))
    assert await registry.refusal(given=BasicCredentials("", password)) == "bad-token"


def test_an_overlong_token_is_not_hashed() -> None:
    longest = "t1." + "x" * (TOKEN_TEXT_SIZE_MAX - 3)
    assert token_parts(longest) == ("t1", "x" * 253)
    assert token_parts(longest + "x") == ("", "")
    assert token_parts("t1.a.b") == ("t1", "a.b")


def test_no_token_has_an_empty_secret() -> None:
    with pytest.raises(Unauthenticated):
        verified_token(None, "")
    assert verified_token(TOKEN, SECRET) is TOKEN


async def test_a_models_token_brings_the_manifests_entry_and_a_devices_own_does_not_need_it(registry: Registry) -> None:
    for_model = replace(TOKEN, id="t2", device_id=None, model="cam")
    known = entry("cam-2", key=b"l" * 32)
    await registry.write(Insert(TOKEN), Insert(for_model), ImportDevices((listed(known), listed(entry("cam-3")))))
    by_model = BasicCredentials("", f"t2.{SECRET}")
    assert await registry.grant(given=by_model, device="cam-2") == TokenGrant(for_model, "", known)
    assert await registry.grant(given=by_model, device="new-1") == TokenGrant(for_model, "", None)
    assert await registry.grant(given=BY_TOKEN, device="cam-2") == TokenGrant(TOKEN, "", None)


async def test_a_token_takes_precedence_over_a_certificate_that_must_be_valid_all_the_same(registry: Registry) -> None:
    station = credential(CredentialKind.STATION, "line-1")
    await registry.write(Insert(TOKEN), Insert(Station("line-1", ("cam",), NOW)), AddCredential(station))
    assert isinstance(await registry.grant(shows(station), BY_TOKEN), TokenGrant)
    assert isinstance(await registry.grant(shows(station)), StationGrant)
    await registry.write(RevokeCredentials(CredentialKind.STATION, "line-1"))
    assert await registry.refusal(shows(station), BY_TOKEN) == "certificate-revoked"
    unknown = credential(CredentialKind.DEVICE, "cam-9")
    assert await registry.refusal(shows(unknown), BY_TOKEN) == "certificate-unknown"


# Stations and claims


@pytest.mark.parametrize(
    ("label", "model"), [(None, ""), ("cam", "cam"), ("pump", "pump"), ("east", "lamp"), ("west", ""), ("x", "x")]
)
async def test_the_label_names_a_stations_model_or_a_tenant_with_one(
    registry: Registry, label: str | None, model: str
) -> None:
    tenants = {"lamp": "east", "fan": "west", "door": "west"}
    await registry.write(*[Insert(Model(name, rules=ModelRules(tenant=of))) for name, of in tenants.items()])
    station = Station("line-1", ("cam", "pump", *tenants), NOW)
    held = credential(CredentialKind.STATION, "line-1")
    await registry.write(Insert(station), AddCredential(held))
    assert await registry.grant(shows(held), label=label) == StationGrant(station, model, held)


async def test_a_claim_brings_the_manifests_entry(registry: Registry) -> None:
    claim = Claim("batch", "cam", 10, 0, NOW, NOW + HOUR)
    held, known = credential(CredentialKind.CLAIM, "batch"), entry("cam-2")
    await registry.write(Insert(claim), AddCredential(held), ImportDevices((listed(known),)))
    assert await registry.grant(shows(held), device="cam-2") == ClaimGrant(claim, held, known)
    assert await registry.grant(shows(held), device="new-1") == ClaimGrant(claim, held, None)


async def test_a_devices_own_certificate_gives_no_right_to_a_first_one(registry: Registry) -> None:
    held = credential(CredentialKind.DEVICE, "cam-1")
    await registry.write(AddCredential(held))
    assert await registry.grant(shows(held)) is None
    assert await registry.grant(shows(held), device="new-1", label="open") is None  # nor to ask for approval


# Manufacturers' certificates


async def test_a_manufacturers_certificate_with_the_entry_of_its_serial(registry: Registry) -> None:
    known = entry("cam-2", serial="SN7")
    await registry.write(Insert(ANCHOR), ImportDevices((listed(known), listed(entry("cam-3", serial="SN8")))))
    assert await registry.grant(MANUFACTURED) == IdevidGrant(ANCHOR, IDEVID, known, (), "")


async def test_a_serial_is_looked_for_in_each_of_its_forms_and_among_the_anchors_models_only(
    registry: Registry,
) -> None:
    in_hex, foreign = entry("pump-1", "pump", "534e37"), entry("o-1", "open", "SN7")
    await registry.write(Insert(ANCHOR), ImportDevices((listed(in_hex), listed(foreign))))
    assert await registry.grant(MANUFACTURED) == IdevidGrant(ANCHOR, IDEVID, in_hex, (), "")


async def test_a_serial_is_compared_without_case_and_spaces(registry: Registry) -> None:
    known = entry("cam-2", serial=" sn7")
    await registry.write(Insert(ANCHOR), ImportDevices((listed(known),)))
    assert await registry.grant(MANUFACTURED) == IdevidGrant(ANCHOR, IDEVID, known, (), "")


async def test_a_serial_of_several_devices_is_ambiguous_until_the_label_names_the_model(registry: Registry) -> None:
    both = entry("cam-2", "cam", "SN7"), entry("pump-2", "pump", "SN7")
    await registry.write(Insert(ANCHOR), ImportDevices(tuple(map(listed, both))))
    assert await registry.refusal(MANUFACTURED) == "idevid-ambiguous"
    assert await registry.grant(MANUFACTURED, label="pump") == IdevidGrant(ANCHOR, IDEVID, both[1], (), "pump")
    assert await registry.refusal(MANUFACTURED, label="open") == "idevid-ambiguous"  # not the anchor's


async def test_an_anchor_with_one_model_names_it(registry: Registry) -> None:
    anchor = replace(ANCHOR, models=("cam",))
    await registry.write(Insert(anchor))
    assert await registry.grant(MANUFACTURED) == IdevidGrant(anchor, IDEVID, None, (), "cam")


async def test_the_bindings_of_this_key_and_of_this_device(registry: Registry) -> None:
    elsewhere = IdevidBinding(b"i" * 32, DeviceId("cam-9"), IDEVID.fingerprint, "acme", NOW)
    of_device = IdevidBinding(b"j" * 32, DeviceId("cam-1"), b"f" * 32, "acme", NOW)
    unrelated = IdevidBinding(b"u" * 32, DeviceId("cam-8"), b"g" * 32, "acme", NOW)
    await registry.write(Insert(ANCHOR), *map(BindIdevid, (elsewhere, of_device, unrelated)))
    grant = await registry.grant(MANUFACTURED)
    assert isinstance(grant, IdevidGrant)
    assert sorted(each.device_id for each in grant.bindings) == ["cam-1", "cam-9"]


async def test_only_a_chain_to_an_anchor_of_the_registry_is_a_manufacturers(registry: Registry) -> None:
    assert await registry.refusal(MANUFACTURED) == "certificate-unknown"  # the CA has been removed meanwhile
    other_root = b"another root"
    others = Anchor("zeta", ("cam",), hashlib.sha256(other_root).digest(), other_root, NOW)
    await registry.write(Insert(others), Insert(ANCHOR))
    grant = await registry.grant(MANUFACTURED)
    assert isinstance(grant, IdevidGrant)
    assert grant.anchor == ANCHOR
    for chain in ((LEAF,), (LEAF, b"a third"), ()):
        peer = Peer("192.0.2.7", LEAF, chain, IDEVID.fingerprint, tenant=None)
        assert await registry.refusal(peer) == "certificate-unknown"
    submission = Submission(request_for())
    with pytest.raises(Unauthenticated):
        await present(registry, MANUFACTURED, submission, NOW)  # where none is read


async def test_a_manufacturers_certificate_asks_for_no_approval(registry: Registry) -> None:
    await registry.write(Insert(ANCHOR))
    assert isinstance(await registry.grant(MANUFACTURED, device="new-1", label="open"), IdevidGrant)
    presented = await present(registry, MANUFACTURED, Submission(request_for("new-1"), label="open"), NOW, reads_idevid)
    assert await credentials.by_approval(presented) is None


# Without credentials


async def test_a_listed_key_is_its_devices(registry: Registry) -> None:
    known = entry("cam-2", key=b"l" * 32)
    await registry.write(ImportDevices((listed(known), listed(entry("cam-3", key=b"m" * 32)))))
    assert await registry.grant(device="cam-2", key=b"l" * 32) == ManifestGrant(known)
    assert await registry.grant(device="cam-2", key=b"n" * 32) is None
    await registry.write(Insert(TOKEN))
    assert isinstance(await registry.grant(given=BY_TOKEN, key=b"l" * 32), TokenGrant)
    presented = await present(registry, STRANGER, Submission(request_for(key=b"l" * 32), BY_TOKEN), NOW)
    assert await credentials.by_manifest(presented) is None  # with credentials, those decide


async def test_a_stranger_may_ask_for_approval_where_the_model_allows_it(registry: Registry) -> None:
    await registry.write(Insert(Device(DeviceId("o-1"), "open", DeviceState.REGISTERED, NOW)))
    for device, label in (("new-1", None), ("new-1", "cam"), ("new-1", "none"), ("cam-1", "open"), ("cam-1", None)):
        assert await registry.grant(device=device, label=label) is None
    for device, label in (("new-1", "open"), ("o-1", None), ("o-1", "cam")):  # a registered device's own model counts
        grant = await registry.grant(device=device, label=label)
        assert isinstance(grant, ApprovalGrant)
        asked = grant.request
        assert (grant.is_new, asked.device_id, asked.model, asked.address) == (True, device, "open", "192.0.2.7")
        assert (asked.key_sha256, asked.key_type) == (b"k" * 32, "EC-P256")
        assert asked.first_seen == asked.last_seen == asked.expires_at == NOW


async def test_a_request_is_taken_up_again_until_it_expires(registry: Registry) -> None:
    first = await registry.grant(device="new-1", label="open")
    assert isinstance(first, ApprovalGrant)
    queued = replace(first.request, expires_at=NOW + HOUR)
    await registry.write(AddRequest(queued, WaitingLimits()))
    again = await registry.grant(device="new-1", label="open", now=NOW + HOUR - timedelta(seconds=1))
    assert again == ApprovalGrant(queued)
    late = await registry.grant(device="new-1", label="open", now=NOW + HOUR)
    assert isinstance(late, ApprovalGrant)
    assert late.is_new
    other_key = await registry.grant(device="new-1", label="open", key=b"z" * 32)
    assert isinstance(other_key, ApprovalGrant)
    assert other_key.is_new


async def test_with_wrong_credentials_nobody_waits_for_approval(registry: Registry) -> None:
    assert await registry.refusal(given=BasicCredentials("", "t1.x"), device="new-1", label="open") == "bad-token"
    presented = await present(registry, STRANGER, Submission(request_for("new-1"), BY_TOKEN, "open"), NOW)
    assert await credentials.by_approval(presented) is None


def test_the_secret_is_not_shown() -> None:
    assert SECRET not in repr(BY_TOKEN)
    assert SECRET not in repr(Submission(request_for(), BY_TOKEN))


async def test_a_device_out_of_service_is_refused_whatever_else_it_shows(registry: Registry) -> None:
    await registry.write(Insert(TOKEN), Insert(Device(DeviceId("off"), "cam", DeviceState.SUSPENDED, NOW)))
    held = credential(CredentialKind.DEVICE, "off")
    await registry.write(AddCredential(held))
    with pytest.raises(Refused):
        await registry.grant(shows(held), BY_TOKEN)
