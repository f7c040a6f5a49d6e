"""Inclusion proof of one audit row, as a file that can be verified with the public key alone.

text = proof_text(proof)
proof = read_proof(data)  # strict: no missing, unknown or duplicate member
check_path(proof)  # the row is in the head's tree; verify the head's signature next
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from fleet.config.timestamps import EPOCH, rfc3339
from fleet.domain import merkle
from fleet.domain.audit_log import TreeHead, leaf_data
from fleet.domain.changes import AuditEntry
from fleet.domain.errors import Invalid

VERSION = 1
PROOF_SIZE_MAX = 262_144  # an entry of some 100 kB, twice; a path has at most 62 hashes
SIGNATURE_SIZE_MAX = 72  # ECDSA over P-256 in DER

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(rf"(?:[0-9a-f]{{2}}){{8,{SIGNATURE_SIZE_MAX}}}")
_SECONDS = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
_TO_THE_MICROSECOND = re.compile(_SECONDS + r"\.[0-9]{6}Z")
_TO_THE_MILLISECOND = re.compile(_SECONDS + r"\.[0-9]{3}Z")
ENTRY_TEXTS = ("actor", "action", "subject", "outcome", "address")


class Proof(Struct, frozen=True):
    """Row `seq` is `entry`, the leaf of index seq - 1 in the tree of `head`."""

    seq: int
    entry: AuditEntry
    path: tuple[bytes, ...]
    """RFC 9162, 2.1.3.1; the hash next to the leaf first."""
    head: TreeHead


def entry_value(entry: AuditEntry) -> dict[str, object]:
    """`entry` in JSON's types."""
    texts = {name: getattr(entry, name) for name in ENTRY_TEXTS}
    return {"at": rfc3339(entry.at, "microseconds"), **texts, "detail": dict(entry.detail)}


def head_value(head: TreeHead) -> dict[str, object]:
    """`head` in JSON's types."""
    return {
        "size": head.size,
        "root": head.root.hex(),
        "at": rfc3339(head.at, "milliseconds"),
        "key_id": head.key_id.hex(),
        "signature": head.signature.hex(),
    }


def head_of(value: Mapping[str, Any]) -> TreeHead:
    """The head in `value`, not verified. Raises: ValueError, KeyError, TypeError: malformed."""
    root, key_id, signature = (bytes.fromhex(value[name]) for name in ("root", "key_id", "signature"))
    return TreeHead(int(value["size"]), root, datetime.fromisoformat(value["at"]), key_id, signature)


def proof_text(proof: Proof) -> str:
    """The proof as a JSON text in ASCII."""
    value = {
        "version": VERSION,
        "seq": proof.seq,
        "entry": entry_value(proof.entry),
        "leaf": leaf_data(proof.entry, proof.seq).decode("ascii"),
        "index": proof.seq - 1,
        "size": proof.head.size,
        "path": [each.hex() for each in proof.path],
        "head": head_value(proof.head),
    }
    return json.dumps(value, indent=1) + "\n"


def check_path(proof: Proof) -> None:
    """Verify that the row is in the head's tree. The head's signature is not verified here.

    Raises: Invalid (`proof-wrong`).
    """
    leaf = merkle.leaf_hash(leaf_data(proof.entry, proof.seq))
    try:
        root = merkle.root_from_path(leaf, proof.seq - 1, proof.head.size, proof.path)
    except ValueError as error:
        raise Invalid("proof-wrong", f"The proof does not hold: {str(error)[:1].lower()}{str(error)[1:]}") from None
    if root != proof.head.root:
        message = f"The proof does not hold: its path leads from row {proof.seq} to another root than the head's."
        raise Invalid("proof-wrong", message)


def read_proof(data: bytes) -> Proof:
    """The proof in `data`, as written by `proof_text`.

    Raises: Invalid (`bad-proof`): another format. The proof itself is not verified.
    """
    if len(data) > PROOF_SIZE_MAX:
        raise _bad(f"it is larger than {PROOF_SIZE_MAX} bytes")
    try:
        value = json.loads(data.decode("ascii"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # JSON and encoding errors are ValueErrors
        raise _bad("it is no JSON text in ASCII, or is cut off") from None
    top = _members(value, "proof", ("version", "seq", "entry", "leaf", "index", "size", "path", "head"))
    if _number(top["version"], "version") != VERSION:
        raise _bad(f"its version is not {VERSION}")
    seq = _number(top["seq"], "seq")
    entry = _entry(top["entry"])
    head = _head(top["head"])
    if top["leaf"] != leaf_data(entry, seq).decode("ascii"):
        raise _bad("its leaf is not that of its entry and seq")
    if _number(top["index"], "index", least=0) != seq - 1:
        raise _bad("its index is not one less than its seq")
    if _number(top["size"], "size") != head.size:
        raise _bad("its size is not the head's")
    path = top["path"]
    if not isinstance(path, list) or len(path) > merkle.PATH_MAX:
        raise _bad(f"its path is no list of at most {merkle.PATH_MAX} hashes")
    return Proof(seq, entry, tuple(_hex(each, _HASH, "path") for each in path), head)


def _bad(what: str) -> Invalid:
    return Invalid("bad-proof", f"This is not a proof: {what}.", "Make one with: fleet audit prove")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _members(value: Any, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise _bad(f"its {what} has other members than {', '.join(names)}")
    return value


def _number(value: Any, what: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= merkle.SIZE_MAX:
        raise _bad(f"its {what} is not a number from {least} on")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _bad(f"its {what} is no text")
    return value


def _hex(value: Any, form: re.Pattern[str], what: str) -> bytes:
    if not form.fullmatch(_text(value, what)):
        raise _bad(f"its {what} is not in hex digits of the right number")
    return bytes.fromhex(value)


def _moment(value: Any, form: re.Pattern[str], what: str) -> datetime:
    if not form.fullmatch(_text(value, what)):
        raise _bad(f"its {what} is not in the form 2026-03-01T12:00:00, a fraction, Z")
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise _bad(f"its {what} is not a time") from None
    if at < EPOCH:
        raise _bad(f"its {what} lies before 1970")
    return at


def _entry(value: Any) -> AuditEntry:
    members = _members(value, "entry", ("at", *ENTRY_TEXTS, "detail"))
    detail = members["detail"]
    if not isinstance(detail, dict):
        raise _bad("its detail is no object")
    texts = {name: _text(members[name], name) for name in ENTRY_TEXTS}
    return AuditEntry(
        at=_moment(members["at"], _TO_THE_MICROSECOND, "entry's time"),
        detail={name: _text(each, f"detail {name[:40]!r}") for name, each in detail.items()},
        **texts,
    )


def _head(value: Any) -> TreeHead:
    members = _members(value, "head", ("size", "root", "at", "key_id", "signature"))
    return TreeHead(
        size=_number(members["size"], "head's size"),
        root=_hex(members["root"], _HASH, "root"),
        at=_moment(members["at"], _TO_THE_MILLISECOND, "head's time"),
        key_id=_hex(members["key_id"], _HASH, "key_id"),
        signature=_hex(members["signature"], _SIGNATURE, "signature"),
    )
