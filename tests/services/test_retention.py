"""Retention: what goes and what stays, archived before it is dropped, through crashes at every step."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.approval import DEFAULT_WAITING, ApprovalRequest, request_id
from fleet.domain.audit_log import NODE_LEVELS, AuditNode, Sealed, TreeHead
from fleet.domain.changes import AuditEntry, Change, Event
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Conflict, Invalid, Unavailable
from fleet.domain.merkle import EMPTY
from fleet.domain.writes import (
    AddCredential,
    AddRequest,
    DropAnswers,
    DropAudit,
    DropCredentials,
    DropEvents,
    Insert,
    Write,
)
from fleet.services import inventory
from fleet.services.archived_audit import BLOCK, check_archived
from fleet.services.retention import Mode, Policy, Report, Retention
from fleet.storage.journals.archive import Archive, read_lines
from fleet.storage.journals.event_marks import EventMarks
from fleet.storage.sqlite.registry import SqliteRegistry

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ALL = Policy(events_days=30, audit_days=30, expired_credentials_days=30)
NONE = Policy(0, 0, 0)


class Failing(SqliteRegistry):
    """Dies in the middle of its `deadly`th drop: before it is committed, or right after."""

    deadly = 0
    after_commit = False
    drops = 0

    async def commit(self, change: Change) -> None:
        kinds = (DropEvents, DropAudit, DropCredentials, DropAnswers)
        if not any(isinstance(write, kinds) for write in change.writes):
            await super().commit(change)
            return
        self.drops += 1
        if self.drops == self.deadly and not self.after_commit:
            raise Unavailable("power", "The power went.")
        await super().commit(change)
        if self.drops == self.deadly:
            raise Unavailable("power", "The power went.")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Failing]:
    opened = await Failing.open(tmp_path / "registry.db")
    await inventory.add_model(opened, Model("cam2"), act=Act("operator", NOW - 100 * DAY))
    yield opened
    await opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


async def run(
    registry: SqliteRegistry, folder: Path, policy: Policy = ALL, now: datetime = NOW, *, dry: bool = False
) -> Report:
    with Archive(folder).held() as archive:
        marks = EventMarks(folder.parent / "state" / "event-marks.jsonl")
        retention = Retention(registry, archive, marks, policy, Mode("retention", is_dry=dry))
        return await retention.run(noted=10**9, now=now)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


async def tell(registry: SqliteRegistry, count: int, at: datetime = NOW - 60 * DAY) -> None:
    events = tuple(Event("model.changed", f"m{n}") for n in range(count))
    await registry.commit(Change(AuditEntry(at, "t", "t", "", "ok"), events=events))


async def audit_to(registry: SqliteRegistry, rows: int, at: datetime = NOW - 60 * DAY) -> None:
    entries = [
        AuditEntry(at, "t", f"a{n}", "é", "ok", detail={"b": "1", "a": "\n"})
        for n in range(rows - await registry.last_audit())
    ]
    await asyncio.gather(*(registry.commit(Change(entry)) for entry in entries))  # in order, and few transactions


async def seal(registry: SqliteRegistry) -> Sealed:
    """As sealing does: a head over everything, and the hashes of whole blocks."""
    last = await registry.last_sealed()
    leaves = await registry.audit_hashes(0, last.head.size if last else 0, 10_000)
    tree = (last.frontier if last else EMPTY).appended(leaves)
    first = last.head.size // BLOCK if last else 0
    rows = await registry.audit(after=first * BLOCK, limit=10_000)
    nodes = tuple(
        AuditNode(
            NODE_LEVELS[0],
            first + n,
            EMPTY.appended([row.leaf for row in rows[n * BLOCK : (n + 1) * BLOCK]]).root(),
        )
        for n in range(len(rows) // BLOCK)
    )
    sealed = Sealed(TreeHead(tree.size, tree.root(), NOW, bytes(32), b"signature"), tree)
    await registry.seal(sealed, nodes)
    return sealed


def certificate(holder: str, n: int, ends: datetime, state: CredentialState = CredentialState.SUPERSEDED) -> Credential:
    der = f"{holder} {n}".encode()
    digest = hashlib.sha256(der).digest()
    serial = f"{int.from_bytes(digest[:20]):x}"
    return Credential(
        digest, serial, CredentialKind.DEVICE, holder, digest, ends - 90 * DAY, ends, state, ends - 90 * DAY, der
    )


async def enroll(registry: SqliteRegistry, name: str, state: DeviceState, held: Sequence[Credential]) -> None:
    device = Device(DeviceId(name), "cam2", state, NOW - 90 * DAY)
    writes: tuple[Write, ...] = (Insert(device), *map(AddCredential, held))
    await registry.commit(Change(AuditEntry(NOW - 90 * DAY, "t", "t", "", "ok"), writes))


class TestEvents:
    async def test_by_the_day_on_which_they_were_seen(self, registry: Failing, folder: Path) -> None:
        await tell(registry, 10)
        assert (await run(registry, folder, now=NOW - 40 * DAY)).events == 0  # it has only just seen them
        await tell(registry, 5)
        assert (await run(registry, folder, now=NOW - 20 * DAY)).events == 0
        assert await run(registry, folder, dry=True) == Report(events=10, files=("events-000000000001-000000000010",))
        assert await registry.first_event() == 1
        assert names(folder) == []
        assert (await run(registry, folder)).events == 10
        assert await registry.first_event() == 11
        (file,) = folder.glob("*.jsonl")
        assert file.stat().st_mode & 0o777 == 0o600
        assert [(line["seq"], line["subject"]) for line in read_lines(file)] == [(n + 1, f"m{n}") for n in range(10)]
        (row,) = [row for row in await registry.audit() if row.entry.subject.startswith("events")]
        assert (row.entry.action, row.entry.actor) == ("retention.drop", "retention")

    async def test_what_has_not_been_noted_stays(self, registry: Failing, folder: Path) -> None:
        await tell(registry, 10)
        await run(registry, folder, now=NOW - 40 * DAY)
        with Archive(folder).held() as archive:
            marks = EventMarks(folder.parent / "state" / "event-marks.jsonl")
            report = await Retention(registry, archive, marks, ALL, Mode("a")).run(noted=4, now=NOW)
        assert report.events == 4
        assert await registry.first_event() == 5

    async def test_the_newest_stays_whatever_its_age(self, registry: Failing, folder: Path) -> None:
        await tell(registry, 3)
        await run(registry, folder, now=NOW - 40 * DAY)
        await run(registry, folder)
        assert (await registry.first_event(), await registry.last_event()) == (3, 3)


class TestAudit:
    async def test_nothing_that_is_not_sealed(self, registry: Failing, folder: Path) -> None:
        await audit_to(registry, 2 * BLOCK + 5)
        assert (await run(registry, folder)).audit == 0

    async def test_by_whole_blocks_that_can_be_verified_later(self, registry: Failing, folder: Path) -> None:
        await audit_to(registry, 3 * BLOCK + 77)
        sealed = await seal(registry)
        assert (await run(registry, folder)).audit == 3 * BLOCK
        assert (await registry.audit(limit=1))[0].seq == 3 * BLOCK + 1
        (file,) = folder.glob("audit-*.jsonl")
        assert check_archived(file, 0) == (3 * BLOCK, sealed.head)
        await audit_to(registry, 5 * BLOCK + 3)
        sealed = await seal(registry)
        assert (await run(registry, folder)).audit == 0  # block 4 holds the row of the last drop, which is young
        assert (await run(registry, folder, now=NOW + 31 * DAY)).audit == 2 * BLOCK
        second = sorted(folder.glob("audit-*.jsonl"))[1]
        assert check_archived(second, 3 * BLOCK) == (5 * BLOCK, sealed.head)

    async def test_young_rows_stay(self, registry: Failing, folder: Path) -> None:
        await audit_to(registry, BLOCK + 10)
        await audit_to(registry, 3 * BLOCK, at=NOW - 10 * DAY)
        await seal(registry)
        assert (await run(registry, folder, replace(ALL, audit_days=0))).audit == 0
        assert (await run(registry, folder)).audit == BLOCK

    @pytest.mark.parametrize("spoil", ["row", "leaf", "gap", "path", "head", "node", "both", "empty"])
    async def test_a_spoiled_archive_is_found(self, registry: Failing, folder: Path, spoil: str) -> None:
        await audit_to(registry, 2 * BLOCK + 1)
        await seal(registry)
        await run(registry, folder)
        (file,) = folder.glob("audit-*.jsonl")
        head, first, second, *rows = (json.loads(line) for line in file.read_text().splitlines())
        match spoil:
            case "row":
                rows[7]["actor"] = "nobody"
            case "leaf":
                rows[7]["leaf"] = "00" * 32
            case "gap":
                del rows[7]
            case "path":
                first["path"][0] = "00" * 32
            case "head":
                head["head"]["root"] = "00" * 32
            case "node":
                second["node"] = "00" * 32
            case "both":  # a block left out with its proof
                second, rows = first, rows[:BLOCK]
            case "empty":
                rows = []
        file.write_text("".join(json.dumps(line) + "\n" for line in (head, first, second, *rows)))
        with pytest.raises(Invalid):
            check_archived(file, 0)


class TestCredentials:
    async def test_what_has_ended_long_ago_goes_but_never_the_last(self, registry: Failing, folder: Path) -> None:
        long_ago, lately, ahead = NOW - 40 * DAY, NOW - 10 * DAY, NOW + 10 * DAY
        alive = [certificate("alive", n, long_ago) for n in range(3)]
        renewed = [certificate("renewed", 1, long_ago), certificate("renewed", 2, lately)]
        dead = [certificate("dead", n, long_ago, CredentialState.REVOKED) for n in range(2)]
        out = [certificate("out", 1, long_ago), certificate("out", 2, ahead, CredentialState.REVOKED)]
        await enroll(registry, "alive", DeviceState.ACTIVE, alive)
        await enroll(registry, "renewed", DeviceState.SUSPENDED, renewed)
        await enroll(registry, "dead", DeviceState.REVOKED, dead)
        await enroll(registry, "out", DeviceState.RETIRED, out)
        assert (await run(registry, folder, dry=True)).credentials == 6
        assert (await run(registry, folder)).credentials == 6
        kept = {name: await registry.credentials(name) for name in ("alive", "renewed", "dead", "out")}
        assert kept == {"alive": alive[2:], "renewed": renewed[1:], "dead": [], "out": out[1:]}
        (file,) = folder.glob("credentials-*.jsonl")
        archived = {line["sha256"]: bytes.fromhex(line["der"]) for line in read_lines(file)}
        assert archived == {c.fingerprint.hex(): c.der for c in (*alive[:2], renewed[0], *dead, out[0])}
        # and the key of a revoked one is barred for ever
        again = structs.replace(dead[0], fingerprint=bytes(32), serial="1", holder="alive", not_after=ahead)
        with pytest.raises(Conflict):
            await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (AddCredential(again),)))

    async def test_those_that_stay_do_not_stand_in_the_way(self, registry: Failing, folder: Path) -> None:
        for n in range(60):
            await enroll(registry, f"k{n}", DeviceState.ACTIVE, [certificate(f"k{n}", 1, NOW - 90 * DAY)])
        await enroll(registry, "dead", DeviceState.RETIRED, [certificate("dead", 1, NOW - 40 * DAY)])
        assert (await run(registry, folder)).credentials == 1


async def test_nothing_is_due_when_everything_is_kept_for_ever(registry: Failing, folder: Path) -> None:
    await tell(registry, 10)
    await audit_to(registry, 2 * BLOCK + 5)
    await seal(registry)
    await enroll(registry, "dead", DeviceState.RETIRED, [certificate("dead", 1, NOW - 4000 * DAY)])
    await run(registry, folder, NONE, now=NOW - 40 * DAY)
    assert await run(registry, folder, NONE) == Report()
    assert names(folder) == []


async def test_requests_that_have_expired_are_forgotten(registry: Failing, folder: Path) -> None:
    """With every policy at never: whoever waits has been promised nothing longer."""
    for name, days in (("new-1", 1), ("new-2", 0)):
        key_sha256 = hashlib.sha256(name.encode()).digest()
        asked = ApprovalRequest(
            id=request_id(name, key_sha256),
            device_id=DeviceId(name),
            model="cam2",
            key_sha256=key_sha256,
            key_type="EC-P256",
            facts="",
            address="",
            network="",
            first_seen=NOW - DAY,
            last_seen=NOW - DAY,
            expires_at=NOW + days * DAY,
        )
        entry = AuditEntry(NOW - DAY, "nobody", "device.enroll", f"device {name}", "approval-pending")
        await registry.commit(Change(entry, (AddRequest(asked, DEFAULT_WAITING),)))
    await run(registry, folder, NONE, dry=True)
    assert len(await registry.requests(now=NOW - DAY)) == 2
    await run(registry, folder, NONE)
    assert [r.device_id for r in await registry.requests(now=NOW - DAY)] == ["new-1"]


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("deadly", [1, 2, 3, 4])
async def test_a_crash_at_any_drop_loses_nothing_and_doubles_nothing(
    registry: Failing, folder: Path, deadly: int, after_commit: bool
) -> None:
    await tell(registry, 10)
    await run(registry, folder, NONE, now=NOW - 40 * DAY)
    await tell(registry, 2)
    await audit_to(registry, BLOCK + 5)
    await seal(registry)
    held = [certificate("dead", n, NOW - 40 * DAY) for n in range(3)]
    await enroll(registry, "dead", DeviceState.RETIRED, held)
    registry.drops, registry.deadly, registry.after_commit = 0, deadly, after_commit
    with pytest.raises(Unavailable):
        await run(registry, folder)
    assert sum(name.endswith(".pending") for name in names(folder)) == (deadly < 4)
    later = certificate("dead", 9, NOW - 39 * DAY)  # what is due has grown meanwhile
    await registry.commit(Change(AuditEntry(NOW, "t", "t", "", "ok"), (AddCredential(later),)))
    registry.deadly = 0
    await run(registry, folder, now=NOW + timedelta(hours=1))
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in read_lines(path)]
    assert sorted(x["seq"] for x in lines if "kind" in x and "seq" in x) == list(range(1, 11))
    assert [x["seq"] for x in lines if "leaf" in x] == list(range(1, BLOCK + 1))
    assert sorted(x["serial"] for x in lines if "der" in x) == sorted(c.serial for c in (*held, later))
    assert not [name for name in names(folder) if not name.endswith(".jsonl")]
    assert (await registry.first_event(), (await registry.audit(limit=1))[0].seq) == (11, BLOCK + 1)
    assert await registry.credentials("dead") == []


async def test_one_at_a_time(registry: Failing, folder: Path) -> None:
    with Archive(folder).held(), pytest.raises(Conflict, match="Another process"):
        await run(registry, folder)


class TestFiles:
    def test_nothing_is_overwritten(self, folder: Path) -> None:
        with Archive(folder).held() as archive:
            assert archive.put("events-1-2", [{"seq": 1}]) == "events-1-2"
            assert archive.put("events-1-2", [{"seq": 2}]) == "events-1-2-2"
            assert archive.pending() == ["events-1-2", "events-1-2-2"]
            assert archive.settle("events-1-2").name == "events-1-2.jsonl"
            assert archive.put("events-1-2", [{"seq": 3}]) == "events-1-2-3"

    def test_what_a_crash_has_left_half_written_is_no_file(self, folder: Path) -> None:
        with Archive(folder).held() as archive:
            (folder / ".events-1-2.new").write_text('{"se')
            assert archive.pending() == []
            archive.put("events-1-2", [{"seq": 1}])
            assert archive.read_pending("events-1-2") == [{"seq": 1}]

    @pytest.mark.parametrize("text", ["{", "[]\n", '{"a":1}', "\xff\n", '{"a":1}\n\n'])
    def test_damaged_lines(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "events-1-2.jsonl"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(Invalid) as caught:
            list(read_lines(path))
        assert caught.value.code == "archive-damaged"

    def test_marks(self, tmp_path: Path) -> None:
        marks = EventMarks(tmp_path / "state" / "marks")
        assert marks.newest_before(NOW) == 0
        marks.add(NOW, 5)
        marks.add(NOW + timedelta(hours=1), 7)  # of the same day
        marks.add(NOW + DAY, 9)
        assert [marks.newest_before(NOW + n * DAY) for n in (-1, 0, 1, 2)] == [0, 5, 9, 9]
        marks.add(NOW + 2 * DAY, 3)  # restored from a backup
        assert [marks.newest_before(NOW + n * DAY) for n in (1, 2)] == [0, 3]
        (tmp_path / "state" / "marks").write_text("x")
        with pytest.raises(Invalid):
            marks.newest_before(NOW)
