"""The registry's file: what opening makes, what it refuses and how it says so."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.audit_log import sound_leaves
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.errors import FleetError, Invalid, NotFound, Unavailable
from fleet.domain.writes import AddCredential, Insert
from fleet.storage import mapping
from fleet.storage.sqlite import connection as sqlite_file
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.storage.statement import for_sqlite
from fleet.storage.statements import ADD_CREDENTIAL, ADD_MODEL
from tests.storage.samples import ADD_DEVICE_BEFORE_BUDGETS, MODEL, change, credential, device, row_before_budgets


async def refusal(path: Path, *, create: bool = True) -> FleetError:
    with pytest.raises(FleetError) as caught:
        await SqliteRegistry.open(path, create=create)
    assert str(path) in caught.value.message
    assert caught.value.message.endswith(".")
    return caught.value


async def test_every_file_of_it_is_the_owners_alone(db_path: Path) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in db_path.parent.iterdir()}
    await registry.close()
    assert names == dict.fromkeys(("registry.db", "registry.db-shm", "registry.db-wal", "registry.lock"), 0o600)


async def test_what_was_written_is_there_on_reopening(db_path: Path) -> None:
    for _ in range(2):
        registry = await SqliteRegistry.open(db_path)
        if not await registry.models():
            await registry.commit(change(Insert(MODEL)))
        assert await registry.models() == [MODEL]
        await registry.close()


async def test_the_durability_that_is_promised_is_switched_on(db_path: Path) -> None:
    registry = await SqliteRegistry.open(db_path)

    def settings(db: sqlite3.Connection) -> list[object]:
        return [db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("journal_mode", "synchronous", "foreign_keys")]

    assert await registry._writer.run(settings) == ["wal", 2, 1]
    await registry.close()


async def test_a_missing_one_is_not_made_unasked(db_path: Path) -> None:
    error = await refusal(db_path, create=False)
    assert isinstance(error, NotFound)
    assert not db_path.exists()


async def test_a_folder_that_is_missing(db_path: Path) -> None:
    assert isinstance(await refusal(db_path / "deeper" / "registry.db"), FleetError)


async def test_a_folder_in_its_place(tmp_path: Path) -> None:
    assert (await refusal(tmp_path)).code == "registry-permissions"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
async def test_one_that_others_may_open(db_path: Path, mode: int) -> None:
    await (await SqliteRegistry.open(db_path)).close()
    db_path.chmod(mode)
    error = await refusal(db_path)
    assert (type(error), error.code) == (Invalid, "registry-permissions")
    assert "chmod 600" in error.advice


@pytest.mark.parametrize(
    "content", [b"not a database at all\n" * 100, b"\0" * 4096, b"SQLite format 3\0" + b"x" * 8000]
)
async def test_a_file_that_is_no_database(db_path: Path, content: bytes) -> None:
    db_path.write_bytes(content)
    db_path.chmod(0o600)
    assert (await refusal(db_path)).code == "not-a-registry"
    assert db_path.read_bytes() == content


async def test_the_database_of_another_program(db_path: Path) -> None:
    with closing(sqlite3.connect(db_path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    db_path.chmod(0o600)
    assert (await refusal(db_path)).code == "not-a-registry"


async def test_a_newer_schema(db_path: Path) -> None:
    await (await SqliteRegistry.open(db_path)).close()
    newest = sqlite_file.migrations()[-1][0]
    with closing(sqlite3.connect(db_path)) as db:
        db.execute(f"PRAGMA user_version = {newest + 1}")
    error = await refusal(db_path)
    assert (type(error), error.code) == (Invalid, "registry-newer")
    assert f"schema {newest + 1}" in error.message


async def test_a_migration_that_fails_leaves_the_old_schema(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    await registry.close()
    known = sqlite_file.migrations()
    newest = known[-1][0]
    broken = (newest + 1, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*known, broken])
    with pytest.raises(Unavailable, match="nowhere"):
        await SqliteRegistry.open(db_path)
    monkeypatch.undo()
    registry = await SqliteRegistry.open(db_path)
    assert await registry.models() == [MODEL]
    await registry.close()


async def test_a_migration_is_applied_to_what_is_there(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    await registry.close()
    known = sqlite_file.migrations()
    newest = known[-1][0]
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*known, (newest + 1, "CREATE TABLE extra (x)")])
    registry = await SqliteRegistry.open(db_path)
    assert await registry.models() == [MODEL]
    await registry.close()
    with closing(sqlite3.connect(db_path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == newest + 1
        assert db.execute("SELECT count(*) FROM extra").fetchone()[0] == 0


def test_migrations_are_numbered_without_gaps() -> None:
    assert [number for number, _ in sqlite_file.migrations()] == list(range(1, len(sqlite_file.migrations()) + 1))


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")
async def test_opening_a_second_one_keeps_the_firsts_locks(db_path: Path) -> None:
    """A process that closes any descriptor of a file drops all its POSIX locks on it; opening must not do that."""
    first = await SqliteRegistry.open(db_path)
    await (await SqliteRegistry.open(db_path)).close()
    with pytest.raises(FleetError):
        db_path.chmod(0o644)
        await SqliteRegistry.open(db_path)
    db_path.chmod(0o600)
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = f":{db_path.stat().st_ino}"
    assert [kind for _, kind, *rest in locks if any(word.endswith(inode) for word in rest)] == ["POSIX"]
    await first.close()


async def test_what_the_first_schema_held_is_all_there_in_the_newest(db_path: Path) -> None:
    """Rows as the first schema had them, serial numbers as text and the audit as a chain, are read as they were."""
    first = sqlite_file.migrations()[0][1]
    made = credential("cam-7", CredentialState.ACTIVE)
    old = mapping.CREDENTIAL.row(made)
    detail = '{"a":"\\u00e9"}'
    with closing(sqlite3.connect(db_path, isolation_level=None)) as db:
        db.executescript(f"{first}; PRAGMA user_version = 1; PRAGMA application_id = {sqlite_file.APPLICATION_ID};")
        db.execute("INSERT INTO model VALUES ('cam2', 60000000, '[]', '[]', '[]', 0)")
        db.execute("INSERT INTO device VALUES ('cam-7', 'cam2', 'active', 1, '')")
        db.execute(f"INSERT INTO credential VALUES (1, {', '.join('?' * len(old))})", (old[0], made.serial, *old[2:]))  # noqa: S608
        db.execute(
            "INSERT INTO audit VALUES (1, 5, 'a', 'b', 'c', 'ok', '', ?, ?, ?)", (detail, bytes(32), bytes(31) + b"1")
        )
    db_path.chmod(0o600)
    registry = await SqliteRegistry.open(db_path)
    try:
        assert await registry.credentials("cam-7") == [made]
        found = await registry.device("cam-7")
        assert found is not None
        assert (found.expires_at, found.tags, found.groups, found.revision) == (made.not_after, (), (), 1)
        assert len(list(sound_leaves(await registry.audit()))) == 1
        assert (await registry.audit())[0].entry.detail == {"a": "é"}
    finally:
        await registry.close()


async def test_serials_that_a_fleet_has_twice_are_kept_when_they_become_comparable(
    db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sqlite_file.migrations()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [each for each in known if each[0] < 16])
    old = sqlite_file.connect_writer(db_path, sqlite_file.WriteLock(db_path.with_suffix(".lock")), True)
    old.execute(ADD_MODEL.sqlite, mapping.MODEL.row(MODEL))
    pair = [replace(device(name), hardware_serial=serial) for name, serial in (("a", "SN 1"), ("b", "sn  1 "))]
    for each in pair:
        old.execute(for_sqlite(ADD_DEVICE_BEFORE_BUDGETS), row_before_budgets(each))
    old.close()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: known)
    registry = await SqliteRegistry.open(db_path)
    assert await registry.devices() == pair
    holders = await registry.serial_holders(((MODEL.name, "SN 1"),))
    assert {id_ for _, _, id_ in holders} == {"a", "b"}
    await registry.close()


async def test_a_registry_from_before_claims_takes_them(db_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule about kinds is changed in place: rows, indices and other connections stay as they are."""
    known = sqlite_file.migrations()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: known[:3])
    old = sqlite_file.connect_writer(db_path, sqlite_file.WriteLock(db_path.with_suffix(".lock")), True)
    old.execute(ADD_MODEL_BEFORE)
    old.execute(ADD_CREDENTIAL.sqlite, mapping.CREDENTIAL.row(credential("cam-7")))
    old.execute("INSERT INTO station (name, models, created_at) VALUES ('line-1', '[\"cam2\"]', 0)")
    with pytest.raises(sqlite3.IntegrityError):
        old.execute(ADD_CREDENTIAL.sqlite, mapping.CREDENTIAL.row(credential("b", kind=CredentialKind.CLAIM)))
    old.close()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: known)
    registry = await SqliteRegistry.open(db_path)
    assert [c.holder for c in await registry.credentials("cam-7")] == ["cam-7"]
    claimed = credential("b", kind=CredentialKind.CLAIM)
    await registry.commit(change(AddCredential(claimed)))
    assert await registry.credentials("b") == [claimed]
    station = await registry.station("line-1")
    assert station is not None
    assert station.quota == 0
    await registry.close()
    with closing(sqlite3.connect(db_path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("UPDATE credential SET kind = 'nonesuch'")


ADD_MODEL_BEFORE = (
    "INSERT INTO model (name, lifetime, key_types, publish, subscribe, retain) VALUES ('cam2', 1, '[]', '[]', '[]', 0)"
)
