"""The SQLite engine where it is more than the contract: full disks, locks, closing, its file."""

import asyncio
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from fleet.domain.audit_log import sound_leaves
from fleet.domain.changes import Change, Event
from fleet.domain.crl import CrlHead
from fleet.domain.errors import Conflict, Unavailable
from fleet.domain.writes import Insert
from fleet.storage import crls, queries
from fleet.storage.queries import Query
from fleet.storage.sqlite import connection as sqlite_file
from fleet.storage.sqlite import reads as sqlite_reads
from fleet.storage.sqlite import registry as sqlite
from fleet.storage.sqlite import transaction as sqlite_batch
from fleet.storage.sqlite import writes as sqlite_writes
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.storage.statements import STATEMENTS
from tests.storage.samples import MODEL, change, device
from tests.waiting import PATIENCE_SECONDS

DEADLINE_SECONDS = 120.0


@pytest.fixture
async def registry(db_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(db_path)
    await opened.commit(change(Insert(MODEL)))
    yield opened
    await opened.close()


async def pragma(registry: SqliteRegistry, text: str) -> int:
    """Run `PRAGMA text` on the writing connection: how these tests bring its disk into trouble."""

    def work(db: sqlite3.Connection) -> int:
        row = db.execute(f"PRAGMA {text}").fetchone()
        return int(row[0]) if row else 0

    return await registry._writer.run(work)


async def found_taken(registry: SqliteRegistry) -> None:
    """Returns when the writer has found that the lock is another's."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not registry._lock.contended:  # noqa: ASYNC110  it is the writer's thread that finds out
            await asyncio.sleep(0.001)


async def test_a_full_disk_fails_the_batch_whole_and_the_next_one_succeeds(registry: SqliteRegistry) -> None:
    await pragma(registry, f"max_page_count = {await pragma(registry, 'page_count') + 4}")
    kept = 0
    with pytest.raises(Unavailable) as caught:
        while True:
            await registry.commit(change(Insert(device(f"d{kept:04}")), events=(Event("test", "x"),)))
            kept += 1
    assert caught.value.code == "registry-unavailable"
    outcomes = await asyncio.gather(
        *(registry.commit(change(Insert(device(f"e{n}-{'x' * 50}")), action="y" * 4000)) for n in range(8)),
        return_exceptions=True,
    )
    assert all(isinstance(o, Unavailable) for o in outcomes)
    assert len({id(o) for o in outcomes}) == 8  # each caller has an error of its own

    await pragma(registry, "max_page_count = 100000")
    await registry.commit(change(Insert(device("after")), events=(Event("test", "x"),)))
    assert [d.id for d in await registry.devices()] == ["after", *(f"d{n:04}" for n in range(kept))]
    rows = await registry.audit()
    list(sound_leaves(rows))
    assert len(rows) == kept + 2
    assert await registry.last_event() == kept + 1


# The operating system says no in the middle of a write: the file may not grow beyond a limit. Runs by itself, as the
# limit is the process's.
_LIMITED = """
import asyncio, pathlib, resource, sys
from fleet.domain.audit_log import sound_leaves
from fleet.domain.writes import Insert
from fleet.domain.crl import CrlHead
from fleet.domain.errors import Conflict, Unavailable
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import change, device

async def main():
    registry = await SqliteRegistry.open(pathlib.Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    kept, failed = 0, 0
    while failed < 3:
        try:
            await registry.commit(change(Insert(device(f"d{kept}")), action="z" * 3000))
            kept += 1
        except Unavailable:
            failed += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await registry.commit(change(Insert(device("after"))))
    assert len(await registry.devices()) == kept + 1, kept
    list(sound_leaves(await registry.audit()))
    await registry.close()
    print("held", kept)

asyncio.run(main())
"""


async def test_a_write_that_the_system_refuses(registry: SqliteRegistry, db_path: Path) -> None:
    await registry.close()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(db_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held")


async def test_a_database_that_turns_read_only(registry: SqliteRegistry) -> None:
    await pragma(registry, "query_only = 1")
    with pytest.raises(Unavailable, match="readonly"):
        await registry.commit(change(Insert(device("a"))))
    assert await registry.devices() == []
    await pragma(registry, "query_only = 0")
    await registry.commit(change(Insert(device("a"))))


async def test_a_shell_that_holds_a_transaction_makes_it_unavailable(registry: SqliteRegistry, db_path: Path) -> None:
    await pragma(registry, "busy_timeout = 0")
    shell = sqlite3.connect(db_path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await registry.commit(change(Insert(device("a"))))
    assert await registry.devices() == []  # reads go on
    shell.execute("ROLLBACK")
    shell.close()
    await registry.commit(change(Insert(device("a"))))


async def test_a_process_that_keeps_the_lock_is_named(
    registry: SqliteRegistry, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_WAIT_SECONDS", 0.01)
    other = sqlite_file.WriteLock(db_path.with_suffix(".lock"))
    with other, pytest.raises(Unavailable) as caught:
        await registry.commit(change(Insert(device("a"))))
    assert caught.value.code == "registry-busy"
    await registry.commit(change(Insert(device("a"))))
    other.close()


async def test_many_at_once_share_a_transaction(registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write_batch = sqlite_batch.write_batch

    def counted(db: sqlite3.Connection, changes: Sequence[Change]) -> sqlite_batch.Written:
        sizes.append(len(changes))
        return write_batch(db, changes)

    monkeypatch.setattr(sqlite, "write_batch", counted)
    await asyncio.gather(*(registry.commit(change(Insert(device(f"d{n}")))) for n in range(300)))
    assert sum(sizes) == 300
    assert len(sizes) < 10


async def test_what_comes_while_another_process_writes_shares_the_next_transaction(
    registry: SqliteRegistry, db_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write_batch = sqlite_batch.write_batch

    def counted(db: sqlite3.Connection, changes: Sequence[Change]) -> sqlite_batch.Written:
        sizes.append(len(changes))
        return write_batch(db, changes)

    monkeypatch.setattr(sqlite, "write_batch", counted)
    other = sqlite_file.WriteLock(db_path.with_suffix(".lock"))
    with other:
        first = asyncio.create_task(registry.commit(change(Insert(device("first")))))
        await found_taken(registry)
        late = [asyncio.create_task(registry.commit(change(Insert(device(f"d{n}"))))) for n in range(20)]
        await asyncio.sleep(0)  # each has asked
        late[3].cancel()
        await asyncio.sleep(0)
        assert sizes == []
    await asyncio.gather(first, *late, return_exceptions=True)
    assert sizes == [20]
    assert await registry.device("d3") is None
    assert await registry.device("d19") is not None
    other.close()


async def test_who_gives_up_waiting_for_the_lock_leaves_it_free(registry: SqliteRegistry, db_path: Path) -> None:
    other = sqlite_file.WriteLock(db_path.with_suffix(".lock"))
    with other:
        alone = asyncio.create_task(registry.commit(change(Insert(device("a")))))
        await found_taken(registry)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
    await registry.commit(change(Insert(device("b"))))
    assert await registry.device("a") is None
    with other:  # nobody has kept it
        pass
    other.close()


async def test_one_change_that_does_not_hold_costs_the_others_nothing(registry: SqliteRegistry) -> None:
    """A batch is written in one go; when a Change finds otherwise, change by change, numbered without gaps."""
    await registry.commit(change(Insert(device("taken"))))
    names = ["a", "taken", "b", "c", "a"]
    before = await registry.last_audit()
    outcomes = await asyncio.gather(
        *(registry.commit(change(Insert(device(name)))) for name in names), return_exceptions=True
    )
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [False, True, False, False, True]
    assert [row.seq for row in await registry.audit(after=before)] == [before + 1, before + 2, before + 3]
    assert {one.id for one in await registry.devices()} == {"taken", "a", "b", "c"}


async def test_a_batch_has_a_limit(registry: SqliteRegistry) -> None:
    total = sqlite.COMMIT_BATCH_MAX * 2 + 1
    await asyncio.gather(*(registry.commit(change()) for _ in range(total)))
    assert await registry.last_audit() == total + 1


async def test_close_commits_what_was_handed_over(registry: SqliteRegistry, db_path: Path) -> None:
    tasks = [asyncio.create_task(registry.commit(change(Insert(device(f"d{n}"))))) for n in range(50)]
    await asyncio.sleep(0)
    await registry.close()
    assert await asyncio.gather(*tasks) == [None] * 50
    again = await SqliteRegistry.open(db_path, create=False)
    assert len(await again.devices()) == 50
    await again.close()


async def test_the_log_is_folded_in_at_the_last_close(registry: SqliteRegistry, db_path: Path) -> None:
    second = await SqliteRegistry.open(db_path)
    log = Path(f"{db_path}-wal")
    await registry.close()
    assert log.exists()
    await second.close()
    assert not log.exists()


async def test_a_read_that_fails_says_so_and_the_next_succeeds(registry: SqliteRegistry) -> None:
    await registry.commit(change(Insert(device("a"))))

    def broken(at: sqlite_reads.Snapshot) -> None:
        at.db.execute("SELECT * FROM nowhere")

    outcomes = await asyncio.gather(registry._ask(broken), registry.device("a"), return_exceptions=True)
    assert isinstance(outcomes[0], Unavailable)
    assert outcomes[1] == device("a")


async def test_no_hot_statement_walks_a_table(registry: SqliteRegistry) -> None:
    listings = {
        "MODELS",
        "STATIONS",
        "TOKENS",
        "OPERATORS",
        "CLAIMS",
        "ANCHORS",
        "DISTRUSTS",
        "DISTRUSTS_BY_ID",
        "OPEN_TOKEN_COUNTS",
    }  # a whole table, on purpose
    statements = {
        name: text
        for module in (sqlite_reads, sqlite_writes)
        for name, text in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }
    statements |= {name: statement.sqlite for name, statement in STATEMENTS.items()}
    statements |= {
        name: query.sqlite for name, query in vars(queries).items() if isinstance(query, Query) and name not in listings
    }
    assert len(statements) > 70

    def plan(db: sqlite3.Connection, text: str) -> list[str]:
        numbered = [int(n) for n in re.findall(r"\?(\d+)", text)]
        count = max(numbered, default=text.count("?"))
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", [None] * count)]

    def names(db: sqlite3.Connection) -> set[str]:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in tables} | set("abcdfhkmos")  # and the aliases that statements use

    tables = await registry._writer.run(names)
    for name, text in statements.items():
        steps = await registry._writer.run(plan, text)
        walked = [step for step in steps if step.startswith("SCAN") and step.split()[1] in tables]
        assert not walked, (name, steps)


async def test_listing_devices_by_state_or_model_uses_an_index(registry: SqliteRegistry) -> None:
    base = "EXPLAIN QUERY PLAN SELECT id FROM device WHERE id > ? AND"

    def plan(db: sqlite3.Connection, where: str) -> str:
        return " ".join(str(row[3]) for row in db.execute(f"{base} {where} ORDER BY id LIMIT 5", ["", "x"]))

    for where, index in (("model = ?", "device_by_model"), ("state = ? AND state <> 'active'", "device_by_state")):
        steps = await registry._writer.run(plan, where)
        assert index in steps
        assert "TEMP B-TREE" not in steps


@pytest.mark.parametrize("query", [crls.HEADS, crls.ONE_HEAD])
async def test_heads_of_crls_are_read_without_their_octets(registry: SqliteRegistry, query: Query[CrlHead]) -> None:
    def plan(db: sqlite3.Connection) -> str:
        words = ["/crl/01.crl"] * ("?" in query.sqlite)
        return " ".join(str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {query.sqlite}", words))

    assert "COVERING INDEX crl_head" in await registry._writer.run(plan)
