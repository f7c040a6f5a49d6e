import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import structs

from fleet.ca.authority import create_issuing, create_root
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.domain.changes import AuditEntry, AuditRow, Change, Event, EventKind
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station, Token
from fleet.domain.device import Device, DeviceFilter, DeviceId, DeviceState, Model
from fleet.domain.enrollment import permit_by_operator
from fleet.domain.errors import FleetError, Invalid, Refused, Unauthenticated
from fleet.domain.issuance_context import EnrollmentRequest, Names
from fleet.domain.peer import Peer
from fleet.domain.writes import AddCredential, Insert, MarkUsed, MoveDevice, RevokeCredentials, RevokeToken, Write
from fleet.services.credentials import BasicCredentials, Submission
from fleet.services.enrollment import RegistrationAuthority
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.names import names_of_certificate

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
STRANGER = Peer(address="192.0.2.7")
SECRET = "s3cret-s3cret-s3cret"


def request_for(common_name: str, key: str = "", key_type: str = "EC-P256") -> EnrollmentRequest:
    """A request as the wire hands it over. Requests with the same `key` are for the same key."""
    spki = KEYS.setdefault(key or object(), new_spki())
    names = Names((("2.5.4.3", common_name),))
    return EnrollmentRequest(names, key_type, spki, hashlib.sha256(spki).digest())


KEYS: dict[object, bytes] = {}


def new_spki() -> bytes:
    return generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def peer_of(credential: Credential) -> Peer:
    return Peer(address="192.0.2.8", certificate_der=credential.der, fingerprint=credential.fingerprint)


def token_text(name: str = "t1", secret: str = SECRET, username: str = "") -> BasicCredentials:
    return BasicCredentials(username, f"{name}.{secret}")


async def enroll(ra: RegistrationAuthority, peer: Peer, submission: Submission, now: datetime) -> Credential:
    async with ra.attempt("device.enroll", peer, now) as attempt:
        return await attempt.enroll(submission)


@dataclass
class EnrollmentHarness:
    """A registry with models cam and pump, device cam-1 registered, and the CA beside it."""

    registry: SqliteRegistry
    issuer: LocalIssuer
    now: datetime = NOW

    @property
    def ra(self) -> RegistrationAuthority:
        return RegistrationAuthority(self.registry, self.issuer)

    async def write(self, *writes: Write) -> None:
        await self.registry.commit(Change(AuditEntry(self.now, "test", "prepare", "", "ok"), writes))

    async def token(self, name: str = "t1", **given: object) -> None:
        values: dict[str, object] = {"device_id": DeviceId("cam-1"), "model": None, "uses_max": 1, **given}
        digest = hashlib.sha256(SECRET.encode()).digest()
        end = self.now + timedelta(hours=1)
        await self.write(Insert(Token(name, digest, uses=0, created_at=self.now, expires_at=end, **values)))  # type: ignore[arg-type]

    async def station(self, *models: str) -> Peer:
        station = Station("line-1", models, NOW)
        spki = new_spki()
        permit = permit_by_operator(CredentialKind.STATION, station.name, spki, NOW + timedelta(days=365), NOW)
        credential = self.issuer.issue(permit, NOW)
        await self.write(Insert(station), AddCredential(credential))
        return peer_of(credential)

    async def enroll(
        self,
        request: EnrollmentRequest,
        credentials: BasicCredentials | None = None,
        *,
        peer: Peer = STRANGER,
        label: str | None = None,
    ) -> Credential:
        return await enroll(self.ra, peer, Submission(request, credentials, label), self.now)

    async def reenroll(self, request: EnrollmentRequest, peer: Peer, *, label: str | None = None) -> Credential:
        assert peer.certificate_der is not None
        subject = x509.load_der_x509_certificate(peer.certificate_der).subject
        names = Names(tuple((a.oid.dotted_string, str(a.value)) for a in subject))
        async with self.ra.attempt("device.reenroll", peer, self.now) as attempt:
            return await attempt.reenroll(Submission(request, None, label, names))

    async def enrolled(self, key: str = "first") -> Credential:
        await self.token("setup")
        return await self.enroll(request_for("cam-1", key), token_text("setup"))

    async def last_audit(self) -> AuditRow:
        return (await self.registry.audit())[-1]

    async def events(self) -> list[tuple[str, str, str]]:
        last, found = await self.registry.last_event(), list[Event]()
        async for event in self.registry.follow(0):
            found.append(event)
            if event.seq == last:
                break
        return [(e.kind, e.subject, e.detail) for e in found]

    async def state_of(self, credential: Credential) -> CredentialState:
        facts = await self.registry.holder_facts(credential.fingerprint)
        assert facts is not None
        return facts.credential.state


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[EnrollmentHarness]:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    authority = EnrollmentHarness(registry, LocalIssuer(*create_issuing("Acme", *create_root("Acme", NOW), NOW)))
    await authority.write(Insert(Model("cam")), Insert(Model("pump", key_types=("EC-P384",))))
    await authority.write(Insert(Device(DeviceId("cam-1"), "cam", DeviceState.REGISTERED, NOW, "SN1")))
    yield authority
    await registry.close()


async def many_unused(authority: EnrollmentHarness, count: int, name: str = "many") -> list[Credential]:
    """Certificates of cam-1 for as many keys, in order of issue."""
    await authority.token(name, uses_max=count)
    return [await authority.enroll(request_for("cam-1", f"{name} {n}"), token_text(name)) for n in range(count)]


# By token


async def test_a_device_earns_its_certificate_by_its_token(authority: EnrollmentHarness) -> None:
    await authority.token()
    credential = await authority.enroll(request_for("cam-1"), token_text(username="cam-1"))
    assert (credential.holder, credential.state) == ("cam-1", CredentialState.ISSUED)
    device, token = await authority.registry.device("cam-1"), await authority.registry.token("t1")
    assert device is not None
    assert device.state is DeviceState.ACTIVE
    assert token is not None
    assert token.uses == 1
    assert await authority.registry.credentials("cam-1") == [credential]
    row = await authority.last_audit()
    assert (row.entry.actor, row.entry.action, row.entry.subject) == ("token t1", "device.enroll", "device cam-1")
    assert (row.entry.outcome, row.entry.address) == ("ok", "192.0.2.7")
    assert row.entry.detail["serial"] == credential.serial
    fingerprint = credential.fingerprint.hex()
    assert await authority.events() == [
        (EventKind.DEVICE_STATE, "cam-1", "active"),
        (EventKind.CREDENTIAL_ISSUED, "cam-1", fingerprint),
    ]


async def test_the_certificates_names_come_from_the_registry(authority: EnrollmentHarness) -> None:
    await authority.token()
    request = request_for("cam-1")
    asked = Names((("2.5.4.3", "cam-1"), ("2.5.4.10", "Admins")), ("DNS:admin.example",))
    credential = await authority.enroll(replace(request, names=asked), token_text())
    certificate = x509.load_der_x509_certificate(credential.der)
    assert certificate.subject.rfc4514_string() == "2.5.4.5=SN1,CN=cam-1"


async def test_a_token_of_a_model_brings_a_new_device_in(authority: EnrollmentHarness) -> None:
    await authority.token(device_id=None, model="cam", uses_max=2)
    await authority.enroll(request_for("new-1"), token_text())
    await authority.enroll(request_for("new-2"), token_text(), label="cam")
    device = await authority.registry.device("new-2")
    assert device is not None
    assert (device.model, device.state) == ("cam", DeviceState.ACTIVE)
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("new-3"), token_text())
    assert refused.value.code == "token-used-up"
    assert await authority.registry.device("new-3") is None


async def test_a_token_of_a_model_never_takes_over_a_device(authority: EnrollmentHarness) -> None:
    await authority.enrolled()
    await authority.token(device_id=None, model="cam", uses_max=9)
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), token_text())
    assert refused.value.code == "already-enrolled"


async def test_a_token_for_this_very_device_lets_a_reflashed_board_back_in(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    await authority.write(MarkUsed(first.fingerprint))
    await authority.token()
    second = await authority.enroll(request_for("cam-1"), token_text())
    assert second.fingerprint != first.fingerprint
    assert await authority.state_of(first) is CredentialState.ACTIVE  # until the new one is seen in use


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        (None, "no-credentials"),
        (token_text("nobody"), "bad-token"),
        (token_text(secret="wrong"), "bad-token"),
        (token_text(secret=""), "bad-token"),
        (BasicCredentials("", ""), "bad-token"),
        (BasicCredentials("", "t1"), "bad-token"),
        (BasicCredentials("", f".{SECRET}"), "bad-token"),
        (BasicCredentials("", SECRET), "bad-token"),
        (BasicCredentials("", f"t1.{SECRET} "), "bad-token"),
        (BasicCredentials("", f"t1.{SECRET}" + "x" * 300), "bad-token"),
        (BasicCredentials("", "ü\0.\0"), "bad-token"),
    ],
)
async def test_whoever_proves_nothing_is_told_the_same(
    authority: EnrollmentHarness, credentials: BasicCredentials | None, why: str
) -> None:
    await authority.token()
    with pytest.raises(Unauthenticated) as refused:
        await authority.enroll(request_for("cam-1"), credentials)
    assert refused.value.code == why
    row = await authority.last_audit()
    assert (row.entry.actor, row.entry.outcome) == ("nobody", why)
    assert SECRET not in repr(row)
    assert SECRET not in str(refused.value)


async def test_a_token_is_refused_for_what_it_does_not_cover(authority: EnrollmentHarness) -> None:
    await authority.write(Insert(Device(DeviceId("pump-1"), "pump", DeviceState.REGISTERED, NOW)))
    await authority.token(uses_max=9)
    await authority.token("model", device_id=None, model="cam", uses_max=9)
    await authority.token("unborn", device_id=DeviceId("cam-99"), uses_max=9)
    cases: list[tuple[str, BasicCredentials, str | None, str]] = [
        ("pump-1", token_text(), None, "not-your-identity"),
        ("nobody-1", token_text(), None, "not-your-identity"),  # as for one that exists: no test for ids
        ("cam-1", token_text(username="cam-2"), None, "not-your-identity"),
        ("cam-1", token_text(), "pump", "not-your-model"),
        ("pump-1", token_text("model"), None, "not-your-model"),
        ("new-1", token_text("model"), "pump", "not-your-model"),
        ("cam-99", token_text("unborn"), None, "unknown-device"),
        ("cam-99", token_text("unborn"), "cam", "unknown-device"),
    ]
    for name, credentials, label, code in cases:
        with pytest.raises(Refused) as refused:
            await authority.enroll(request_for(name), credentials, label=label)
        assert refused.value.code == code, (name, label)
        assert (await authority.last_audit()).entry.actor.startswith("token ")
    assert [t.uses for t in await authority.registry.tokens()] == [0, 0, 0]


async def test_a_token_that_expired_or_was_revoked_is_refused(authority: EnrollmentHarness) -> None:
    await authority.token()
    authority.now = NOW + timedelta(hours=1)
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), token_text())
    assert refused.value.code == "token-expired"
    authority.now = NOW
    await authority.write(RevokeToken("t1", NOW))
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), token_text())
    assert refused.value.code == "token-revoked"


@pytest.mark.parametrize("state", [DeviceState.SUSPENDED, DeviceState.REVOKED, DeviceState.RETIRED])
async def test_a_device_out_of_service_gets_nothing(authority: EnrollmentHarness, state: DeviceState) -> None:
    await authority.token()
    await authority.write(MoveDevice(DeviceId("cam-1"), frozenset({DeviceState.REGISTERED}), state))
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), token_text())
    assert refused.value.code == f"device-{state}"


@pytest.mark.parametrize("name", ["", "#", "a/b", "+", "x" * 65, "a\0b", "$SYS", "ü"])
async def test_a_name_that_is_no_device_id_is_invalid(authority: EnrollmentHarness, name: str) -> None:
    await authority.token(device_id=None, model="cam", uses_max=9)
    with pytest.raises(Invalid):
        await authority.enroll(request_for(name), token_text())
    assert (await authority.last_audit()).entry.subject == "device ?"


async def test_a_key_that_the_model_forbids_is_invalid(authority: EnrollmentHarness) -> None:
    await authority.token(device_id=None, model="pump", uses_max=9)
    with pytest.raises(Invalid) as refused:
        await authority.enroll(request_for("pump-1"), token_text())
    assert refused.value.code == "key-not-allowed"


async def test_the_key_of_a_revoked_certificate_never_comes_back(authority: EnrollmentHarness) -> None:
    await authority.enrolled("stolen")
    await authority.write(RevokeCredentials(CredentialKind.DEVICE, "cam-1"))
    await authority.token()
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1", "stolen"), token_text())
    assert refused.value.code == "key-revoked"


async def test_nor_under_another_name(authority: EnrollmentHarness) -> None:
    await authority.token("model", device_id=None, model="cam", uses_max=9)
    await authority.enroll(request_for("new-1", "shared"), token_text("model"))
    for code in ("key-in-use", "key-revoked"):
        with pytest.raises(Refused) as refused:
            await authority.enroll(request_for("new-2", "shared"), token_text("model"))
        assert refused.value.code == code
        await authority.write(RevokeCredentials(CredentialKind.DEVICE, "new-1"))


async def test_two_devices_that_race_with_one_key_are_one(authority: EnrollmentHarness) -> None:
    await authority.token("model", device_id=None, model="cam", uses_max=9)
    requests = [request_for(f"new-{n}", "raced") for n in range(6)]
    tries = [asyncio.create_task(authority.enroll(request, token_text("model"))) for request in requests]
    assert await outcomes(*tries) == ["Credential"] + ["key-in-use"] * 5


# Again, after a lost answer


async def test_the_same_request_gets_the_same_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled("k")
    again = await authority.enroll(request_for("cam-1", "k"), token_text("setup"))
    assert again == first
    assert await authority.registry.credentials("cam-1") == [first]
    assert (await authority.last_audit()).entry.detail["repeated"] == "yes"
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1", "another key"), token_text("setup"))
    assert refused.value.code == "token-used-up"


async def test_it_does_not_without_the_secret_or_once_the_certificate_was_used(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled("k")
    with pytest.raises(Unauthenticated):
        await authority.enroll(request_for("cam-1", "k"), token_text("setup", "wrong"))
    await authority.write(MarkUsed(first.fingerprint))
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1", "k"), token_text("setup"))
    assert refused.value.code == "token-used-up"


async def test_a_repeated_renewal_gets_the_same_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    request = replace(request_for("cam-1", "next"), names=Names((("2.5.4.3", "cam-1"), ("2.5.4.5", "SN1"))))
    second = await authority.reenroll(request, peer_of(first))
    assert await authority.reenroll(request, peer_of(first)) == second
    assert len(await authority.registry.credentials("cam-1")) == 2


async def test_past_half_its_life_a_new_one_is_given(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    request = replace(request_for("cam-1", "next"), names=Names((("2.5.4.3", "cam-1"), ("2.5.4.5", "SN1"))))
    second = await authority.reenroll(request, peer_of(first))
    authority.now = NOW + timedelta(days=46)
    assert await authority.reenroll(request, peer_of(first)) != second


async def test_one_renewal_sent_twice_at_once_gets_one_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    request = renewal_request("next")
    answers = await asyncio.gather(*(authority.reenroll(request, peer_of(first)) for _ in range(4)))
    assert len({answer.fingerprint for answer in answers}) == 1
    assert await authority.state_of(answers[0]) is CredentialState.ISSUED


async def test_renewing_in_a_loop_leaves_one_successor(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    given = [await authority.reenroll(renewal_request(), peer_of(first)) for _ in range(5)]
    states = [await authority.state_of(one) for one in given]
    assert states == [CredentialState.SUPERSEDED] * 4 + [CredentialState.ISSUED]
    ended = [detail for kind, _, detail in await authority.events() if kind == EventKind.CREDENTIAL_ENDED]
    assert ended == [one.fingerprint.hex() for one in given[:4]]


async def test_a_renewal_leaves_what_a_token_has_earned(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    await authority.token()
    reflashed = await authority.enroll(request_for("cam-1"), token_text())
    await authority.reenroll(renewal_request(), peer_of(first))
    assert await authority.state_of(reflashed) is CredentialState.ISSUED


# By a station


async def test_a_station_provisions_known_and_new_devices_of_its_model(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    await authority.enroll(request_for("cam-1"), peer=station)
    await authority.enroll(request_for("cam-2"), peer=station)
    device = await authority.registry.device("cam-2")
    assert device is not None
    assert device.model == "cam"
    assert (await authority.last_audit()).entry.actor == "station line-1"


def with_serials(common_name: str, *serials: str) -> EnrollmentRequest:
    plain = request_for(common_name)
    subject = (("2.5.4.3", common_name), *(("2.5.4.5", each) for each in serials))
    return replace(plain, names=Names(subject))


async def test_a_station_vouches_for_the_serial_number_of_a_new_device(authority: EnrollmentHarness) -> None:
    """It is in the registry and in the certificate; the renewal, which must repeat the names, has it too."""
    station = await authority.station("cam")
    made = await authority.enroll(with_serials("cam-2", "SN 0815"), peer=station)
    device = await authority.registry.device("cam-2")
    assert device is not None
    assert device.hardware_serial == "SN 0815"
    subject, alt_names = names_of_certificate(x509.load_der_x509_certificate(made.der))
    assert dict(subject) == {"2.5.4.3": "cam-2", "2.5.4.5": "SN 0815"}
    assert [each.partition(":")[0] for each in alt_names] == ["HW"]
    again = await authority.enroll(with_serials("cam-2", "SN 0815"), peer=station)
    assert names_of_certificate(x509.load_der_x509_certificate(again.der)) == (subject, alt_names)


async def test_nobody_else_vouches_for_a_serial_number(authority: EnrollmentHarness) -> None:
    await authority.token(device_id=None, model="cam")
    await authority.enroll(with_serials("cam-2", "SN 0815"), token_text())
    device = await authority.registry.device("cam-2")
    assert device is not None
    assert device.hardware_serial == ""


async def test_a_station_may_not_name_another_serial_number_than_is_known(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    await authority.enroll(with_serials("cam-2", "SN 0815"), peer=station)
    with pytest.raises(Refused) as refused:
        await authority.enroll(with_serials("cam-2", "SN 4711"), peer=station)
    assert refused.value.code == "not-this-hardware"
    assert (await authority.last_audit()).entry.outcome == "not-this-hardware"
    for serials in (("SN 1", "SN 2"), ("Köln",), ("x" * 65,), ("",)):
        with pytest.raises(Invalid) as invalid:
            await authority.enroll(with_serials("cam-3", *serials), peer=station)
        assert invalid.value.code == "bad-hardware-serial"
    assert await authority.registry.device("cam-3") is None


async def test_a_station_of_several_models_names_one_for_a_new_device(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam", "pump")
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-2"), peer=station)
    assert refused.value.code == "model-not-named"
    await authority.enroll(request_for("cam-2"), peer=station, label="cam")
    await authority.enroll(request_for("cam-1"), peer=station)


async def test_a_station_reaches_no_further_than_its_models(authority: EnrollmentHarness) -> None:
    station = await authority.station("pump")
    for name, label in (("cam-1", None), ("new", "cam"), ("cam-1", "pump")):
        with pytest.raises(Refused) as refused:
            await authority.enroll(request_for(name), peer=station, label=label)
        assert refused.value.code == "not-your-model"
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("new"), peer=station, label="nonesuch")
    assert refused.value.code == "no-such-model"


async def test_a_station_may_repeat_a_run_but_not_take_over_a_device_in_use(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    await authority.enroll(request_for("cam-1"), peer=station)
    second = await authority.enroll(request_for("cam-1"), peer=station)
    await authority.write(MarkUsed(second.fingerprint))
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), peer=station)
    assert refused.value.code == "already-enrolled"


async def test_a_station_takes_over_nothing_that_another_right_has_earned(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    first = await authority.enrolled()
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), peer=station)
    assert refused.value.code == "already-enrolled"
    assert await authority.registry.credentials("cam-1") == [first]


async def test_a_station_revoked_between_the_look_and_the_commit_gets_nothing(authority: EnrollmentHarness) -> None:
    class Overtaken(SqliteRegistry):
        """An operator's commit comes just before that of the enrollment."""

        async def commit(self, change: Change) -> None:
            if change.writes:
                await authority.write(RevokeCredentials(CredentialKind.STATION, "line-1"))
            await super().commit(change)

    station = await authority.station("cam")
    overtaken = await Overtaken.open(authority.registry.path)
    with pytest.raises(Refused) as refused:
        await enroll(RegistrationAuthority(overtaken, authority.issuer), station, Submission(request_for("cam-1")), NOW)
    await overtaken.close()
    assert refused.value.code == "certificate-revoked"
    assert await authority.registry.credentials("cam-1") == []


async def test_nobodys_refusals_fill_one_row_a_minute(authority: EnrollmentHarness) -> None:
    before = await authority.registry.last_audit()
    for minute in (0, 1):
        authority.now = NOW + timedelta(minutes=minute)
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await authority.enroll(request_for("cam-1", "k"), token_text("nobody"))
    rows = await authority.registry.audit(after=before)
    assert [row.entry.detail.get("left_out") for row in rows] == [None, "19"]


async def test_a_revoked_or_expired_station_is_refused(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    authority.now = NOW + timedelta(days=366)
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), peer=station)
    assert refused.value.code == "certificate-expired"
    authority.now = NOW
    await authority.write(RevokeCredentials(CredentialKind.STATION, "line-1"))
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), peer=station)
    assert refused.value.code == "certificate-revoked"


# By certificate


def renewal_request(key: str = "") -> EnrollmentRequest:
    return replace(request_for("cam-1", key), names=Names((("2.5.4.3", "cam-1"), ("2.5.4.5", "SN1"))))


async def test_a_device_renews_by_its_current_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    second = await authority.reenroll(renewal_request(), peer_of(first), label="cam")
    assert second.holder == "cam-1"
    # Presenting it has shown that the first arrived.
    assert await authority.state_of(first) is CredentialState.ACTIVE
    assert await authority.state_of(second) is CredentialState.ISSUED
    row = await authority.last_audit()
    assert (row.entry.actor, row.entry.action) == ("device cam-1", "device.reenroll")


async def test_renewing_ends_the_certificates_before_the_one_presented(authority: EnrollmentHarness) -> None:
    lost = await authority.enrolled("lost")
    await authority.token()
    current = await authority.enroll(request_for("cam-1"), token_text())
    await authority.reenroll(renewal_request(), peer_of(current))
    assert await authority.state_of(lost) is CredentialState.SUPERSEDED
    assert (EventKind.CREDENTIAL_ENDED, "cam-1", lost.fingerprint.hex()) in await authority.events()
    with pytest.raises(Refused) as refused:
        await authority.reenroll(renewal_request(), peer_of(lost))
    assert refused.value.code == "certificate-superseded"


async def test_names_must_equal_those_of_the_current_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    for names in (
        Names((("2.5.4.3", "cam-1"),)),
        Names((("2.5.4.3", "cam-1"), ("2.5.4.5", "SN1")), ("DNS:cam",)),
    ):
        with pytest.raises(Refused) as refused:
            await authority.reenroll(replace(request_for("cam-1"), names=names), peer_of(first))
        assert refused.value.code == "names-changed"


async def test_a_certificate_renews_its_own_device_only(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    await authority.token("other", device_id=None, model="cam")
    await authority.enroll(request_for("cam-2"), token_text("other"))
    with pytest.raises(Refused) as refused:
        await authority.reenroll(request_for("cam-2"), peer_of(first))
    assert refused.value.code == "not-your-identity"
    with pytest.raises(Refused) as refused:
        await authority.reenroll(renewal_request(), peer_of(first), label="pump")
    assert refused.value.code == "not-your-model"


@pytest.mark.parametrize(
    ("writes", "later", "code"),
    [
        ((RevokeCredentials("device", "cam-1"),), timedelta(0), "certificate-revoked"),
        ((RevokeCredentials("station", "cam-1"),), timedelta(days=90), "certificate-expired"),
        (
            (MoveDevice(DeviceId("cam-1"), frozenset({DeviceState.ACTIVE}), DeviceState.SUSPENDED),),
            timedelta(0),
            "device-suspended",
        ),
        (
            (MoveDevice(DeviceId("cam-1"), frozenset({DeviceState.ACTIVE}), DeviceState.RETIRED),),
            timedelta(0),
            "device-retired",
        ),
    ],
)
async def test_what_has_ended_renews_nothing(
    authority: EnrollmentHarness, writes: tuple[Write, ...], later: timedelta, code: str
) -> None:
    first = await authority.enrolled()
    await authority.write(*writes)
    authority.now = NOW + later
    with pytest.raises(Refused) as refused:
        await authority.reenroll(renewal_request(), peer_of(first))
    assert refused.value.code == code
    row = await authority.last_audit()
    assert (row.entry.action, row.entry.outcome, row.entry.address) == ("device.reenroll", code, "192.0.2.8")
    assert (row.entry.actor, row.entry.subject) == ("device cam-1", "device cam-1")
    for _ in range(5):  # one that keeps asking fills one row a minute
        with pytest.raises(Refused):
            await authority.reenroll(renewal_request(), peer_of(first))
    assert (await authority.last_audit()).seq == row.seq


async def test_a_certificate_without_a_record_renews_nothing(authority: EnrollmentHarness) -> None:
    spki = new_spki()
    permit = permit_by_operator(CredentialKind.STATION, "cam-1", spki, NOW + timedelta(9), NOW)
    forged = structs.replace(
        authority.issuer.issue(structs.replace(permit, kind=CredentialKind.DEVICE), NOW), holder="cam-1"
    )
    with pytest.raises(Unauthenticated) as refused:
        await authority.reenroll(renewal_request(), peer_of(forged))
    assert refused.value.code == "certificate-unknown"


async def test_a_station_renews_no_device_and_not_itself(authority: EnrollmentHarness) -> None:
    station = await authority.station("cam")
    with pytest.raises(Refused) as refused:
        await authority.reenroll(request_for("line-1"), station)
    assert refused.value.code == "not-a-device"


async def test_a_devices_certificate_enrolls_nobody(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    for name in ("cam-1", "cam-2"):
        with pytest.raises(Refused) as refused:
            await authority.enroll(request_for(name), peer=peer_of(first))
        assert refused.value.code == "use-reenroll"
    await authority.token("model", device_id=None, model="cam")
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-2"), token_text("model"), peer=peer_of(first))
    assert refused.value.code == "not-your-identity"
    await authority.token()
    await authority.enroll(request_for("cam-1"), token_text(), peer=peer_of(first))


async def test_a_good_token_does_not_make_up_for_a_revoked_certificate(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    await authority.write(RevokeCredentials(CredentialKind.DEVICE, "cam-1"))
    await authority.token()
    with pytest.raises(Refused) as refused:
        await authority.enroll(request_for("cam-1"), token_text(), peer=peer_of(first))
    assert refused.value.code == "certificate-revoked"


# At the same time


async def outcomes(*tries: asyncio.Task[Credential]) -> list[str]:
    answers = await asyncio.gather(*tries, return_exceptions=True)
    return sorted(a.code if isinstance(a, FleetError) else type(a).__name__ for a in answers)


async def test_fifty_at_once_with_a_token_of_ten_uses_are_exactly_ten(authority: EnrollmentHarness) -> None:
    await authority.token(device_id=None, model="cam", uses_max=10)
    tries = [asyncio.create_task(authority.enroll(request_for(f"new-{n}"), token_text())) for n in range(50)]
    assert await outcomes(*tries) == ["Credential"] * 10 + ["token-used-up"] * 40
    assert len(await authority.registry.devices(DeviceFilter(model="cam", state=DeviceState.ACTIVE))) == 10


async def test_two_keys_that_race_for_one_identity_are_one(authority: EnrollmentHarness) -> None:
    await authority.token(device_id=None, model="cam", uses_max=10)
    for name in ("cam-1", "new-1"):
        tries = [asyncio.create_task(authority.enroll(request_for(name), token_text())) for _ in range(8)]
        assert await outcomes(*tries) == ["Credential"] + ["already-enrolled"] * 7
        assert len(await authority.registry.credentials(name)) == 1


async def test_one_request_sent_twice_at_once_gets_one_certificate(authority: EnrollmentHarness) -> None:
    await authority.token()
    request = request_for("cam-1", "k")
    tries = [asyncio.create_task(authority.enroll(request, token_text())) for _ in range(8)]
    answers = await asyncio.gather(*tries)
    assert len({answer.fingerprint for answer in answers}) == 1
    assert len(await authority.registry.credentials("cam-1")) == 1


async def test_suspended_between_the_look_and_the_commit(authority: EnrollmentHarness) -> None:
    class Overtaken(SqliteRegistry):
        """An operator's commit comes just before that of the enrollment."""

        async def commit(self, change: Change) -> None:
            if change.writes:
                await authority.write(suspend)
            await super().commit(change)

    suspend = MoveDevice(DeviceId("cam-1"), frozenset({DeviceState.REGISTERED}), DeviceState.SUSPENDED)
    await authority.token()
    overtaken = await Overtaken.open(authority.registry.path)
    with pytest.raises(Refused) as refused:
        await enroll(
            RegistrationAuthority(overtaken, authority.issuer),
            STRANGER,
            Submission(request_for("cam-1"), token_text(), None),
            NOW,
        )
    await overtaken.close()
    assert refused.value.code == "device-suspended"
    assert await authority.registry.credentials("cam-1") == []
    assert (await authority.last_audit()).entry.outcome == "device-suspended"


# A device with many unused certificates


async def test_a_renewal_of_the_oldest_ends_nothing_that_was_issued_later(authority: EnrollmentHarness) -> None:
    held = await many_unused(authority, 18)
    renewed = await authority.reenroll(renewal_request("next"), peer_of(held[0]))
    ended = [event for event in await authority.events() if event[0] == EventKind.CREDENTIAL_ENDED]
    assert ended == []
    states = [c.state for c in await authority.registry.credentials("cam-1")]
    assert states == [CredentialState.ACTIVE] + [CredentialState.ISSUED] * 18
    assert await authority.state_of(renewed) is CredentialState.ISSUED


async def test_a_renewal_finds_its_unused_successor_behind_many(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    lost = await authority.reenroll(renewal_request("lost"), peer_of(first))
    await many_unused(authority, 18)
    assert await authority.reenroll(renewal_request("lost"), peer_of(first)) == lost
    await authority.reenroll(renewal_request("next"), peer_of(first))
    assert await authority.state_of(lost) is CredentialState.SUPERSEDED
    assert (EventKind.CREDENTIAL_ENDED, "cam-1", lost.fingerprint.hex()) in await authority.events()


async def test_a_lost_answer_is_repeated_however_many_came_later(authority: EnrollmentHarness) -> None:
    first = await authority.enrolled()
    await many_unused(authority, 18)
    assert await authority.enroll(request_for("cam-1", "first"), token_text("setup")) == first
