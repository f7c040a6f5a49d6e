"""First certificates by a maker's certificate (IEEE 802.1AR), over real TLS: who gets one, who does not."""

import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from fleet.ca.authority import create_root
from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import BARRED_MODEL, DeviceFilter, DeviceId
from fleet.domain.errors import Conflict, Invalid
from fleet.domain.manifest import ManifestRow
from fleet.domain.model_rules import AdmissionPath, AdmissionRules
from fleet.servers.est.idevid_certificate import idevid_certificate
from fleet.services import anchors, inventory, revocation
from fleet.services.importing import Importer, Numbered
from fleet.services.restore_revocations import reapply
from fleet.wire.est import encode_body
from tests.servers.est_fixtures import Answer, EstHarness, Identity, basic, csr_for, open_est, renewal_csr
from tests.servers.makers import AGREES, Maker, new_maker
from tests.unknown_curve import with_unknown_curve


@dataclass
class Yard:
    """An EST server that trusts a maker, and the maker."""

    est: EstHarness
    maker: Maker
    folder: Path

    async def rules(self, model: str, **admission: object) -> None:
        old = await self.est.registry.model(model)
        assert old is not None
        paths = (AdmissionPath.TOKEN, AdmissionPath.IDEVID)
        new = replace(old, rules=replace(old.rules, admission=AdmissionRules(**{"paths": paths, **admission})))  # type: ignore[arg-type]
        await inventory.set_model(self.est.registry, new, act=self.act)

    @property
    def act(self) -> Act:
        return Act("test", self.est.clock())

    async def believe(self, name: str = "acme", models: tuple[str, ...] = ("cam",), maker: Maker | None = None) -> None:
        der = (maker or self.maker).certificate.public_bytes(Encoding.DER)
        await anchors.add_anchor(self.est.registry, name, models, der, act=self.act)
        known = await self.est.registry.anchors()
        self.est.believing([x509.load_der_x509_certificate(each.der) for each in known])

    async def expect(self, id_: str, serial: str, model: str = "cam", key: bytes | None = None) -> None:
        importer = Importer(self.est.registry, "test", self.est.clock, "bulk")
        row = ManifestRow(DeviceId(id_), model, serial, key)
        assert await importer.take([Numbered(2, row)]) == []

    def device(self, serial: str = "SN1", **given: object) -> Identity:
        return self.maker.device(self.folder, serial, **given)  # type: ignore[arg-type]

    async def verdict(self, id_: str, shown: Identity, label: str = "", key: object = None) -> tuple[int, str]:
        answer = await self.est.enroll(csr_for(id_, key), identity=shown, label=label)  # type: ignore[arg-type]
        return answer.status, answer.code if answer.status != 200 else ""

    async def outcomes(self) -> list[tuple[str, str, str]]:
        """(actor, action, outcome) of each row that is no operator's."""
        entries = [row.entry for row in await self.est.registry.audit()]
        return [(e.actor, e.action, e.outcome) for e in entries if e.actor != "test"]


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with open_est(tmp_path) as est:
        yard = Yard(est, new_maker(), tmp_path)
        await yard.rules("cam")
        await yard.believe()
        yield yard


async def is_refused_in_tls(yard: Yard, shown: Identity) -> str:
    """The listener's reason why the handshake was refused."""
    before = dict(yard.est.listeners["est"].stats.refused)
    try:
        answer = await yard.est.enroll(csr_for("cam-1"), identity=shown)
        assert answer.raw == b""
    except (ssl.SSLError, ConnectionError):
        pass
    after = yard.est.listeners["est"].stats.refused
    fresh = [reason for reason, count in after.items() if count > before.get(reason, 0)]
    assert len(fresh) == 1, after
    return fresh[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_listed_device_enrolls_and_renews(yard: Yard, version: ssl.TLSVersion) -> None:
    await yard.expect("cam-1", "SN1")
    shown, key = yard.device("SN1"), generate_key()
    context = yard.est.client_context(shown)
    context.minimum_version = context.maximum_version = version
    headers = {"Content-Type": "application/pkcs10"}
    path = "/.well-known/est/simpleenroll"
    answer = await yard.est.send("POST", path, encode_body(csr_for("cam-1", key)), headers, context=context)
    assert answer.status == 200, answer.text
    [certificate] = answer.certificates
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "2.5.4.5=SN1,CN=cam-1"
    own = yard.est.identity(certificate, key)
    assert (await yard.est.reenroll(renewal_csr(own), own)).status == 200
    [held, _] = await yard.est.registry.credentials("cam-1")
    assert held.grant.startswith("idevid acme ")
    assert (held.grant, "device.enroll", "ok") in await yard.outcomes()


async def test_it_may_name_its_serial_in_hw_module_name(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    await yard.expect("cam-2", "0A0BFF")
    assert await yard.verdict("cam-1", yard.device("", hardware=b"SN1")) == (200, "")
    assert await yard.verdict("cam-2", yard.device("", hardware=b"\x0a\x0b\xff")) == (200, "")


async def test_chains_with_intermediates_are_verified(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    between = yard.maker.below("Acme Line 1").below("Acme Line 1 Batch 7")
    assert await yard.verdict("cam-1", between.device(yard.folder, "SN1")) == (200, "")


async def test_leaves_as_makers_make_them(yard: Yard) -> None:
    leaves: tuple[dict[str, object], ...] = (
        {"usage": None},
        {"usages": [ExtendedKeyUsageOID.CLIENT_AUTH]},
        {"ca": False},
    )
    for number, given in enumerate(leaves):
        await yard.expect(f"cam-{number}", f"SN{number}")
        assert await yard.verdict(f"cam-{number}", yard.device(f"SN{number}", **given)) == (200, "")


async def test_what_tls_refuses(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    now = datetime.now(UTC)
    long = new_maker("Short", path_length=0)
    await yard.believe("short", maker=long)
    device = yard.device("SN9")
    issuing = Maker(device.certificate, device.key, (device.certificate,))
    refused = {
        "a stranger": new_maker().device(yard.folder, "SN1"),
        "an impostor": new_maker("Acme Devices CA").device(yard.folder, "SN1"),
        "usage": yard.device("SN1", usage=AGREES),
        "a server": yard.device("SN1", usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "a CA": yard.device("SN1", ca=True),
        "expired": yard.device("SN1", ends=now - timedelta(hours=1)),
        "not yet": yard.device("SN1", begins=now + timedelta(days=1)),
        "path length": long.below("One too many").device(yard.folder, "SN1"),
        "a device that issues": issuing.device(yard.folder, "SN1"),
    }
    for what, shown in refused.items():
        assert (await is_refused_in_tls(yard, shown)).startswith("bad-certificate"), what
    assert await yard.est.registry.credentials("cam-1") == []


async def test_the_name_is_the_manifests(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    await yard.expect("cam-2", "SN2")
    shown = yard.device("SN1")
    for name in ("cam-2", "SN1", "new-1"):
        assert await yard.verdict(name, shown) == (403, "not-your-identity")
    assert ("idevid acme " + _hash(shown)[:16], "device.enroll", "not-your-identity") in await yard.outcomes()


def _hash(shown: Identity) -> str:
    spki = shown.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


async def test_not_on_the_manifest(yard: Yard) -> None:
    shown = yard.device("SN1")
    assert await yard.verdict("SN1", shown) == (403, "not-on-manifest")
    await yard.est.device("cam-1", serial="SN1")  # known, but not by the manifest
    assert await yard.verdict("cam-1", shown) == (403, "not-on-manifest")
    assert ("idevid acme " + _hash(shown)[:16], "device.enroll", "not-on-manifest") in await yard.outcomes()


async def test_a_board_whose_device_is_revoked_is_registered_anew(yard: Yard) -> None:
    """Under another id, as the page advises: with a serial that is free again, and taken once more."""
    await yard.expect("cam-1", "SN1")
    await revocation.revoke(yard.est.registry, "cam-1", act=Act("test", yard.est.clock()))
    assert await yard.verdict("cam-1", yard.device("SN1")) == (403, "device-revoked")
    await yard.expect("cam-7", "SN1")
    assert await yard.verdict("cam-7", yard.device("SN1")) == (200, "")
    with pytest.raises(Conflict) as caught:
        await yard.est.device("cam-8", serial="SN1")
    assert caught.value.code == "serial-taken"


async def test_a_certificate_without_a_serial_or_with_two(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    await yard.expect("cam-2", "SN2")
    assert await yard.verdict("cam-1", yard.device("")) == (400, "bad-idevid")
    assert await yard.verdict("cam-1", yard.device("SN1", hardware=b"SN2")) == (403, "idevid-ambiguous")


def test_a_certificate_whose_curve_is_unknown() -> None:
    der = with_unknown_curve(create_root("Maker", datetime.now(UTC))[0]).public_bytes(Encoding.DER)
    with pytest.raises(Invalid, match="cannot be read"):
        idevid_certificate(der)


async def test_any_of_this_ca(yard: Yard) -> None:
    await yard.rules("cam", any_idevid=True)
    shown = yard.device("SN1")
    assert await yard.verdict("of-my-choice", shown) == (403, "not-your-identity")
    assert await yard.verdict("SN1", shown) == (200, "")
    device = await yard.est.registry.device("SN1")
    assert device is not None
    assert device.model == "cam"
    # The manifest still goes before the maker's word.
    await yard.expect("cam-2", "SN2")
    assert await yard.verdict("SN2", yard.device("SN2")) == (403, "not-your-identity")
    assert await yard.verdict("cam-2", yard.device("SN2")) == (200, "")


async def test_who_was_put_out_after_the_backup_that_the_registry_came_from(yard: Yard) -> None:
    """The backup does not know the device, and nobody is asked before a maker's certificate earns one of ours."""
    await yard.rules("cam", any_idevid=True)
    since = [
        Event(EventKind.DEVICE_STATE, "SN1", "active", 1),
        Event(EventKind.DEVICE_STATE, "SN1", "revoked", 2),
        Event(EventKind.DEVICE_STATE, "SN2", "suspended", 3),
        Event(EventKind.DEVICE_STATE, "SN3", "active", 4),
    ]
    done = await reapply(yard.est.registry, since, act=yard.act)
    assert (done.barred, done.unknown) == (("SN1", "SN2"), ("SN3",))
    assert await yard.verdict("SN1", yard.device("SN1")) == (403, "device-barred")
    assert await yard.verdict("SN2", yard.device("SN2")) == (403, "device-barred")
    assert await yard.verdict("SN1", yard.device("SN1"), label="cam") == (403, "device-barred")
    assert await yard.verdict("SN3", yard.device("SN3")) == (200, "")
    states = [d.state.value for d in await yard.est.registry.devices(DeviceFilter(model=BARRED_MODEL))]
    assert states == ["revoked", "suspended"]
    with pytest.raises(Conflict):
        await inventory.add_device(yard.est.registry, "SN1", "cam", act=yard.act)


async def test_a_ca_of_several_models_wants_one_named(yard: Yard) -> None:
    other = new_maker("Both")
    await yard.rules("cam", any_idevid=True)
    await yard.rules("pump")
    await yard.believe("both", ("cam", "pump"), other)
    shown = other.device(yard.folder, "SN1")
    assert await yard.verdict("SN1", shown) == (403, "model-not-named")
    assert await yard.verdict("SN1", shown, label="pump") == (403, "not-on-manifest")
    assert await yard.verdict("SN1", shown, label="cam") == (200, "")


async def test_only_for_the_models_of_its_ca(yard: Yard) -> None:
    await yard.rules("pump")
    await yard.expect("pump-1", "SN1", "pump")
    shown = yard.device("SN1")
    assert await yard.verdict("pump-1", shown) == (403, "not-your-model")
    assert await yard.verdict("pump-1", shown, label="pump") == (403, "not-your-model")
    await yard.est.device("old-1")
    assert await yard.verdict("old-1", shown) == (403, "not-on-manifest")


async def test_the_models_rule_decides(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    await yard.rules("cam", paths=(AdmissionPath.TOKEN, AdmissionPath.MANIFEST))
    assert await yard.verdict("cam-1", yard.device("SN1")) == (403, "path-not-open")


async def test_one_certificate_is_one_device(yard: Yard) -> None:
    await yard.rules("cam", any_idevid=True)
    await yard.expect("cam-1", "SN1")
    shown = yard.device("SN1", hardware=b"SN8")  # two names of one device, one of which is on the manifest
    assert await yard.verdict("cam-1", shown) == (200, "")
    # The same key in another certificate of the maker's, for another serial.
    again = yard.device("SN2", key=shown.key)
    await yard.expect("cam-2", "SN2")
    assert await yard.verdict("cam-2", again) == (403, "idevid-bound")
    # Another certificate for the serial that has enrolled already.
    assert await yard.verdict("cam-1", yard.device("SN1")) == (403, "idevid-of-another")


async def test_back_from_a_reset(yard: Yard) -> None:
    """Its maker's certificate is all that it still has."""
    await yard.expect("cam-1", "SN1")
    shown, key = yard.device("SN1"), generate_key()
    answer = await yard.est.enroll(csr_for("cam-1", key), identity=shown)
    own = yard.est.identity(answer.certificates[0], key)
    assert (await yard.est.reenroll(renewal_csr(own), own)).status == 200  # it has been seen in the field
    assert await yard.verdict("cam-1", shown) == (200, "")
    await revocation.revoke(yard.est.registry, "cam-1", act=yard.act)
    assert await yard.verdict("cam-1", shown) == (403, "device-revoked")


async def test_whoever_came_in_otherwise_is_not_taken_over(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    key = generate_key()
    token = await yard.est.token("cam-1")
    answer = await yard.est.enroll(csr_for("cam-1", key), basic(token))
    own = yard.est.identity(answer.certificates[0], key)
    assert (await yard.est.reenroll(renewal_csr(own), own)).status == 200
    assert await yard.verdict("cam-1", yard.device("SN1")) == (403, "already-enrolled")


async def test_the_same_request_again_gets_the_same_certificate(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    shown, key = yard.device("SN1"), generate_key()
    answers = [await yard.est.enroll(csr_for("cam-1", key), identity=shown) for _ in range(3)]
    assert len({answer.certificates[0].serial_number for answer in answers}) == 1
    assert len(await yard.est.registry.credentials("cam-1")) == 1


async def test_an_anchor_that_is_removed_is_believed_no_more(yard: Yard) -> None:
    """At once: the connection may have begun before, on a context that still believes it."""
    await yard.expect("cam-1", "SN1")
    await anchors.remove_anchor(yard.est.registry, "acme", act=yard.act)
    assert await yard.verdict("cam-1", yard.device("SN1")) == (401, "certificate-unknown")
    yard.est.believing([])
    assert (await is_refused_in_tls(yard, yard.device("SN1"))).startswith("bad-certificate")


# Neither is the other's


async def test_it_opens_nothing_else(yard: Yard) -> None:
    await yard.expect("cam-1", "SN1")
    shown = yard.device("SN1")

    def verdict(answer: Answer) -> tuple[int, str]:
        return answer.status, answer.code

    assert verdict(await yard.est.reenroll(csr_for("cam-1"), shown)) == (401, "certificate-unknown")
    answer = await yard.est.post("serverkeygen", csr_for("cam-1"), identity=shown)
    assert verdict(answer) == (403, "idevid-only-enrolls")
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert (await yard.est.send("GET", "/v1/whoami", identity=shown, server="admin")).raw == b""
    refused = yard.est.listeners["admin"].stats.refused
    assert [reason.partition(":")[0] for reason in refused] == ["bad-certificate"]
    assert verdict(await yard.est.send("GET", "/.well-known/est/fullcmc", identity=shown))[0] in (405, 501)
    assert await yard.est.registry.credentials("cam-1") == []


async def test_our_own_certificate_is_no_makers(yard: Yard) -> None:
    """Not even when it names a serial of the manifest."""
    own = await yard.est.enrolled("cam-1", serial="SN7")
    await yard.expect("cam-2", "SN7x")
    assert await yard.verdict("cam-2", own) == (403, "use-reenroll")
    held = await yard.est.registry.credentials("cam-2")
    assert held == []


async def test_a_token_goes_before_it(yard: Yard) -> None:
    await yard.est.device("cam-9")
    token = await yard.est.token("cam-9")
    answer = await yard.est.enroll(csr_for("cam-9"), basic(token), identity=yard.device("SN1"))
    assert answer.status == 200
    [held] = await yard.est.registry.credentials("cam-9")
    assert held.grant.startswith("token ")
    assert held.state is CredentialState.ISSUED
