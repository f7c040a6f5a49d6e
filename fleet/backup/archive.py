"""Backup format: a tar archive whose first member is a manifest of all others.

Any `tar` can list and extract a backup written with `--plain`. Our reader is stricter than `tar`: regular files only,
with plain relative names, in the manifest's order, each of the size and SHA-256 listed, and nothing else.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fleet.backup.envelope import Sink, Source
from fleet.domain.errors import Invalid

MANIFEST = "manifest.json"
FORMAT = 1
MANIFEST_SIZE_MAX = 1 << 20
MEMBERS_MAX = 4096
MEMBER_SIZE_MAX = 1 << 38  # 256 GiB: larger than any registry in one file
NAME_MAX = 99  # the limit of a tar header without extensions
PIECE = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]*(/[A-Za-z0-9_][A-Za-z0-9._@+=-]*){0,4}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    """Relative to the home, with slashes."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Manifest: the fleet, the registry's position and the members."""

    taken_at: datetime
    fleet: str
    """SHA-256 of the root certificate, in hex."""
    lineage: str
    """The registry's lineage: the history of event numbers to which `event_seq` belongs."""
    event_seq: int
    """Sequence number of the newest event."""
    audit_rows: int
    audit_root: str
    """Root of the audit's tree over all its rows, in hex."""
    members: tuple[Member, ...]


def is_name(text: str) -> bool:
    """Whether `text` is a valid member name: relative, not hidden, inside the home."""
    return len(text) <= NAME_MAX and _NAME.fullmatch(text) is not None and text != MANIFEST


def write_archive(out: Sink, manifest: Manifest, contents: Iterable[Iterable[bytes]]) -> None:
    """Write the manifest, then the members in its order, with their bytes from `contents`.

    Raises: Invalid (`home-changed`): a member no longer matches the manifest.
    """
    data = manifest_bytes(manifest)
    _write_member(out, Member(MANIFEST, len(data), hashlib.sha256(data).hexdigest()), (data,), manifest)
    for member, pieces in zip(manifest.members, contents, strict=True):
        _write_member(out, member, pieces, manifest)
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def _write_member(out: Sink, member: Member, pieces: Iterable[bytes], manifest: Manifest) -> None:
    info = tarfile.TarInfo(member.name)
    info.size, info.mode, info.mtime = member.size, 0o600, int(manifest.taken_at.timestamp())
    out.write(info.tobuf(tarfile.GNU_FORMAT))
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        out.write(piece)
    if size != member.size or digest.hexdigest() != member.sha256:
        raise Invalid("home-changed", f"{member.name} changed while it was read.", "Run the command again.")
    out.write(bytes(-size % tarfile.BLOCKSIZE))


Place = Callable[[Member], AbstractContextManager[Sink]]
"""Destination of a member's bytes."""


def read_archive(source: Source, place: Place) -> Manifest:
    """Read all of `source`, verifying each member's bytes as they are written to the sink that `place` returns for it.

    Raises: Invalid: `not-a-backup`, `backup-newer`, `backup-damaged`. Do not use what a sink received before this
    returns.
    """
    first = _header(source)
    if first is None or first.name != MANIFEST or first.size > MANIFEST_SIZE_MAX:
        raise Invalid("not-a-backup", "It is not a backup of this program, or its beginning is damaged.")
    manifest = parse_manifest(b"".join(_data(source, first.size)))
    for member in manifest.members:
        found = _header(source)
        if found is None or (found.name, found.size) != (member.name, member.size):
            raise Invalid("backup-damaged", f"The backup is damaged: {member.name} should come next in it.")
        digest = hashlib.sha256()
        with place(member) as sink:
            for piece in _data(source, member.size):
                digest.update(piece)
                sink.write(piece)
        if digest.hexdigest() != member.sha256:
            raise Invalid("backup-damaged", f"The backup is damaged: {member.name} is not what was saved.")
    if _header(source) is not None or any(_exactly(source, tarfile.BLOCKSIZE)) or source.read(1):
        raise Invalid("backup-damaged", "The backup is damaged: something stands behind its end.")
    return manifest


def _header(source: Source) -> tarfile.TarInfo | None:
    """The next member's header; None at the end-of-archive marker."""
    block = _exactly(source, tarfile.BLOCKSIZE)
    if not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        if info.type == tarfile.REGTYPE and info.tobuf(tarfile.GNU_FORMAT) != block:
            raise ValueError("written otherwise than we write it")
    except (tarfile.HeaderError, ValueError) as error:
        raise Invalid("backup-damaged", "The backup is damaged: no file begins where one should.") from error
    if info.type != tarfile.REGTYPE or not 0 <= info.size <= MEMBER_SIZE_MAX or len(info.name) > NAME_MAX:
        raise Invalid("backup-damaged", f"The backup holds {info.name[:80]!r}, which is no regular file.")
    return info


def _data(source: Source, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = _exactly(source, min(left, PIECE))
        left -= len(piece)
        yield piece
    if any(_exactly(source, -size % tarfile.BLOCKSIZE)):
        raise Invalid("backup-damaged", "The backup is damaged between two of its files.")


def _exactly(source: Source, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise Invalid("backup-damaged", "The backup is cut off.", "Copy it again from where it was made.")
    return data


def manifest_bytes(manifest: Manifest) -> bytes:
    document = {
        "format": FORMAT,
        "taken_at": manifest.taken_at.astimezone(UTC).isoformat(),
        "fleet": manifest.fleet,
        "lineage": manifest.lineage,
        "event_seq": manifest.event_seq,
        "audit": {"rows": manifest.audit_rows, "root": manifest.audit_root},
        "members": [{"name": m.name, "size": m.size, "sha256": m.sha256} for m in manifest.members],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Raises: Invalid: `backup-damaged`; `backup-newer`: a later version of this program wrote it."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            message = f"The backup has format {str(document['format'])[:20]}; this program reads format {FORMAT}."
            raise Invalid("backup-newer", message, "Restore it with the version that made it, or a newer one.")
        return _manifest_of(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid("backup-damaged", "The backup is damaged: its manifest cannot be read.") from error


def _manifest_of(document: dict[str, Any]) -> Manifest:
    if not isinstance(document["members"], list):
        raise ValueError("members are a list")
    members = tuple(_member_of(each) for each in document["members"])
    names = [member.name for member in members]
    if len(members) > MEMBERS_MAX or len(set(names)) != len(names):
        raise ValueError("too many members, or one twice")
    manifest = Manifest(
        taken_at=datetime.fromisoformat(document["taken_at"]).astimezone(UTC),
        fleet=_hex(document["fleet"]),
        lineage=str(document["lineage"]),
        event_seq=_count(document["event_seq"]),
        audit_rows=_count(document["audit"]["rows"]),
        audit_root=_hex(document["audit"]["root"]),
        members=members,
    )
    if not re.fullmatch(r"[0-9a-f]{32}", manifest.lineage):
        raise ValueError("no lineage")
    return manifest


def _member_of(each: dict[str, Any]) -> Member:
    member = Member(each["name"], _count(each["size"]), _hex(each["sha256"]))
    if not is_name(member.name) or member.size > MEMBER_SIZE_MAX:
        raise ValueError("no name for a member, or too large")
    return member


def _hex(value: object) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise ValueError("no SHA-256")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("no count")
    return value
