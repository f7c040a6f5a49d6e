"""Whoever answers the questions of a verifier may lie in each answer by itself: nothing of it is believed."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.keys import generate_key
from fleet.domain.audit_log import Sealed, TreeHead, leaf_of
from fleet.domain.changes import AuditRow
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, Frontier
from fleet.services.audit_verification import Noted, verify
from fleet.services.sealing import signed_head
from tests.services.audit_stage import KEYS, NOW, SIGNER, entry

STRANGER = LocalHeadSigner(generate_key())


def rows(count: int, forged_from: int = 1 << 30) -> list[AuditRow]:
    made = []
    for seq in range(1, count + 1):
        said = replace(entry(seq), actor="mallory") if seq >= forged_from else entry(seq)
        made.append(AuditRow(seq, said, leaf_of(said, seq)))
    return made


def tree_of(some: Sequence[AuditRow]) -> Frontier:
    return EMPTY.appended([row.leaf for row in some])


class Teller:
    """Answers with what it was given, whether it belongs together or not."""

    def __init__(self, told: Sequence[AuditRow], heads: Sequence[TreeHead], sealed: Sealed | None) -> None:
        self._rows, self._heads, self._sealed = told, heads, sealed

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        return [row for row in self._rows if row.seq > after][:limit]

    async def last_audit(self) -> int:
        return self._rows[-1].seq

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        return [head for head in self._heads if head.size > after][:limit]

    async def last_sealed(self) -> Sealed | None:
        return self._sealed

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        return [row.leaf for row in self._rows][first : first + count] if level == 0 else []


TRUE, FORGED = rows(12), rows(12, forged_from=6)
FIRST = signed_head(tree_of(TRUE[:5]), SIGNER, NOW)
LAST = signed_head(tree_of(TRUE), SIGNER, NOW)
BY_ANOTHER = signed_head(tree_of(FORGED), STRANGER, NOW)
UNSIGNED = replace(BY_ANOTHER, key_id=LAST.key_id, signature=b"\0")
OF_LESS = signed_head(tree_of(TRUE[:9]), SIGNER, NOW)


def sealed(head: TreeHead, under: Sequence[AuditRow]) -> Sealed:
    return Sealed(head, tree_of(under))


async def test_the_truth_is_believed() -> None:
    found = await verify(Teller(TRUE, [FIRST, LAST], sealed(LAST, TRUE)), KEYS)
    assert (found.sealed, found.heads, found.noted.root) == (12, 2, LAST.root)


@pytest.mark.parametrize(
    ("told", "heads", "newest", "code"),
    [
        (FORGED, [FIRST, BY_ANOTHER], sealed(BY_ANOTHER, FORGED), "head-key"),
        (FORGED, [FIRST], sealed(BY_ANOTHER, FORGED), "head-key"),
        (FORGED, [], sealed(UNSIGNED, FORGED), "head-signature"),
        (FORGED, [], sealed(LAST, TRUE), "audit-rewritten"),
        (TRUE, [FIRST], sealed(BY_ANOTHER, FORGED), "audit-rewritten"),
        (FORGED, [OF_LESS, FIRST, BY_ANOTHER], sealed(BY_ANOTHER, FORGED), "audit-rewritten"),
        ([*TRUE[:3], TRUE[4], TRUE[3], *TRUE[5:]], [FIRST, LAST], sealed(LAST, TRUE), "audit-removed"),
        (TRUE[:8], [FIRST, LAST], sealed(LAST, TRUE), "audit-removed"),
    ],
)
async def test_a_lie_is_none(told: list[AuditRow], heads: list[TreeHead], newest: Sealed, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        await verify(Teller(told, heads, newest), KEYS)
    assert caught.value.code == code


async def test_nor_is_it_behind_what_was_verified_before() -> None:
    before = (await verify(Teller(TRUE[:5], [FIRST], sealed(FIRST, TRUE[:5])), KEYS)).noted
    with pytest.raises(Invalid, match="another key"):
        await verify(Teller(FORGED, [FIRST], sealed(BY_ANOTHER, FORGED)), KEYS, since=before)


async def test_a_head_of_fewer_rows_than_were_noted_is_held_against_their_hashes() -> None:
    whole = Noted(12, tree_of(TRUE).root())
    assert (await verify(Teller(TRUE, [OF_LESS], sealed(OF_LESS, TRUE[:9])), KEYS, since=whole)).rows == 12
    lie = signed_head(tree_of(FORGED[:9]), SIGNER, NOW)
    with pytest.raises(Invalid) as caught:
        await verify(Teller(TRUE, [lie], sealed(lie, FORGED[:9])), KEYS, since=whole)
    assert caught.value.code == "audit-rewritten"
