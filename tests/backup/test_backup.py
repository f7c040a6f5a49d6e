"""A home into one file and back, with what matters most: whoever was put out after the backup stays out."""

import asyncio
import hashlib
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.backup import create
from fleet.backup.create import Encryption, save_home
from fleet.backup.restore import Restored, RestoreSource, check_backup, restore_backup
from fleet.ca.keys import generate_key
from fleet.config.settings import Settings
from fleet.domain.access import Act, Operator, Role
from fleet.domain.approval import ApprovalRequest, WaitingLimits, request_id
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.claim import claim_state
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.crl import CrlEntry, CrlReason
from fleet.domain.device import Device, DeviceFilter, DeviceId, DeviceState
from fleet.domain.errors import Conflict, FleetError, Invalid, Refused
from fleet.domain.peer import Peer
from fleet.domain.tags import Retag
from fleet.domain.writes import AddCredential, AddRequest, Insert, MarkUsed
from fleet.home.creation import create_home
from fleet.home.layout import Home, open_registry, revocation_journal
from fleet.home.pki import load_issuer
from fleet.runtime.jobs.revocation_journal import journaling_revocations
from fleet.services import anchors, approvals, claims, inventory, revocation
from fleet.services.admission import admit
from fleet.services.identity import identify
from fleet.services.operators import revoke_operator
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine
from fleet.storage.journals.revoked_certificates import RevokedCertificates
from tests.services.tagging import tag_device

NOW = datetime.now(UTC)
PASSPHRASE = b"correct horse"
COST = 4


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "home"
    asyncio.run(create_home(path, Settings(), NOW))
    return path


@pytest.fixture
async def home(empty_home: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(empty_home, tmp_path / "home")))


@pytest.fixture
async def registry(home: Home) -> AsyncIterator[Engine]:
    """With three active devices, a certificate in use for each."""
    opened = await open_registry(home)
    for name in ("cam-7", "cam-8", "cam-9"):
        await enroll(opened, name)
    yield opened
    await opened.close()


def certificate(holder: str, n: int = 1, kind: CredentialKind = CredentialKind.DEVICE) -> Credential:
    der = f"{kind} {holder} {n}".encode()
    digest = hashlib.sha256(der).digest()
    serial = f"{int.from_bytes(digest[:20]):x}"
    end = NOW + timedelta(days=90)
    right = "certificate 5d"
    return Credential(digest, serial, kind, holder, digest, NOW, end, CredentialState.ACTIVE, NOW, der, right)


async def enroll(registry: Engine, name: str) -> None:
    device = Device(DeviceId(name), "default", DeviceState.ACTIVE, NOW, expires_at=NOW + timedelta(days=90))
    entry = AuditEntry(NOW, "test", "prepare", "", "ok")
    await registry.commit(Change(entry, (Insert(device), AddCredential(certificate(name)))))


def _operator(name: str) -> Insert:
    return Insert(Operator(name, Role.ADMIN, NOW))


async def save(home: Home, registry: Engine, file: Path, passphrase: bytes | None = PASSPHRASE) -> None:
    await save_home(
        home,
        registry,
        file,
        encryption=None if passphrase is None else Encryption(passphrase, COST),
        act=Act("operator", NOW),
    )


async def restore(file: Path, path: Path, revocations: Path | None, passphrase: bytes | None = PASSPHRASE) -> Restored:
    return await restore_backup(RestoreSource(file, revocations, passphrase), path, act=Act("operator", NOW))


async def door(registry: Engine, name: str, n: int = 1) -> str:
    """ "in", or the code by which `name` is refused with its certificate number `n`."""
    held = certificate(name, n)
    try:
        peer = Peer("192.0.2.1", certificate_der=held.der, fingerprint=held.fingerprint)
        await admit(registry, peer, name, NOW + timedelta(seconds=1))
    except FleetError as error:
        return error.code
    return "in"


def waiting(device: str) -> ApprovalRequest:
    key_sha256 = hashlib.sha256(device.encode()).digest()
    return ApprovalRequest(
        id=request_id(device, key_sha256),
        device_id=DeviceId(device),
        model="default",
        key_sha256=key_sha256,
        key_type="EC-P256",
        facts=f"CN={device}",
        address="192.0.2.1",
        network="192.0.2.1",
        first_seen=NOW,
        last_seen=NOW,
        expires_at=NOW + timedelta(days=7),
    )


class TestTaking:
    async def test_there_and_back(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        file = tmp_path / "fleet.backup"
        (home.path / ".hidden").write_text("x")
        (home.path / "link").symlink_to("/etc/passwd")
        await save(home, registry, file)
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"PRIVATE KEY" not in file.read_bytes()
        manifest = check_backup(file, PASSPHRASE)
        assert manifest.audit_rows == await registry.last_audit()
        await restore(file, tmp_path / "home2", home.revocations)
        second = Home(tmp_path / "home2")
        for path in (home.settings_file, home.root_key, home.issuing_key, home.server_key, home.server_chain):
            twin = second.path / path.relative_to(home.path)
            assert twin.read_bytes() == path.read_bytes()
            assert twin.stat().st_mode & 0o777 == 0o600
        assert not (second.path / "link").exists()
        opened = await open_registry(second)
        assert await opened.devices() == await registry.devices()
        assert await opened.audit(limit=4) == await registry.audit(limit=4)
        assert [await door(opened, name) for name in ("cam-7", "cam-8")] == ["in", "in"]
        await opened.close()
        assert list(home.run.iterdir()) == []
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    async def test_while_others_write_it_is_of_one_moment(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        stop, written = asyncio.Event(), 0

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                names = [f"w{written}-{n}" for n in range(20)]
                await asyncio.gather(
                    *(inventory.add_device(registry, name, "default", act=Act("w", NOW)) for name in names)
                )
                written += 20

        writing = asyncio.create_task(write())
        for n in range(3):
            await save(home, registry, tmp_path / f"b{n}")
        stop.set()
        await writing
        for n in range(3):
            manifest = check_backup(tmp_path / f"b{n}", PASSPHRASE)
            # without an event: the model, three devices, and each backup so far
            assert manifest.audit_rows == manifest.event_seq + 4 + n + 1
        assert written > 0
        assert await registry.last_audit() == written + 4 + 3

    async def test_nothing_is_overwritten_and_nothing_half_is_left(
        self, home: Home, registry: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "fleet.backup"
        file.write_text("mine")
        with pytest.raises(FileExistsError):
            await save(home, registry, file)
        assert file.read_text() == "mine"

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(create, "write_archive", full)
        with pytest.raises(OSError, match="No space"):
            await save(home, registry, tmp_path / "other")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.backup", "home"]

    async def test_plain_is_a_tar_file(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "b.tar", None)
        shutil.unpack_archive(tmp_path / "b.tar", tmp_path / "out", "tar", filter="data")
        assert (tmp_path / "out" / "ca" / "root.key").read_bytes() == home.root_key.read_bytes()
        assert check_backup(tmp_path / "b.tar", None).audit_rows == 5
        (row,) = await registry.audit(after=4)
        assert (row.entry.action, row.entry.detail) == ("home.backup", {"file": "b.tar", "sealed": "no"})


class TestRestoring:
    async def test_cut_anywhere_nothing_stands_there(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "whole")
        await save(home, registry, tmp_path / "plain", None)
        for name, passphrase in (("whole", PASSPHRASE), ("plain", None)):
            data = (tmp_path / name).read_bytes()
            cut = tmp_path / "cut"
            for end in [*range(0, len(data), len(data) // 12), len(data) - 1]:
                cut.write_bytes(data[:end])
                with pytest.raises(FleetError):
                    await restore(cut, tmp_path / "home2", home.revocations, passphrase)
                assert not (tmp_path / "home2").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    async def test_the_wrong_passphrase_and_none(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "b")
        for passphrase, code in ((b"wrong", "wrong-passphrase"), (None, "passphrase-needed")):
            with pytest.raises(FleetError) as caught:
                check_backup(tmp_path / "b", passphrase)
            assert caught.value.code == code

    async def test_one_that_is_not_sealed_where_a_passphrase_is_given(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await save(home, registry, tmp_path / "b", None)
        with pytest.raises(Refused, match="not encrypted") as refused:
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        assert refused.value.code == "backup-not-sealed"
        assert not (tmp_path / "home2").exists()

    async def test_a_registry_that_was_edited_before_it_was_packed(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await registry.close()
        with closing(sqlite3.connect(home.registry, isolation_level=None)) as db:
            db.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
        opened = await open_registry(home)
        await save(home, opened, tmp_path / "b")
        await opened.close()
        with pytest.raises(Invalid, match="row 2 has been changed"):
            check_backup(tmp_path / "b", PASSPHRASE)

    async def test_a_registry_with_something_planted_in_it(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await registry.close()
        with closing(sqlite3.connect(home.registry, isolation_level=None)) as db:
            db.execute("CREATE TRIGGER t AFTER INSERT ON audit BEGIN UPDATE device SET state = 'active'; END")
        opened = await open_registry(home)
        await save(home, opened, tmp_path / "b")
        await opened.close()
        with pytest.raises(Invalid, match="holds a trigger"):
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations)

    @pytest.mark.parametrize(
        "name",
        ["registry.db-wal", "state/revocations.jsonl", "archive/a.jsonl.pending", "run/x"],
    )
    async def test_a_file_that_no_backup_holds(
        self, home: Home, registry: Engine, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The registry is checked by itself; what a log beside it said would come true when it is opened.
        target = home.path / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if not target.exists():
            target.write_bytes(b"x")
        with monkeypatch.context() as careless:
            careless.setattr(create, "is_ours_to_save", (name, "fleet.toml", "ca/root.pem").__contains__)
            careless.setattr(create, "LEFT_OUT", frozenset())
            await save(home, registry, tmp_path / "b")
        with pytest.raises(Invalid, match=f"holds {name}, which no backup does"):
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations)

    async def test_into_a_new_place_only(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "b")
        with pytest.raises(Conflict):
            await restore(tmp_path / "b", home.path, home.revocations)
        (tmp_path / "empty").mkdir()
        await restore(tmp_path / "b", tmp_path / "empty", home.revocations)

    async def test_whoever_was_put_out_since_stays_out(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        log = revocation_journal(home)
        async with journaling_revocations(registry, log):
            added = Insert(Station("st1", ("default",), NOW))
            station = certificate("st1", kind=CredentialKind.STATION)
            await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (added, AddCredential(station))))
            await revocation.suspend(registry, "cam-9", act=Act("operator", NOW))
            token, _ = await inventory.create_token(registry, model="default", act=Act("operator", NOW))
            approved, pending = waiting("cam-20"), waiting("cam-21")
            limits = WaitingLimits()
            entry = AuditEntry(NOW, "nobody", "device.enroll", "device cam-20", "approval-pending")
            await registry.commit(Change(entry, (AddRequest(approved, limits), AddRequest(pending, limits))))
            await approvals.approve(registry, approved.id, act=Act("operator", NOW))
            await save(home, registry, tmp_path / "b")
            await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
            await revocation.suspend(registry, "cam-8", act=Act("operator", NOW))
            await revocation.resume(registry, "cam-9", act=Act("operator", NOW))
            await revocation.revoke_station(registry, "st1", act=Act("operator", NOW))
            await enroll(registry, "cam-10")
            await inventory.add_device(registry, "cam-11", "default", act=Act("operator", NOW))
            await revocation.revoke(registry, "cam-10", act=Act("operator", NOW))
        await catch_up(registry, log)
        done = await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        assert (done.reapplied.devices, done.reapplied.certificates, done.reapplied.tokens) == (2, 1, 1)
        assert (done.reapplied.unknown, done.reapplied.barred) == (("cam-11",), ("cam-10",))
        assert (done.reapplied.resumed, done.stations) == (("cam-9",), ())
        opened = await open_registry(Home(tmp_path / "home2"))
        codes = [await door(opened, name) for name in ("cam-7", "cam-8", "cam-9", "cam-10")]
        assert codes == ["device-revoked", "device-suspended", "device-suspended", "certificate-unknown"]
        out = await opened.device(DeviceId("cam-10"))
        assert out is not None
        assert out.state is DeviceState.REVOKED
        with pytest.raises(Refused) as caught:
            await identify(opened, Peer("192.0.2.1", certificate_der=b"", fingerprint=station.fingerprint), NOW)
        assert caught.value.code == "certificate-superseded"
        (kept,) = await opened.tokens()
        assert (kept.id, kept.revoked_at) == (token.id, NOW)
        states = {r.device_id: r.state.value for r in await opened.requests(now=NOW)}
        assert (states, done.reapplied.requests) == ({"cam-20": "denied", "cam-21": "pending"}, 1)
        (row,) = [row for row in await opened.audit() if row.entry.action == "registry.restore"]
        assert (row.entry.detail["devices"], row.entry.detail["tokens"]) == ("2", "1")
        await opened.close()

    async def test_claims_and_makers_that_were_put_out_since_stay_out(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        act, issuer = Act("operator", NOW), load_issuer(home)
        for name in ("used", "revoked", "shut"):
            spki = generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            end = NOW + timedelta(days=1)
            await claims.enroll_claim(registry, issuer, claims.NewClaim(name, "default", 5, spki, end), act=act)
        for name in ("gone", "kept"):
            await anchors.add_anchor(registry, name, ("default",), name.encode(), act=act)
        log = revocation_journal(home)
        await catch_up(registry, log)
        await save(home, registry, tmp_path / "b")
        await claims.revoke_claim(registry, "revoked", act=act)
        await claims.quarantine_claim(registry, "shut", act=act)
        await anchors.remove_anchor(registry, "gone", act=act)
        await catch_up(registry, log)
        done = await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        assert (done.reapplied.claims, done.reapplied.anchors) == (("shut", "used"), ("gone",))
        opened = await open_registry(Home(tmp_path / "home2"))
        states = {claim.name: claim_state(claim, NOW) for claim in await opened.claims()}
        assert states == {"used": "quarantined", "revoked": "revoked", "shut": "quarantined"}
        assert [anchor.name for anchor in await opened.anchors()] == ["kept"]
        (held,) = await opened.credentials("revoked")
        assert held.state is CredentialState.REVOKED
        await opened.close()
        done = await restore(tmp_path / "b", tmp_path / "home3", None)
        assert done.reapplied.claims == ("revoked", "shut", "used")

    async def test_what_was_superseded_since_stays_so_and_what_was_issued_since_is_unknown(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await save(home, registry, tmp_path / "b")
        fresh = certificate("cam-7", 2)
        issued = replace(fresh, state=CredentialState.ISSUED)
        await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (AddCredential(issued),)))
        assert await door(registry, "cam-7", 2) == "in"  # its first use ends the one before it
        await catch_up(registry, revocation_journal(home))
        await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        opened = await open_registry(Home(tmp_path / "home2"))
        assert await door(opened, "cam-7", 1) == "certificate-superseded"
        assert await door(opened, "cam-7", 2) == "certificate-unknown"
        await inventory.create_token(opened, device="cam-7", act=Act("operator", NOW))  # how it gets back in
        await opened.close()

    async def test_a_certificate_that_was_revoked_since_is_revoked_with_its_reason_and_its_key_stays_barred(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        act, entry = Act("operator", NOW), AuditEntry(NOW, "t", "t", "", "ok")
        old, used, lost, renewed = (
            certificate(name, n) for name, n in (("cam-7", 1), ("cam-8", 1), ("cam-9", 1), ("cam-9", 2))
        )
        for name in ("cam-7", "cam-9"):
            fresh = replace(certificate(name, 2), state=CredentialState.ISSUED)
            await registry.commit(
                Change(entry, (AddCredential(fresh), *((MarkUsed(fresh.fingerprint),) if name == "cam-7" else ())))
            )
        log = revocation_journal(home)
        await catch_up(registry, log)
        await save(home, registry, tmp_path / "b")
        await revocation.revoke_certificate(registry, old, act=act, crl_reason=CrlReason.PRIVILEGE_WITHDRAWN)
        await revocation.revoke_certificate(registry, used, act=act)
        await revocation.revoke_certificate(registry, lost, act=act, crl_reason=CrlReason.KEY_COMPROMISE)
        assert await door(registry, "cam-9", 2) == "in"
        pending = await registry.pending_revocations(9)
        noted = [CrlEntry(each.revocation, b"k" * 20, 0, b"") for each in pending]
        RevokedCertificates(home.revoked_certificates).note(noted)
        await catch_up(registry, log)
        done = await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        assert done.reapplied.certificates == 3
        opened = await open_registry(Home(tmp_path / "home2"))
        for held, n, reason in ((old, 1, 9), (used, 1, 0), (lost, 1, 1)):
            assert await door(opened, held.holder, n) == "certificate-revoked"
            known = await opened.revocation(held.serial)
            assert known is not None
            assert known.reason == reason
            with pytest.raises(Conflict) as caught:
                again = replace(certificate(held.holder, 9), key_sha256=held.key_sha256)
                await opened.commit(Change(entry, (AddCredential(again),)))
            assert caught.value.code == "key-taken"
        assert await door(opened, "cam-7", 2) == "in"
        await opened.commit(Change(entry, (AddCredential(replace(renewed, serial="9", fingerprint=b"9" * 32)),)))
        rows = [row.entry for row in await opened.audit() if row.entry.action == "certificate.revoke"]
        assert [row.detail.get("crl_reason", "") for row in rows] == ["", "keyCompromise", "privilegeWithdrawn"]
        await opened.close()

    async def test_without_the_log_nobody_is_trusted(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await revocation.suspend(registry, "cam-9", act=Act("operator", NOW))
        await save(home, registry, tmp_path / "b")
        await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
        done = await restore(tmp_path / "b", tmp_path / "home2", None)
        assert done.reapplied.devices == 2
        opened = await open_registry(Home(tmp_path / "home2"))
        for name in ("cam-7", "cam-8", "cam-9"):
            assert await door(opened, name) == "device-suspended"
        doubted = DeviceFilter(tags=(("restore", done.restore),))
        assert [d.id for d in await opened.devices(doubted)] == ["cam-7", "cam-8"]
        await opened.close()
        # and the new home's own log does not pretend to know what nobody knows
        with pytest.raises(Refused):
            await restore(tmp_path / "b", tmp_path / "home3", tmp_path / "home2" / "state" / "revocations.jsonl")

    async def test_without_the_log_whoever_still_has_a_certificate_is_named(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        for kind, name in ((CredentialKind.STATION, "st1"), (CredentialKind.OPERATOR, "eve")):
            write = Insert(Station(name, ("default",), NOW)) if name == "st1" else _operator(name)
            held = AddCredential(certificate(name, kind=kind))
            await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (write, held)))
        await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (_operator("no certificate"),)))
        await save(home, registry, tmp_path / "b")
        await revoke_operator(registry, "eve", act=Act("operator", NOW))
        done = await restore(tmp_path / "b", tmp_path / "home2", None)
        assert (done.stations, done.operators) == (("st1",), ("eve",))

    async def test_an_operator_who_bears_a_revoked_devices_name(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        held = certificate("cam-7", kind=CredentialKind.OPERATOR)
        await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (_operator("cam-7"), AddCredential(held))))
        await save(home, registry, tmp_path / "b")
        await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
        await catch_up(registry, revocation_journal(home))
        done = await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
        assert (done.reapplied.devices, done.operators) == (1, ("cam-7",))

    async def test_a_log_that_begins_after_the_backup_is_refused(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await save(home, registry, tmp_path / "b")
        lineage = revocation_journal(home).mark(newest=0).lineage
        home.revocations.unlink()
        await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
        revocation_journal(home).mark(newest=await registry.last_event())  # as fleet db begin-journal does
        text = home.revocations.read_text()
        for given in (text, text.replace(revocation_journal(home).mark(newest=99).lineage, lineage)):
            home.revocations.write_text(given)
            with pytest.raises(Refused) as caught:
                await restore(tmp_path / "b", tmp_path / "home2", home.revocations)
            assert caught.value.code == "revocations-incomplete"
        assert not (tmp_path / "home2").exists()

    async def test_a_log_that_ends_before_the_backup_is_refused(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await catch_up(registry, revocation_journal(home))
        old_copy = Path(shutil.copyfile(home.revocations, tmp_path / "old.jsonl"))
        retag = Retag((("roof", "north"),))
        await tag_device(registry, "cam-7", retag, act=Act("operator", NOW))  # which no log of revocations notes
        await save(home, registry, tmp_path / "b")
        await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
        with pytest.raises(Refused) as caught:
            await restore(tmp_path / "b", tmp_path / "home2", old_copy)
        assert caught.value.code == "revocations-incomplete"
        await restore(tmp_path / "b", tmp_path / "home2", home.revocations)

    async def test_an_older_backup_after_a_restore(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "b1")
        await revocation.revoke(registry, "cam-7", act=Act("operator", NOW))
        await save(home, registry, tmp_path / "b2")
        await restore(tmp_path / "b2", tmp_path / "home2", home.revocations)
        second = Home(tmp_path / "home2")
        opened = await open_registry(second)
        await revocation.revoke(opened, "cam-8", act=Act("operator", NOW))
        await catch_up(opened, revocation_journal(second))
        await opened.close()
        await restore(tmp_path / "b1", tmp_path / "home3", second.revocations)
        third = await open_registry(Home(tmp_path / "home3"))
        assert [await door(third, name) for name in ("cam-7", "cam-8", "cam-9")] == [
            "device-revoked",
            "device-revoked",
            "in",
        ]
        await third.close()

    async def test_another_fleets_log(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        await save(home, registry, tmp_path / "b")
        other = await create_home(tmp_path / "other", Settings(), NOW)
        opened = await open_registry(other)
        await catch_up(opened, revocation_journal(other))
        await opened.close()
        with pytest.raises(Refused) as caught:
            await restore(tmp_path / "b", tmp_path / "home2", other.revocations)
        assert caught.value.code == "revocations-of-another"


class TestNoting:
    async def test_a_serving_process_notes_what_others_do(self, home: Home, registry: Engine) -> None:
        log = revocation_journal(home)
        other = await open_registry(home)
        noted = threading.Event()

        class Watched(type(log)):  # type: ignore[misc]
            def note(self, events: object) -> None:
                super().note(events)
                noted.set()

        watched = Watched(home.revocations, log._fleet)
        async with journaling_revocations(registry, watched):
            await revocation.revoke(other, "cam-7", act=Act("operator", NOW))
            assert await asyncio.to_thread(noted.wait, 15)
        await other.close()
        assert b'"subject":"cam-7","detail":"revoked"' in home.revocations.read_bytes()

    async def test_a_registry_put_back_by_hand_is_not_served(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        await catch_up(registry, revocation_journal(home))
        await registry.close()
        shutil.copy(home.registry, tmp_path / "old.db")
        opened = await open_registry(home)
        await revocation.revoke(opened, "cam-7", act=Act("operator", NOW))
        await catch_up(opened, revocation_journal(home))
        await opened.close()
        for left in home.path.glob("registry.db*"):
            left.unlink()
        shutil.copy(tmp_path / "old.db", home.registry)
        back = await open_registry(home)
        assert await door(back, "cam-7") == "in"  # which is why
        with pytest.raises(Refused) as caught:
            await catch_up(back, revocation_journal(home))
        assert caught.value.code == "registry-went-back"
        with pytest.raises(Refused):
            async with journaling_revocations(back, revocation_journal(home)):
                pass
        await back.close()
