"""A home on PostgreSQL into one file and back, and from either engine into the other."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fleet.backup.create import Encryption, save_home
from fleet.backup.restore import Restored, RestoreSource, check_backup, restore_backup
from fleet.config.addresses import Database
from fleet.config.database_url import parse_database_url
from fleet.config.settings import Settings
from fleet.domain.access import Act
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused
from fleet.home.creation import create_home
from fleet.home.layout import Home, open_registry, revocation_journal, settings_of
from fleet.services import revocation
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import Engine, open_engine
from fleet.storage.postgres import transfer as postgres_copy
from fleet.storage.postgres.session import connect
from fleet.storage.postgres.transfer import OF_THE_SERVER, copy_out, must_agree, tables_of
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.backup.test_backup import COST, NOW, PASSPHRASE, door, enroll, save
from tests.postgres_server import PostgresServer

ACT = Act("operator", NOW)
IN_THE_HOME = Database()
Make = Callable[[], str]


def quiet(_table: str, _rows: int) -> None:
    """Nobody watches."""


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Make]:
    """Makes empty databases; gives each one's URL."""
    made: list[str] = []

    def make() -> str:
        made.append(postgres_server.make_database())
        return postgres_server.url(made[-1])

    yield make
    for name in made:
        postgres_server.drop_database(name)


@pytest.fixture
def place(database: Make, tmp_path: Path) -> Callable[[], Database]:
    """Makes an empty database; gives the setting that names it."""
    folder = tmp_path / "urls"
    folder.mkdir()

    def make() -> Database:
        file = folder / f"url-{len(list(folder.iterdir()))}"
        file.write_text(database())
        file.chmod(0o600)
        return Database(file=str(file))

    return make


@pytest.fixture
async def home(place: Callable[[], Database], tmp_path: Path) -> Home:
    return await create_home(tmp_path / "home", Settings(database=place()), NOW)


@pytest.fixture
async def registry(home: Home) -> AsyncIterator[Engine]:
    opened = await open_registry(home)
    for name in ("cam-7", "cam-8", "cam-9"):
        await enroll(opened, name)
    yield opened
    await opened.close()


async def restore(file: Path, path: Path, revocations: Path | None, database: Database = IN_THE_HOME) -> Restored:
    return await restore_backup(RestoreSource(file, revocations, PASSPHRASE), path, act=ACT, database=database)


Rows = dict[str, list[tuple[Any, ...]]]


async def rows_on_server(url: str) -> Rows:
    session = await connect(parse_database_url(url), "test")
    try:
        return {
            table.name: [
                tuple(row)
                for row in await session.fetch(
                    f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {', '.join(table.key)}"  # noqa: S608
                )
            ]
            for table in await tables_of(session)
        }
    finally:
        await session.close()


def rows_in_file(path: Path, like: Rows, columns: dict[str, tuple[str, ...]], keys: dict[str, tuple[str, ...]]) -> Rows:
    with closing(sqlite3.connect(path)) as db:
        return {
            name: db.execute(
                f"SELECT {', '.join(columns[name])} FROM {name} ORDER BY {', '.join(keys[name])}"  # noqa: S608
            ).fetchall()
            for name in like
        }


def url_of(database: Database) -> str:
    return Path(database.file).read_text()


async def test_both_schemas_hold_the_same_tables(home: Home, tmp_path: Path) -> None:
    """Whoever adds a table or a column adds it to both engines, or a backup would leave it out."""
    opened = await SqliteRegistry.open(tmp_path / "empty.db")
    await opened.close()
    session = await connect(parse_database_url(url_of(settings_of(home).database)), "test")
    try:
        tables = await tables_of(session)
        everything = await session.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'fleet'")
        assert {table.name for table in tables} | OF_THE_SERVER == {row["tablename"] for row in everything}
        assert {"device", "credential", "audit", "event"} <= {table.name for table in tables}
        with closing(sqlite3.connect(tmp_path / "empty.db")) as db:
            must_agree(tables, db)
            for sql in ("ALTER TABLE device ADD COLUMN surplus TEXT", "CREATE TABLE surplus (x TEXT)"):
                db.execute("BEGIN")
                db.execute(sql)
                with pytest.raises(Invalid, match=r"do not hold the same tables: (surplus|device) is") as caught:
                    must_agree(tables, db)
                assert caught.value.code == "registry-differs"
                db.execute("ROLLBACK")
        await session.execute("CREATE TABLE fleet.stranger (id text PRIMARY KEY)")
        with pytest.raises(Invalid, match="stranger"):
            await copy_out(parse_database_url(url_of(settings_of(home).database)), tmp_path / "copy.db", quiet)
        await session.execute("CREATE TABLE fleet.other (id jsonb PRIMARY KEY)")
        with pytest.raises(Invalid, match="other holds id jsonb"):
            await tables_of(session)
    finally:
        await session.close()


async def saved_under_load(home: Home, registry: Engine, folder: Path) -> int:
    """Save `home` into `folder` while devices enroll; how many had enrolled when it was done."""
    done, warm = asyncio.Event(), asyncio.Event()
    enrolled = 0

    async def load(worker: int) -> None:
        nonlocal enrolled
        while not done.is_set():
            await enroll(registry, f"load-{worker}-{enrolled:05}")
            enrolled += 1
            if enrolled == 300:
                warm.set()

    workers = [asyncio.create_task(load(n)) for n in range(8)]
    copied: list[str] = []
    try:
        await warm.wait()
        before = enrolled
        encryption = Encryption(PASSPHRASE, COST)
        await save_home(
            home, registry, folder, encryption=encryption, act=ACT, progress=lambda table, _: copied.append(table)
        )
        after = enrolled
    finally:
        done.set()
        await asyncio.gather(*workers)
    assert after > before, "nobody enrolled while the backup was taken"
    assert {"device", "credential", "audit"} <= set(copied)
    return after


@pytest.mark.parametrize("into", ["postgres", "sqlite"])
async def test_under_load_it_is_of_one_moment_and_comes_back_row_by_row(
    into: str,
    home: Home,
    registry: Engine,
    place: Callable[[], Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_copy, "ROWS_AT_ONCE", 7)  # many batches a table
    after = await saved_under_load(home, registry, tmp_path / "b")
    manifest = check_backup(tmp_path / "b", PASSPHRASE)
    await catch_up(registry, revocation_journal(home))

    target = place() if into == "postgres" else Database()
    await restore(tmp_path / "b", tmp_path / "home2", home.revocations, target)
    source = await rows_on_server(url_of(settings_of(home).database))
    second = Home(tmp_path / "home2")
    assert settings_of(second).database == target
    assert second.registry.exists() == (into == "sqlite")
    session = await connect(parse_database_url(url_of(settings_of(home).database)), "test")
    tables = await tables_of(session)
    await session.close()
    if into == "postgres":
        copy = await rows_on_server(url_of(target))
    else:
        columns, keys = {t.name: t.columns for t in tables}, {t.name: t.key for t in tables}
        copy = rows_in_file(second.registry, source, columns, keys)
    # What a restore adds itself stands behind what was saved; what came later than the backup is not in it.
    assert copy["audit"][: manifest.audit_rows] == source["audit"][: manifest.audit_rows]
    assert [row[2:4] for row in copy["audit"][manifest.audit_rows :]] == [("operator", "registry.restore")]
    audit_rows = manifest.audit_rows - 5  # init, three devices, home.backup
    assert len(copy["device"]) == len(copy["credential"]) == audit_rows + 3
    assert 300 <= audit_rows <= after
    known = {row[0] for row in copy["device"]}
    assert copy["device"] == [row for row in source["device"] if row[0] in known]
    names = next(table.columns for table in tables if table.name == "credential")
    fingerprint, holder = names.index("fingerprint"), names.index("holder")
    prints = {row[fingerprint] for row in copy["credential"]}
    assert sorted(copy["credential"]) == sorted(row for row in source["credential"] if row[fingerprint] in prints)
    assert {row[holder] for row in copy["credential"]} == known  # certificates and their devices are of one moment
    for name in ("model", "token", "station", "operator", "device_tag", "revoked_key", "approval_request"):
        assert copy[name] == source[name], name
    await must_count_on(second)


async def must_count_on(second: Home) -> None:
    """It lets in who was restored, and enrolls behind what was restored."""
    opened = await open_registry(second)
    try:
        assert [await door(opened, name) for name in ("cam-7", "load-0-00000")] in (
            ["in", "in"],
            ["in", "unknown-device"],
        )
        await enroll(opened, "new-1")
        assert await door(opened, "new-1") == "in"
    finally:
        await opened.close()


async def test_sqlite_moves_up_and_whoever_was_put_out_since_stays_out(
    place: Callable[[], Database], tmp_path: Path
) -> None:
    home = await create_home(tmp_path / "small", Settings(), NOW)
    registry = await open_registry(home)
    try:
        for name in ("cam-7", "cam-8", "cam-9"):
            await enroll(registry, name)
        await save(home, registry, tmp_path / "b")
        await revocation.revoke(registry, "cam-7", act=ACT)
        await revocation.suspend(registry, "cam-8", act=ACT)
        await catch_up(registry, revocation_journal(home))
    finally:
        await registry.close()
    target = place()
    done = await restore(tmp_path / "b", tmp_path / "home2", home.revocations, target)
    assert done.reapplied.devices == 2
    opened = await open_registry(Home(tmp_path / "home2"))
    try:
        assert [await door(opened, name) for name in ("cam-7", "cam-8", "cam-9")][2] == "in"
        assert "in" not in [await door(opened, name) for name in ("cam-7", "cam-8")]
        await catch_up(opened, revocation_journal(Home(tmp_path / "home2")))
    finally:
        await opened.close()


async def test_a_revocation_after_the_backup_holds_on_postgres(
    home: Home, registry: Engine, place: Callable[[], Database], tmp_path: Path
) -> None:
    await save(home, registry, tmp_path / "b")
    await revocation.revoke(registry, "cam-7", act=ACT)
    await catch_up(registry, revocation_journal(home))
    await restore(tmp_path / "b", tmp_path / "home2", home.revocations, place())
    second = await open_registry(Home(tmp_path / "home2"))
    assert await door(second, "cam-7") != "in"
    assert await door(second, "cam-8") == "in"
    await second.close()
    done = await restore(tmp_path / "b", tmp_path / "home3", None, place())
    assert done.reapplied.devices == 3
    third = await open_registry(Home(tmp_path / "home3"))
    assert "in" not in [await door(third, name) for name in ("cam-7", "cam-8", "cam-9")]
    await third.close()


class TestRefusals:
    async def test_a_database_that_is_not_empty(
        self, home: Home, registry: Engine, place: Callable[[], Database], tmp_path: Path
    ) -> None:
        await save(home, registry, tmp_path / "b")
        held = await registry.last_audit()
        with pytest.raises(Conflict, match="is not empty") as caught:
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations, settings_of(home).database)
        assert caught.value.code == "registry-exists"
        assert await registry.last_audit() == held
        other = place()
        await restore(tmp_path / "b", tmp_path / "home2", home.revocations, other)
        with pytest.raises(Conflict, match="A restore has filled"):
            await restore(tmp_path / "b", tmp_path / "home3", home.revocations, other)
        assert not (tmp_path / "home3").exists()

    async def test_tampered_and_cut_leave_the_database_empty(
        self, home: Home, registry: Engine, place: Callable[[], Database], tmp_path: Path
    ) -> None:
        await save(home, registry, tmp_path / "b")
        whole = (tmp_path / "b").read_bytes()
        target = place()
        bad = tmp_path / "bad"
        for step in range(0, len(whole), len(whole) // 12):
            bad.write_bytes(whole[:step])
            with pytest.raises((Invalid, Refused)):
                await restore(bad, tmp_path / "home2", home.revocations, target)
            bad.write_bytes(whole[:step] + bytes([whole[step] ^ 1]) + whole[step + 1 :])
            with pytest.raises((Invalid, Refused)):
                await restore(bad, tmp_path / "home2", home.revocations, target)
        assert not (tmp_path / "home2").exists()
        await restore(tmp_path / "b", tmp_path / "home2", home.revocations, target)

    async def test_an_audit_row_changed_in_the_database_is_found_in_its_backup(
        self, home: Home, registry: Engine, tmp_path: Path
    ) -> None:
        session = await connect(parse_database_url(url_of(settings_of(home).database)), "test")
        await session.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
        await session.close()
        await save(home, registry, tmp_path / "b")
        with pytest.raises(Invalid, match="audit"):
            check_backup(tmp_path / "b", PASSPHRASE)
        with pytest.raises(Invalid, match="audit"):
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations)

    async def test_a_newer_schema(self, home: Home, registry: Engine, tmp_path: Path) -> None:
        session = await connect(parse_database_url(url_of(settings_of(home).database)), "test")
        await session.execute("INSERT INTO migration (number) VALUES (9999)")
        await session.close()
        with pytest.raises(Invalid, match="has schema 9999") as caught:
            await save(home, registry, tmp_path / "b")
        assert caught.value.code == "registry-newer"
        assert not (tmp_path / "b").exists()
        assert not list(home.run.iterdir())

    async def test_another_database_in_the_environment(
        self, home: Home, registry: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await save(home, registry, tmp_path / "b")
        monkeypatch.setenv("FLEET_DATABASE", "postgresql://fleet@db.example/fleet")
        with pytest.raises(Refused, match="FLEET_DATABASE is set"):
            await restore(tmp_path / "b", tmp_path / "home2", home.revocations)


KILLED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from fleet.backup import restore
from fleet.domain.access import Act
from fleet.config.addresses import Database
file, home, log, url, when = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def progress(table, rows):
    if when == table: die()
async def load(*words):
    await real(*words)
    die()
real = restore.load_file
if when == "loaded": restore.load_file = load
asyncio.run(restore.restore_backup(restore.RestoreSource(Path(file), Path(log), b"correct horse"), Path(home),
    act=Act("operator", datetime.now(UTC)), database=Database(file=url), progress=progress))
"""


@pytest.mark.parametrize("when", ["model", "credential", "audit", "loaded"])
async def test_killed_in_the_middle_of_a_restore(
    when: str, home: Home, registry: Engine, place: Callable[[], Database], tmp_path: Path
) -> None:
    await save(home, registry, tmp_path / "b")
    target, path = place(), tmp_path / "home2"
    words = (str(tmp_path / "b"), str(path), str(home.revocations), target.file, when)
    done = await asyncio.to_thread(subprocess.run, (sys.executable, "-c", KILLED, *words), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()  # nothing that `fleet serve` could serve
    if when != "loaded":
        with pytest.raises(NotFound, match="no registry"):
            await open_engine(parse_database_url(url_of(target)), create=False)
        await restore(tmp_path / "b", path, home.revocations, target)
        return
    with pytest.raises(Conflict, match="A restore has filled") as caught:
        await restore(tmp_path / "b", path, home.revocations, target)
    assert "DROP SCHEMA fleet CASCADE" in caught.value.advice
    session = await asyncpg.connect(url_of(target))
    await session.execute("DROP SCHEMA fleet CASCADE")
    await session.close()
    await restore(tmp_path / "b", path, home.revocations, target)


CERTIFICATES = """
    INSERT INTO credential (fingerprint, serial, kind, holder, key_sha256, not_before, not_after, state, issued_at, der,
        earned_by)
    SELECT sha256(i::text::bytea), substr(sha256(i::text::bytea), 1, 20), 'device', 'd' || i, sha256(i::text::bytea),
        0, i, 'active', 0, sha256(i::text::bytea), ''
    FROM generate_series(1, $1) i"""


async def test_a_large_table_comes_in_many_batches(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_copy, "ROWS_AT_ONCE", 200)
    url = parse_database_url(url_of(settings_of(home).database))
    session = await connect(url, "test")
    count = 30_000
    await session.execute(CERTIFICATES, count)
    await session.close()
    told: list[int] = []
    await copy_out(url, tmp_path / "copy.db", lambda table, rows: told.append(rows) if table == "credential" else None)
    assert told[-1] == count
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("SELECT count(*), sum(not_after) FROM credential").fetchone() == (
            count,
            count * (count + 1) // 2,
        )
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        indices = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert {"credential_by_holder", "credential_by_key", "device_by_expiry"} <= indices
