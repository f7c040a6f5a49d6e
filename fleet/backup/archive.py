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
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Struct

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

Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Member(Struct, frozen=True):
    name: str
    """Relative to the home, with slashes."""
    size: Annotated[int, msgspec.Meta(ge=0, le=MEMBER_SIZE_MAX)]
    sha256: Sha256


class Manifest(Struct, frozen=True):
    """Manifest: the fleet, the registry's position and the members."""

    taken_at: Annotated[datetime, msgspec.Meta(tz=True)]
    fleet: Sha256
    """Of the root certificate."""
    lineage: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    """The registry's lineage: the history of event numbers to which `event_seq` belongs."""
    event_seq: Count
    """Sequence number of the newest event."""
    audit_rows: Count
    audit_root: Sha256
    """Root of the audit's tree over all its rows."""
    members: Annotated[tuple[Member, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


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
        raise Invalid("backup-damaged", "The backup is damaged: data follows its end.")
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
        audit = {"audit_rows": document["audit"]["rows"], "audit_root": document["audit"]["root"]}
        manifest = msgspec.convert({**document, **audit}, Manifest)
        names = [member.name for member in manifest.members]
        if len(set(names)) != len(names) or not all(map(is_name, names)):
            raise ValueError("no name for a member, or one twice")
    except (ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError) as error:
        raise Invalid("backup-damaged", "The backup is damaged: its manifest cannot be read.") from error
    return manifest
