"""Backup creation, also of a home that is being served: one file, complete or absent.

taken = await save_home(home, registry, Path("fleet.backup"), encryption=Encryption(b"..."), act=act)
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fleet.backup.archive import PIECE, Manifest, Member, is_name, write_archive
from fleet.backup.envelope import COST, Sealing
from fleet.config.durable_files import must_be_absent, new_file
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.errors import Invalid
from fleet.domain.ports import Registry
from fleet.home.ca_store import locked
from fleet.home.layout import Home, fleet_fingerprint, place_of_registry, revocation_journal
from fleet.services.revocation_journal import catch_up
from fleet.storage.engines import CopyProgress, copy_to_file
from fleet.storage.journals.revocations import Mark
from fleet.storage.sqlite.snapshot import facts_of

REGISTRY = "registry.db"
LEFT_OUT = frozenset({"run", "archive"})
"""Folders of a home that a backup leaves out: sockets, and immutable files that can be copied by any means."""

SMALL_FILE_MAX = 256 << 20  # for the home's other files, read whole so that the bytes hashed are the bytes written


@dataclass(frozen=True, slots=True)
class Encryption:
    """Passphrase of a backup; `cost` is the log2 of scrypt's N."""

    passphrase: bytes = field(repr=False)
    cost: int = COST


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that has been written."""

    manifest: Manifest
    size: int
    left_out: tuple[str, ...]
    """Files of the home that a backup skips by their names: links, hidden files, editors' temporary files."""


def is_ours_to_save(name: str) -> bool:
    """Whether a backup includes the home's file `name` (relative, with slashes), besides the registry."""
    return not (
        name.partition("/")[0] in LEFT_OUT
        or name.startswith("registry.")  # SQLite's journal files, whose content the registry's copy includes
        or name == "state/audit-note.json"  # of the home it is in, and perhaps younger than the registry of the backup
        or name == "state/revocations.jsonl"  # a copy in the backup would always be outdated
    )


async def save_home(
    home: Home,
    registry: Registry,
    file: Path,
    *,
    encryption: Encryption | None,
    act: Act,
    progress: CopyProgress = lambda _table, _rows: None,
) -> Taken:
    """Write a backup of `home` to the new file `file`, 0600, durable, and audit it, as it contains every key.

    The registry, on either engine, is included as one SQLite file.

    Without `encryption` the file exposes the fleet's keys.

    Raises: FileExistsError; Invalid: `home-changed`, `file-too-large`, `registry-differs`; Unavailable; Refused
    (`registry-went-back`); OSError.
    """
    must_be_absent(file)  # before the registry is copied; the write itself checks again
    journal = revocation_journal(home)
    await catch_up(registry, journal)
    detail = {"file": file.name, "sealed": "no" if encryption is None else "yes"}
    await registry.commit(Change(AuditEntry(act.now, act.actor, "home.backup", "home", "ok", detail=detail)))
    mark = journal.mark(newest=await registry.last_event())
    home.run.mkdir(mode=0o700, exist_ok=True)
    # In the home, which is as protected as its files; the backup's disk may not be.
    with tempfile.TemporaryDirectory(prefix="backup.", dir=home.run) as folder:
        copy = Path(folder) / REGISTRY
        await copy_to_file(place_of_registry(home), copy, progress)
        taken = await asyncio.to_thread(take_backup, home, copy, file, mark, encryption, act.now)
    await catch_up(registry, journal)
    # A journal copied earlier is detected as incomplete for this backup.
    journal.record_examined(taken.manifest.event_seq)
    return taken


def take_backup(home: Home, copy: Path, file: Path, mark: Mark, encryption: Encryption | None, now: datetime) -> Taken:
    """Write a backup of `home`, with the registry's copy `copy`, to the new file `file`, 0600, durable.

    `mark` names the lineage of the registry's event numbers. Blocking: run it in a thread.

    Raises: FileExistsError; Invalid (`home-changed`); OSError.
    """
    with locked(home.ca, shared=True):  # a consistent pair of key and certificate
        files, left_out = _files(home)
    manifest = _manifest(home, copy, files, mark, now)
    with new_file(file, secret=True) as out:
        contents = (_pieces(copy), *((data,) for _, data in files))
        if encryption is None:
            write_archive(out, manifest, contents)
        else:
            sealing = Sealing(out, encryption.passphrase, cost=encryption.cost)
            write_archive(sealing, manifest, contents)
            sealing.finish()
        size = out.tell()
    return Taken(manifest, size, left_out)


def _files(home: Home) -> tuple[list[tuple[str, bytes]], tuple[str, ...]]:
    """(name, bytes) of every file of the home except the registry's, and the names skipped."""
    found: list[tuple[str, bytes]] = []
    left_out: list[str] = []
    for top, folders, names in os.walk(home.path):
        if Path(top) == home.path:
            folders[:] = [folder for folder in folders if folder not in LEFT_OUT]
        folders.sort()
        for name in sorted(names):
            path = Path(top, name)
            relative = path.relative_to(home.path).as_posix()
            if not is_ours_to_save(relative):
                continue
            if path.is_symlink() or not path.is_file() or not is_name(relative):
                left_out.append(relative)
                continue
            if path.stat().st_size > SMALL_FILE_MAX:
                raise Invalid("file-too-large", f"{path} is larger than {SMALL_FILE_MAX >> 20} MiB.", "Move it away.")
            found.append((relative, path.read_bytes()))
    return found, tuple(left_out)


def _manifest(home: Home, copy: Path, files: list[tuple[str, bytes]], mark: Mark, now: datetime) -> Manifest:
    facts = facts_of(copy)
    with copy.open("rb") as opened:
        registry = Member(REGISTRY, copy.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest())
    others = (Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files)
    return Manifest(
        taken_at=now,
        fleet=fleet_fingerprint(home),
        lineage=mark.lineage,
        event_seq=facts.event_seq,
        audit_rows=facts.audit_rows,
        audit_root=facts.audit_root.hex(),
        members=(registry, *others),
    )


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
