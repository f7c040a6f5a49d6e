"""A proof comes back as it was, and nothing else passes for one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.domain.audit_log import TreeHead, leaf_of
from fleet.domain.audit_proof import PROOF_SIZE_MAX, Proof, check_path, proof_text, read_proof
from fleet.domain.changes import AuditEntry
from fleet.domain.errors import Invalid
from fleet.domain.merkle import EMPTY, SIZE_MAX, inclusion_path

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
ENTRY = AuditEntry(NOW, "operator", "device.revoke", 'device "é\ud800', "ok", "192.0.2.1", {"reason": "lost", "a": "b"})
SIZE = 21


def entry(seq: int) -> AuditEntry:
    return replace(ENTRY, subject=f"device cam-{seq}") if seq != 5 else ENTRY


LEAVES = [leaf_of(entry(seq), seq) for seq in range(1, SIZE + 1)]


def proof_of(seq: int, size: int = SIZE) -> Proof:
    def subtree(level: int, index: int) -> bytes:
        return EMPTY.appended(LEAVES[index << level : index + 1 << level]).root()

    at = NOW.replace(microsecond=654_000)
    head = TreeHead(size, EMPTY.appended(LEAVES[:size]).root(), at, bytes(range(32)), bytes(range(71)))
    return Proof(seq, entry(seq), inclusion_path(seq - 1, size, subtree), head)


PROOF = proof_of(5)
TEXT = proof_text(PROOF).encode("ascii")


def refusal(data: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        read_proof(data)
    assert caught.value.code == "bad-proof"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_it_comes_back_and_holds_for_every_row(size: int) -> None:
    for seq in range(1, size + 1):
        proof = proof_of(seq, size)
        assert read_proof(proof_text(proof).encode("ascii")) == proof
        check_path(proof)


texts = st.text(max_size=20)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


@given(
    entry=st.builds(AuditEntry, moments, texts, texts, texts, texts, texts, st.dictionaries(texts, texts, max_size=4)),
    seq=st.integers(1, SIZE_MAX),
    path=st.lists(st.binary(min_size=32, max_size=32), max_size=62),
    head_at=moments,
    head_size=st.integers(1, SIZE_MAX),
    root=st.binary(min_size=32, max_size=32),
    signature=st.binary(min_size=8, max_size=72),
)
def test_any_proof_comes_back(
    entry: AuditEntry,
    seq: int,
    path: list[bytes],
    head_at: datetime,
    head_size: int,
    root: bytes,
    signature: bytes,
) -> None:
    at = head_at.replace(microsecond=head_at.microsecond // 1000 * 1000)
    proof = Proof(seq, entry, tuple(path), TreeHead(head_size, root, at, bytes(32), signature))
    assert read_proof(proof_text(proof).encode("ascii")) == proof


def test_cut_at_every_byte() -> None:
    for end in range(len(TEXT.rstrip())):
        refusal(TEXT[:end])


def test_with_anything_behind_it() -> None:
    for more in (b"{}", b"x", b"\0", TEXT):
        refusal(TEXT + more)


def test_a_flipped_bit_is_no_proof_or_another_one() -> None:
    """It never holds by accident: what is still a proof leads to another root, or names another head."""
    for at in range(len(TEXT)):
        for bit in range(8):
            data = TEXT[:at] + bytes([TEXT[at] ^ 1 << bit]) + TEXT[at + 1 :]
            try:
                proof = read_proof(data)
            except Invalid:
                continue
            if proof == PROOF:
                continue  # a space between members, or the case of an escape's hex digit
            same_tree = (proof.seq, proof.entry, proof.path, proof.head.size, proof.head.root)
            if same_tree == (PROOF.seq, PROOF.entry, PROOF.path, PROOF.head.size, PROOF.head.root):
                continue  # its time, key or signature: what check_head looks at
            with pytest.raises(Invalid) as caught:
                check_path(proof)
            assert caught.value.code == "proof-wrong"


Edit = Callable[[dict[str, Any]], object]
FORMS: dict[str, Edit] = {
    "version": lambda p: p.update(version=2),
    "version is": lambda p: p.update(version=True),
    "version is not a number": lambda p: p.update(version=1.0),
    "other members": lambda p: p.update(more=1),
    "members than": lambda p: p.pop("path"),
    "seq": lambda p: p.update(seq="5"),
    "seq is": lambda p: p.update(seq=0),
    "seq is no": lambda p: p.update(seq=1 << 63),
    "leaf": lambda p: p.update(leaf=p["leaf"].replace("revoke", "resume")),
    "leaf is": lambda p: p.update(leaf=7),
    "leaf is not": lambda p: p["entry"].update(action="device.resume"),
    "index": lambda p: p.update(index=5),
    "index is": lambda p: p.update(index=-1),
    "size": lambda p: p.update(size=22),
    "path": lambda p: p.update(path={}),
    "path is": lambda p: p.update(path=["00" * 32] * 63),
    "path is no text": lambda p: p.update(path=[1]),
    "path is not in hex": lambda p: p.update(path=["00" * 31]),
    "hex digits": lambda p: p["path"].__setitem__(0, p["path"][0].upper() + " "),
    "entry": lambda p: p.update(entry=[]),
    "entry has": lambda p: p["entry"].pop("address"),
    "entry's time": lambda p: p["entry"].update(at="2026-03-01 12:00:00.654321Z"),
    "is not a time": lambda p: p["entry"].update(at="2026-02-30T12:00:00.654321Z"),
    "before 1970": lambda p: p["entry"].update(at="1969-12-31T12:00:00.654321Z"),
    "actor is no text": lambda p: p["entry"].update(actor=None),
    "detail": lambda p: p["entry"].update(detail="x"),
    "detail 'a'": lambda p: p["entry"]["detail"].update(a={"deep": 1}),
    "head": lambda p: p.update(head=None),
    "head has": lambda p: p["head"].update(more=1),
    "head's time": lambda p: p["head"].update(at="2026-03-01T12:00:00.654321Z"),
    "root": lambda p: p["head"].update(root=""),
    "key_id": lambda p: p["head"].update(key_id="zz" * 32),
    "signature": lambda p: p["head"].update(signature="0"),
    "signature is": lambda p: p["head"].update(signature="00" * 73),
}


@pytest.mark.parametrize("says", FORMS)
def test_another_form_is_named(says: str) -> None:
    value = json.loads(TEXT)
    FORMS[says](value)
    assert says in refusal(json.dumps(value).encode("ascii"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b"NaN",
        b'"' + b"x" * 99,
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b"1" * 10_000,
        "é".encode(),
        b"\xff\xfe",
        TEXT.replace(b'"version": 1', b'"version": 1, "version": 1'),
        TEXT.replace(b'"version": 1', b'"version": Infinity'),
    ],
)
def test_what_is_no_proof_at_all(data: bytes) -> None:
    refusal(data)


def test_it_is_bounded() -> None:
    assert "larger" in refusal(TEXT + b" " * PROOF_SIZE_MAX)
    large = replace(PROOF, entry=replace(ENTRY, detail={"x": "y" * 100_000}))
    assert read_proof(proof_text(large).encode("ascii")) == large


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PROOF, seq=6),
        replace(PROOF, seq=SIZE + 1),
        replace(PROOF, entry=replace(ENTRY, at=NOW + timedelta(microseconds=1))),
        replace(PROOF, path=PROOF.path[1:]),
        replace(PROOF, path=(*PROOF.path, bytes(32))),
        replace(PROOF, path=(bytes(32), *PROOF.path[1:])),
        replace(PROOF, head=replace(PROOF.head, root=bytes(32))),
        replace(PROOF, head=replace(PROOF.head, size=4)),
    ],
)
def test_a_wrong_one_does_not_hold(wrong: Proof) -> None:
    with pytest.raises(Invalid) as caught:
        check_path(wrong)
    assert caught.value.code == "proof-wrong"
    assert caught.value.message.startswith("The proof does not hold: ")
