"""The auditor's reader: whatever is done to the file, the first bad row is named or the file is called unreadable."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleet.domain.audit_log import AuditNode, Sealed, TreeHead, sound_leaves
from fleet.domain.changes import AuditRow, Change
from fleet.domain.errors import Invalid, NotFound
from fleet.domain.merkle import EMPTY
from fleet.domain.writes import Insert
from fleet.storage.sqlite.audit_reader import audit_of_copy
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import MODEL, NOW, change, entry

ROWS = 6


@pytest.fixture
async def copy(db_path: Path, tmp_path: Path) -> Path:
    """A copy of a closed registry with ROWS audit rows."""
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    for n in range(2, ROWS + 1):
        await registry.commit(Change(entry(f"action-{n}")))
    await registry.close()
    return Path(shutil.copy(db_path, tmp_path / "copy.db"))


async def sound_rows(path: Path) -> list[AuditRow]:
    """In pages of two."""
    rows: list[AuditRow] = []
    with audit_of_copy(path) as reader:
        while page := await reader.audit(after=len(rows), limit=2):
            list(sound_leaves(page, len(rows)))
            rows += page
    return rows


async def found(path: Path) -> str:
    with pytest.raises(Invalid) as caught:
        await sound_rows(path)
    return f"{caught.value.code}: {caught.value.message}"


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


async def test_a_sound_copy_verifies_and_is_left_alone(copy: Path) -> None:
    before = copy.read_bytes()
    copy.chmod(0o400)
    assert [row.seq for row in await sound_rows(copy)] == list(range(1, ROWS + 1))
    assert copy.read_bytes() == before
    assert not Path(f"{copy}-wal").exists()


async def test_a_copy_with_its_log_is_read_with_it(db_path: Path, tmp_path: Path) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    for suffix in ("", "-wal"):
        shutil.copy(f"{db_path}{suffix}", f"{tmp_path / 'copy.db'}{suffix}")
    assert await sound_rows(tmp_path / "copy.db") == await registry.audit()
    await registry.close()


async def test_it_answers_as_the_registry_does(db_path: Path, tmp_path: Path) -> None:
    registry = await SqliteRegistry.open(db_path)
    await registry.commit(change(Insert(MODEL)))
    tree = EMPTY.appended(await registry.audit_hashes(0, 0, 1))
    sealed = Sealed(TreeHead(1, tree.root(), NOW.replace(microsecond=654_000), bytes(32), b"signature"), tree)
    await registry.seal(sealed, (AuditNode(8, 0, bytes(32)),))
    rows = await registry.audit()
    await registry.close()
    with audit_of_copy(db_path) as reader:
        assert await reader.audit() == rows
        assert await reader.last_audit() == 1
        assert await reader.audit_heads() == [sealed.head]
        assert await reader.audit_heads(after=1) == []
        assert await reader.last_sealed() == sealed
        assert await reader.audit_hashes(8, 0, 2) == [bytes(32)]
        assert await reader.audit_hashes(0, 0, 2) == [rows[0].leaf]


@pytest.mark.parametrize(
    ("statement", "code", "row"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET at = at + 1 WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET at = 9223372036854775807 WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET detail = '[]' WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET detail = '{' WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET outcome = CAST(x'ff' AS TEXT) WHERE seq = 3", "audit-changed", "row 3"),
        ("UPDATE audit SET leaf = x'' WHERE seq = 3", "audit-changed", "row 3"),
        ("DELETE FROM audit WHERE seq = 3", "audit-removed", "row 3 is missing"),
        ("DELETE FROM audit WHERE seq < 3", "audit-removed", "rows 1 to 2 are missing"),
    ],
)
async def test_an_edit_is_named(copy: Path, statement: str, code: str, row: str) -> None:
    edit(copy, statement)
    assert code in await found(copy)
    assert row in await found(copy)


async def test_rows_that_changed_places(copy: Path) -> None:
    edit(copy, "UPDATE audit SET seq = 99 WHERE seq = 3", "UPDATE audit SET seq = 3 WHERE seq = 4")
    edit(copy, "UPDATE audit SET seq = 4 WHERE seq = 99")
    assert await found(copy) == "audit-moved: The audit is broken: row 3 was written as row 4 and moved."


async def test_every_flipped_byte_of_a_row_is_found(copy: Path) -> None:
    sound = copy.read_bytes()
    start = sound.index(b"operatoraction-4")
    end = sound.index(b"192.0.2.1", start) + len(b"192.0.2.1") + len('{"a":"\\"","b":"\\u00e9\\n"}') + 32
    for at in range(start, end):
        for flip in (0x01, 0x80):
            copy.write_bytes(sound[:at] + bytes([sound[at] ^ flip]) + sound[at + 1 :])
            assert "audit-" in await found(copy), (at - start, flip)


async def test_a_file_cut_short_or_of_another_kind(copy: Path, tmp_path: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:5000])
    assert "not-a-registry" in await found(copy)
    copy.write_bytes(b"hello")
    assert "not-a-registry" in await found(copy)
    with pytest.raises(NotFound), audit_of_copy(tmp_path / "none.db"):
        pass
