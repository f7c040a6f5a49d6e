"""Any row of any tree can be proved, from what is kept of it; and what is not there is named."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.ca.head_signer import check_head
from fleet.domain.audit_proof import check_path, proof_text, read_proof
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.errors import FleetError, NotFound
from fleet.domain.merkle import EMPTY, inclusion_path
from fleet.domain.writes import AddCredential, DropAudit
from fleet.services.audit_proving import prove, seq_of_issue
from fleet.services.audit_tree import path_of, subtree_hash, tree_at
from fleet.storage.sqlite.audit_reader import audit_of_copy
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.services.audit_stage import KEYS, NOW, edit, entry, fill, fill_and_seal, make_file

ROWS = 1_300
SLOW_TO_SET_UP = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("audit") / "registry.db"
    asyncio.run(make_file(file, (1, 2, 255, 700, ROWS), ROWS + 7))
    return file


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


@SLOW_TO_SET_UP
@given(seq=st.integers(1, ROWS))
def test_every_sealed_row_is_proved(path: Path, seq: int) -> None:
    with audit_of_copy(path) as reader:
        proof = asyncio.run(prove(reader, seq))
    assert proof.entry == entry(seq)
    assert read_proof(proof_text(proof).encode("ascii")) == proof
    check_path(proof)
    check_head(proof.head, KEYS)


@SLOW_TO_SET_UP
@given(data=st.data())
def test_paths_and_trees_are_those_of_the_leaves(path: Path, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, ROWS), "size")
    index = data.draw(st.integers(0, size - 1), "index")
    with audit_of_copy(path) as reader:
        leaves = asyncio.run(reader.audit_hashes(0, 0, ROWS))
        found = asyncio.run(path_of(reader, index, size))
        tree = asyncio.run(tree_at(reader, size))
    assert found == inclusion_path(
        index, size, lambda level, at: EMPTY.appended(leaves[at << level : at + 1 << level]).root()
    )
    assert tree == EMPTY.appended(leaves[:size])


async def refusal(registry: SqliteRegistry, seq: int) -> tuple[str, str]:
    with pytest.raises(FleetError) as caught:
        await prove(registry, seq)
    return caught.value.code, caught.value.advice


async def test_what_is_not_there_or_not_sealed(registry: SqliteRegistry) -> None:
    await fill(registry, 2)
    assert await refusal(registry, 3) == ("no-such-row", "See: fleet audit list")
    assert await refusal(registry, 0) == ("row-archived", "Look for it in the archive.")
    code, advice = await refusal(registry, 2)
    assert code == "not-sealed"
    assert "within a second" in advice
    assert "fleet audit seal" in advice
    await fill_and_seal(registry, (3,))
    assert (await prove(registry, 2)).head.size == 3


async def test_the_last_sealed_row_is_proved_and_the_next_one_is_not_yet(registry: SqliteRegistry) -> None:
    await fill_and_seal(registry, (3,))
    await fill(registry, 4)
    assert (await prove(registry, 3)).head.size == 3
    assert (await refusal(registry, 4))[0] == "not-sealed"
    assert (await refusal(registry, 5))[0] == "no-such-row"


async def test_the_row_of_a_certificates_issue(registry: SqliteRegistry) -> None:
    der = b"a certificate"
    held = Credential(
        hashlib.sha256(der).digest(), "5d01", CredentialKind.DEVICE, "cam-7", bytes(32), NOW, NOW + timedelta(days=1),
        CredentialState.ISSUED, NOW, der,
    )  # fmt: skip
    await fill(registry, 2)
    with pytest.raises(NotFound) as caught:
        await seq_of_issue(registry, "5d01")
    assert caught.value.code == "no-such-certificate"
    assert "fleet audit list" in caught.value.advice
    issue = AuditEntry(NOW, "token t1", "device.enroll", "device cam-7", "ok", detail={"serial": "5d01"})
    await registry.commit(Change(issue, (AddCredential(held),)))
    await fill(registry, 5)
    assert await seq_of_issue(registry, "5d01") == 3
    edit(registry.path, "UPDATE audit SET outcome = 'not-ok' WHERE seq = 3")
    with pytest.raises(NotFound) as caught:
        await seq_of_issue(registry, "5d01")
    assert caught.value.code == "no-such-row"
    assert "--subject 'device cam-7'" in caught.value.advice


async def test_a_serial_that_is_none_is_repeated_in_part(registry: SqliteRegistry) -> None:
    with pytest.raises(NotFound) as caught:
        await seq_of_issue(registry, "f" * 5000)
    assert len(caught.value.message) < 150


async def test_rows_behind_archived_ones(registry: SqliteRegistry) -> None:
    await fill_and_seal(registry, (800,))
    await registry.commit(Change(entry(801), (DropAudit(512),)))
    assert (await refusal(registry, 512))[0] == "row-archived"
    for seq in (513, 700, 768, 769, 800):
        check_path(await prove(registry, seq))
    assert await subtree_hash(registry, 9, 0) == (await tree_at(registry, 512)).root()


async def test_nodes_that_are_gone_are_made_from_rows(registry: SqliteRegistry) -> None:
    await fill_and_seal(registry, (800,))
    edit(registry.path, "DELETE FROM audit_node")
    check_path(await prove(registry, 700))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody' WHERE seq = 700",
        "UPDATE audit SET leaf = zeroblob(32) WHERE seq = 699",
        "UPDATE audit SET leaf = x'00' WHERE seq = 699",
        "DELETE FROM audit WHERE seq = 699",
        "UPDATE audit_node SET hash = zeroblob(32) WHERE idx = 0",
        "UPDATE audit_head SET root = zeroblob(32)",
    ],
)
async def test_broken_ground_proves_nothing(registry: SqliteRegistry, statement: str) -> None:
    await fill_and_seal(registry, (800,))
    edit(registry.path, statement)
    code, _ = await refusal(registry, 700)
    assert code in ("audit-changed", "audit-hash-missing")
