"""Whatever is done to a registry's file, it is found, and named for what it is."""

import asyncio
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.ca.head_signer import HeadKey, LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.audit_log import TreeHead, head_data
from fleet.domain.changes import AuditRow, Change
from fleet.domain.errors import Invalid, Unavailable
from fleet.domain.merkle import EMPTY
from fleet.domain.writes import DropAudit
from fleet.services.audit_verification import Noted, Verified, verify
from fleet.services.sealing import seal
from fleet.storage.sqlite.audit_reader import audit_of_copy
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.audit_stage import KEYS, LEAF, NOW, SIGNER, edit, entry, fill, fill_and_seal, make_file

SIZES = (100, 300, 600, 650)
ROWS = 700


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TreeHead]]:
    path = tmp_path_factory.mktemp("audit") / "registry.db"
    return path, asyncio.run(make_file(path, SIZES, ROWS))


@pytest.fixture
def copy(made: tuple[Path, list[TreeHead]], tmp_path: Path) -> Path:
    return Path(shutil.copy(made[0], tmp_path / "copy.db"))


@pytest.fixture
def heads(made: tuple[Path, list[TreeHead]]) -> list[TreeHead]:
    return made[1]


async def verified(
    path: Path,
    keys: tuple[HeadKey, ...] | None = KEYS,
    *,
    since: Noted | None = None,
    noted: Noted | None = None,
) -> Verified:
    with audit_of_copy(path) as reader:
        return await verify(reader, keys, since=since, noted=noted)


async def found(
    path: Path,
    keys: tuple[HeadKey, ...] | None = KEYS,
    *,
    since: Noted | None = None,
    noted: Noted | None = None,
) -> str:
    with pytest.raises(Invalid) as caught:
        await verified(path, keys, since=since, noted=noted)
    return f"{caught.value.code}: {caught.value.message.removeprefix('The audit is broken: ')}"


def noted_of(head: TreeHead) -> Noted:
    return Noted(head.size, head.root)


async def test_a_sound_one(copy: Path, heads: list[TreeHead]) -> None:
    result = await verified(copy)
    assert (result.rows, result.first_row, result.sealed, result.heads, result.archived) == (ROWS, 1, 650, 4, 0)
    assert result.head == heads[-1]
    assert result.noted.heads == 4
    assert await verified(copy, None) == result


async def test_the_registry_itself_while_it_works(tmp_path: Path) -> None:
    registry = await SqliteRegistry.open(tmp_path / "registry.db")
    try:
        empty = await verify(registry, KEYS)
        assert (empty.rows, empty.sealed, empty.root, empty.noted) == (
            0,
            0,
            EMPTY.root(),
            Noted(0, EMPTY.root(), 0, bytes(32)),
        )
        await fill_and_seal(registry, SIZES)
        working = asyncio.gather(fill(registry, ROWS), seal(registry, SIGNER, NOW), verify(registry, KEYS))
        result = (await working)[2]
        assert result.rows >= result.sealed >= 650
        await verify(registry, KEYS)
    finally:
        await registry.close()


REWRITE = "UPDATE audit SET actor = 'nobody' WHERE seq = {0}"
RELEAF_ALL = f"UPDATE audit SET leaf = {LEAF}"  # noqa: S608  our own constant
RELEAF = RELEAF_ALL + " WHERE seq = {0}"
RESIGN = "UPDATE audit_head SET signature = x'{0}' WHERE size = 300"
BEHEAD = "DELETE FROM audit_head WHERE size = {0}"
RENUMBER_DOWN = "UPDATE audit SET seq = seq - 1 WHERE seq > {0}"
EDITS: dict[str, tuple[tuple[str, ...], str]] = {
    "a row": ((REWRITE.format(3),), "audit-changed: row 3 has been changed."),
    "a row that is not sealed": ((REWRITE.format(690),), "audit-changed: row 690 has been changed."),
    "a leaf": (("UPDATE audit SET leaf = zeroblob(32) WHERE seq = 3",), "audit-changed: row 3 has been changed."),
    "a leaf's length": (("UPDATE audit SET leaf = x'00' WHERE seq = 3",), "audit-changed: row 3 has been changed."),
    "a row and its leaf": (
        (REWRITE.format(3), RELEAF.format(3)),
        "audit-rewritten: rows 1 to 100 are not what the head of 100 rows was signed over.",
    ),
    "a row and its leaf between heads": (
        (REWRITE.format(250), RELEAF.format(250)),
        "audit-rewritten: rows 101 to 300 are not what the head of 300 rows was signed over.",
    ),
    "the last sealed row and its leaf": (
        (REWRITE.format(650), RELEAF.format(650)),
        "audit-rewritten: rows 601 to 650 are not what the head of 650 rows was signed over.",
    ),
    "removed": (("DELETE FROM audit WHERE seq = 3",), "audit-removed: row 3 is missing."),
    "several removed": (("DELETE FROM audit WHERE seq BETWEEN 3 AND 7",), "audit-removed: rows 3 to 7 are missing."),
    "the first removed": (("DELETE FROM audit WHERE seq < 4",), "audit-removed: rows 1 to 3 are missing."),
    "the last sealed removed": (
        ("DELETE FROM audit WHERE seq > 640",),
        "audit-removed: rows 641 to 650 are missing; a head of 650 rows was signed.",
    ),
    "all removed": (
        ("DELETE FROM audit",),
        "audit-removed: rows 1 to 650 are missing; a head of 650 rows was signed.",
    ),
    "removed, and the rest renumbered": (
        ("DELETE FROM audit WHERE seq = 3", RENUMBER_DOWN.format(3)),
        "audit-moved: row 3 was written as row 4 and moved.",
    ),
    "removed, renumbered and new leaves": (
        ("DELETE FROM audit WHERE seq = 203", RENUMBER_DOWN.format(203), RELEAF_ALL),
        "audit-rewritten: rows 101 to 300 are not what the head of 300 rows was signed over.",
    ),
    "changed places": (
        (
            "UPDATE audit SET seq = 0 WHERE seq = 3",
            "UPDATE audit SET seq = 3 WHERE seq = 4",
            "UPDATE audit SET seq = 4 WHERE seq = 0",
        ),
        "audit-moved: row 3 was written as row 4 and moved.",
    ),
    "inserted": (
        (
            "UPDATE audit SET seq = -1 - seq WHERE seq > 2",
            "UPDATE audit SET seq = -seq WHERE seq < 0",
            "INSERT INTO audit SELECT 3, at, 'x', action, '', outcome, '', detail, leaf FROM audit WHERE seq = 2",
            RELEAF.format(3),
        ),
        "audit-inserted: something was inserted before row 4, which was written as row 3.",
    ),
    "inserted before the first": (
        ("INSERT INTO audit SELECT 0, at, actor, action, subject, outcome, address, detail, leaf FROM audit LIMIT 1",),
        "audit-inserted: row 0 is before row 1.",
    ),
    "the newest head removed": (
        ("DELETE FROM audit_head WHERE size = 650",),
        "audit-head-removed: a head of 650 rows was there and is gone.",
    ),
    "all heads removed": (
        ("DELETE FROM audit_head",),
        "audit-head-removed: a head of 650 rows was there, and there is none any more.",
    ),
    "all heads and the frontier removed": (
        ("DELETE FROM audit_head", "DELETE FROM audit_frontier"),
        "audit-node: there is a node over rows from 1 on, which no head has made whole.",
    ),
    "a head's root": (
        ("UPDATE audit_head SET root = zeroblob(32) WHERE size = 300",),
        "head-signature: The signature of the head of 300 rows does not verify.",
    ),
    "a head's time": (
        ("UPDATE audit_head SET at = at + 1000 WHERE size = 300",),
        "head-signature: The signature of the head of 300 rows does not verify.",
    ),
    "a head's time beyond all": (
        ("UPDATE audit_head SET at = -1 WHERE size = 300",),
        "audit-head-changed: the head of 300 rows has been changed.",
    ),
    "a head's time within the millisecond": (
        ("UPDATE audit_head SET at = at + 1 WHERE size = 300",),
        "audit-head-changed: the head of 300 rows has been changed.",
    ),
    "a head of no rows": (
        ("INSERT INTO audit_head SELECT 0, root, at, key_id, signature FROM audit_head LIMIT 1",),
        "audit-head-changed: the head of 0 rows has been changed.",
    ),
    "a head of less than none": (
        ("INSERT INTO audit_head SELECT -5, root, at, key_id, signature FROM audit_head LIMIT 1",),
        "audit-head-changed: the head of -5 rows has been changed.",
    ),
    **{
        f"the text of a detail: {what}": (
            (f"UPDATE audit SET detail = {changed} WHERE seq = 3",),  # noqa: S608  our own constant
            "audit-changed: row 3 has been changed.",
        )
        for what, changed in {
            "a member in front": """replace(detail, '{', '{"k":"evil",')""",
            "a space": "replace(detail, ':', ': ')",
            "a line end": "detail || char(10)",
            "an escape": """substr(detail, 1, 2) || '\\u00' || lower(hex(substr(detail, 3, 1))) || substr(detail, 4)""",
            "nothing": "''",
        }.items()
    },
    "a head's size": (
        ("UPDATE audit_head SET size = 301 WHERE size = 300",),
        "head-signature: The signature of the head of 301 rows does not verify.",
    ),
    "a head's signature": (
        ("UPDATE audit_head SET signature = x'00' WHERE size = 300",),
        "head-signature: The signature of the head of 300 rows does not verify.",
    ),
    "a head's key": (
        ("UPDATE audit_head SET key_id = zeroblob(32) WHERE size = 300",),
        "head-key: The head of 300 rows names another key, 0000000000000000…",
    ),
    "the frontier": (
        ("UPDATE audit_frontier SET hashes = zeroblob(length(hashes))",),
        "audit-frontier: the frontier of the head of 650 rows has been tampered with.",
    ),
    "the frontier's form": (
        ("UPDATE audit_frontier SET hashes = x'00'",),
        "audit-frontier: the frontier of the head of 650 rows has been tampered with.",
    ),
    "the frontier removed": (
        ("DELETE FROM audit_frontier",),
        "audit-frontier: the frontier of the head of 650 rows has been tampered with.",
    ),
    "a node": (
        ("UPDATE audit_node SET hash = zeroblob(32) WHERE idx = 1",),
        "audit-node: the node over rows 257 to 512 has been tampered with.",
    ),
    "a node removed": (
        ("DELETE FROM audit_node WHERE idx = 0",),
        "audit-node: the node over rows 1 to 256 has been tampered with.",
    ),
    "a node before its time": (
        ("INSERT INTO audit_node VALUES (8, 2, zeroblob(32))",),
        "audit-node: there is a node over rows from 513 on, which no head has made whole.",
    ),
    "archived, and the node too": (
        ("DELETE FROM audit WHERE seq <= 256", "DELETE FROM audit_node WHERE idx = 0"),
        "audit-hash-missing: row 1 is missing.",
    ),
    "archived, and the node changed": (
        ("DELETE FROM audit WHERE seq <= 256", "UPDATE audit_node SET hash = zeroblob(32) WHERE idx = 0"),
        "audit-rewritten: rows 257 to 300 are not what the head of 300 rows was signed over.",
    ),
}


@pytest.mark.parametrize("edited", EDITS)
async def test_an_edit_is_found_and_named(copy: Path, edited: str) -> None:
    statements, says = EDITS[edited]
    edit(copy, *statements)
    assert await found(copy) == says


async def test_without_a_key_roots_are_held_all_the_same(copy: Path) -> None:
    edit(copy, "UPDATE audit_head SET root = zeroblob(32) WHERE size = 300")
    assert (await found(copy, None)).startswith("audit-rewritten: rows 101 to 300 are not")


async def test_another_key_and_a_forger_who_names_ours(copy: Path, heads: list[TreeHead]) -> None:
    forger = LocalHeadSigner(generate_key())
    assert (await found(copy, (forger.public_key,))).startswith("head-key: The head of 100 rows names another key")
    await verified(copy, (forger.public_key, *KEYS))
    signature = forger.sign(head_data(heads[1].size, heads[1].root, heads[1].at)).hex()
    edit(copy, RESIGN.format(signature))
    assert (await found(copy, (forger.public_key, *KEYS))).startswith(
        "head-signature: The signature of the head of 300"
    )


class TestSinceAHead:
    async def test_only_what_came_after_is_read(self, copy: Path, heads: list[TreeHead]) -> None:
        result = await verified(copy, since=noted_of(heads[1]))
        assert (result.first_row, result.rows, result.heads, result.head) == (301, ROWS, 2, heads[-1])
        assert replace(result, first_row=1, heads=4, noted=result.noted) == replace(
            await verified(copy), noted=result.noted
        )
        edit(copy, REWRITE.format(3))  # in what was verified before, and is not read again
        await verified(copy, since=noted_of(heads[1]))

    async def test_from_any_size(self, copy: Path, heads: list[TreeHead]) -> None:
        with audit_of_copy(copy) as reader:
            leaves = await reader.audit_hashes(0, 0, ROWS)
        whole = await verified(copy)
        for size in (0, 1, 255, 256, 257, 511, 512, 600, 649, 650, 651, 700):
            result = await verified(copy, since=Noted(size, EMPTY.appended(leaves[:size]).root()))
            assert (result.root, result.first_row) == (whole.root, size + 1)

    async def test_what_came_after_is_verified(self, copy: Path, heads: list[TreeHead]) -> None:
        edit(copy, REWRITE.format(620), RELEAF.format(620))
        says = "audit-rewritten: rows 601 to 650 are not what the head of 650 rows was signed over."
        assert await found(copy, since=noted_of(heads[2])) == says

    async def test_what_came_before_must_give_the_root(self, copy: Path, heads: list[TreeHead]) -> None:
        edit(copy, REWRITE.format(299), RELEAF.format(299))
        assert await found(copy, since=noted_of(heads[1])) == "audit-rewritten: its first 300 rows are not those noted."

    async def test_rows_that_were_there(self, copy: Path, heads: list[TreeHead]) -> None:
        since = Noted(ROWS, (await verified(copy)).root)
        edit(copy, "DELETE FROM audit WHERE seq > 698")
        assert await found(copy, since=since) == "audit-removed: rows 699 to 700 are missing, which were there before."
        await verified(copy)  # nobody could tell without

    async def test_a_head_that_was_there(self, copy: Path) -> None:
        remembered = (await verified(copy)).noted
        await verified(copy, since=remembered)
        edit(copy, "DELETE FROM audit_head WHERE size > 600", "DELETE FROM audit_frontier")
        says = "audit-head-removed: the head of 650 rows, verified before, is gone."
        assert await found(copy, since=remembered) == says

    async def test_they_may_be_remembered_one_after_the_other(self, tmp_path: Path) -> None:
        """However it was cut up, what is remembered in the end is what one look at everything remembers."""
        registry = await SqliteRegistry.open(tmp_path / "registry.db")
        try:
            remembered: Noted | None = None
            for size in (7, 300, 301, 900):
                await fill_and_seal(registry, (size,))
                remembered = (await verify(registry, KEYS, since=remembered)).noted
            assert remembered == (await verify(registry, KEYS)).noted
        finally:
            await registry.close()


class TestNoted:
    async def test_it_is_met_on_the_way(self, copy: Path, heads: list[TreeHead]) -> None:
        for head in heads:
            await verified(copy, noted=noted_of(head))
        await verified(copy, noted=Noted(0, EMPTY.root()))
        await verified(copy, noted=Noted(ROWS, (await verified(copy)).root))
        for wrong in (Noted(300, bytes(32)), Noted(ROWS + 1, bytes(32)), Noted(0, bytes(32))):
            assert "rows are not those noted" in await found(copy, noted=wrong)

    async def test_it_may_be_older_than_where_reading_begins(self, copy: Path, heads: list[TreeHead]) -> None:
        since = noted_of(heads[2])
        await verified(copy, since=since, noted=noted_of(heads[0]))
        await verified(copy, since=since, noted=noted_of(heads[2]))
        await verified(copy, since=since, noted=noted_of(heads[3]))
        assert "not those noted" in await found(copy, since=since, noted=Noted(100, bytes(32)))

    @pytest.mark.parametrize("size", [100, 300, 600])
    async def test_a_head_removed_from_among_them(self, copy: Path, size: int) -> None:
        remembered = (await verified(copy)).noted
        await verified(copy, noted=remembered)
        edit(copy, BEHEAD.format(size))
        says = "audit-head-removed: there are 3 heads up to row 650, and not the 4 that were verified before."
        assert await found(copy, noted=remembered) == says
        await verified(copy)


class TestArchived:
    @pytest.fixture
    async def archived(self, tmp_path: Path) -> Path:
        registry = await SqliteRegistry.open(tmp_path / "registry.db")
        await fill_and_seal(registry, (100, 256, 300, 512, 600))
        await registry.commit(Change(entry(601), (DropAudit(512),)))
        await fill_and_seal(registry, (700,))
        await registry.close()
        return tmp_path / "registry.db"

    async def test_it_starts_from_the_nodes_and_says_so(self, archived: Path) -> None:
        result = await verified(archived)
        assert (result.archived, result.first_row, result.rows, result.heads) == (512, 513, 700, 6)

    async def test_what_was_noted_before_still_holds(self, archived: Path) -> None:
        with audit_of_copy(archived) as reader:
            heads = await reader.audit_heads()
        for head in heads:
            await verified(archived, noted=noted_of(head))
        for wrong in (Noted(256, bytes(32)), Noted(300, bytes(32)), Noted(512, bytes(32))):
            assert "not those noted" in await found(archived, noted=wrong)
        unknown = await found(archived, noted=Noted(301, bytes(32)))
        assert unknown.startswith("audit-archived: Rows up to 512 are archived; what the first 301 were is not known")

    async def test_a_remembered_head_may_be_older_than_what_is_kept(self, archived: Path) -> None:
        whole = await verified(archived)
        with audit_of_copy(archived) as reader:
            heads = await reader.audit_heads()
        for head in heads:
            assert (await verified(archived, since=noted_of(head))).root == whole.root
        assert await verified(archived, since=replace(whole.noted, size=300, root=heads[2].root, heads=None)) == whole
        edit(archived, BEHEAD.format(300))
        assert "is not known any more" in await found(archived, since=noted_of(heads[2]))

    async def test_what_is_remembered_of_heads_holds_across_the_archiving(self, tmp_path: Path) -> None:
        registry = await SqliteRegistry.open(tmp_path / "registry.db")
        try:
            await fill_and_seal(registry, (100, 300))
            remembered = (await verify(registry, KEYS)).noted
            await fill_and_seal(registry, (600,))
            await registry.commit(Change(entry(601), (DropAudit(512),)))
            whole = await verify(registry, KEYS)
            assert await verify(registry, KEYS, since=remembered) == whole
            edit(registry.path, BEHEAD.format(100))
            with pytest.raises(Invalid, match="there are 1 heads up to row 300, and not the 2"):
                await verify(registry, KEYS, since=remembered)
            edit(registry.path, BEHEAD.format(300))
            with pytest.raises(Invalid, match="the head of 300 rows, verified before, is gone"):
                await verify(registry, KEYS, since=remembered)
        finally:
            await registry.close()

    async def test_signatures_over_archived_rows_are_verified(self, archived: Path) -> None:
        edit(archived, "UPDATE audit_head SET at = at + 1000 WHERE size = 100")
        assert await found(archived) == "head-signature: The signature of the head of 100 rows does not verify."

    async def test_what_is_archived_meanwhile_is_no_alarm(self, tmp_path: Path) -> None:
        class Archiving(SqliteRegistry):
            async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
                if after == 100 and await self.audit_hashes(0, 0, 1):
                    await self.commit(Change(entry(601), (DropAudit(256),)))
                return await super().audit(after=after, limit=min(limit, 100))

        registry = await Archiving.open(tmp_path / "registry.db")
        try:
            await fill_and_seal(registry, (600,))
            with pytest.raises(Unavailable) as caught:
                await verify(registry, KEYS)
            assert caught.value.code == "archived-meanwhile"
            assert (await verify(registry, KEYS)).archived == 256
        finally:
            await registry.close()

    async def test_a_head_that_ends_a_block_must_fit_its_node(self, archived: Path) -> None:
        edit(archived, "UPDATE audit_head SET root = zeroblob(32) WHERE size = 256")
        assert (await found(archived, None)).startswith("audit-rewritten: rows 1 to 256 are not what")
