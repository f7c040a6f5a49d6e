"""Verification and restore of a backup. A home appears only after the whole backup is verified, and with every
revocation since the backup applied.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from fleet.backup.archive import MANIFEST, Manifest, Member, read_archive
from fleet.backup.create import REGISTRY, is_ours_to_save
from fleet.backup.database_setting import name_database
from fleet.backup.envelope import HEADER, Opening, Sink, Source, is_sealed
from fleet.config.addresses import Database
from fleet.config.database_url import DatabaseUrl
from fleet.config.durable_files import sync
from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event
from fleet.domain.credential import USABLE, CredentialKind
from fleet.domain.errors import Invalid, Refused
from fleet.domain.ports import Registry
from fleet.home.layout import (
    DATABASE_VARIABLE,
    Home,
    fleet_fingerprint,
    must_be_free,
    new_home,
    open_home,
    place_for,
    revocation_journal,
    settings_of,
    sync_tree,
)
from fleet.services.restore_revocations import Reapplied, list_again, reapply, suspend_all
from fleet.storage.engines import CopyProgress, load_file, must_be_loadable, open_engine
from fleet.storage.journals.revocation_reading import events_behind
from fleet.storage.journals.revocations import Mark, new_lineage
from fleet.storage.journals.revoked_certificates import RevokedCertificates
from fleet.storage.sqlite.snapshot import check_copy

IN_THE_HOME = Database()


@dataclass(frozen=True, slots=True)
class RestoreSource:
    """What a home is restored from."""

    file: Path
    """The backup."""
    revocations: Path | None
    """The revocation journal of the lost home, whose revocations after the backup are applied. None: it is lost, and
    every device that could connect is suspended.
    """
    passphrase: bytes | None = field(default=None, repr=False)


class Restored(Struct, frozen=True):
    """A restored home."""

    manifest: Manifest
    reapplied: Reapplied
    restore: str
    """Identifier shared by the audit rows of the restore."""
    stations: tuple[str, ...]
    """Stations with a usable certificate: without a revocation journal each needs a review."""
    operators: tuple[str, ...]
    """Operators with a usable certificate, likewise."""


def needs_passphrase(file: Path) -> bool:
    """Whether the backup is encrypted. Raises: OSError."""
    with file.open("rb") as opened:
        return is_sealed(opened.read(HEADER))


def check_backup(file: Path, passphrase: bytes | None) -> Manifest:
    """Read all of the backup `file` and verify every member against its manifest and the registry's consistency.

    Raises: Invalid: `not-a-backup`, `backup-damaged`, `backup-newer`, `not-a-registry`, `audit-…`. Refused
    (`wrong-passphrase`, `backup-not-sealed`). OSError.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-check.") as folder:
        home = Home(Path(folder))
        looked_into = (home.registry, home.settings_file, home.root_certificate)
        return _unpacked(file, passphrase, home, keep=lambda target: target in looked_into)


def _unpacked(file: Path, passphrase: bytes | None, home: Home, keep: Callable[[Path], bool]) -> Manifest:
    """Extract the members selected by `keep` into the empty folder of `home`, and verify them."""

    @contextmanager
    def place(member: Member) -> Iterator[Sink]:
        if member.name != REGISTRY and not is_ours_to_save(member.name):
            raise Invalid("backup-damaged", f"The backup holds {member.name}, which no backup does.")
        target = home.path.joinpath(*member.name.split("/"))  # archive.is_name ensures that it stays inside
        if not keep(target):  # verification extracts no private keys
            with Path(os.devnull).open("wb") as nowhere:
                yield nowhere
            return
        for folder in reversed(target.relative_to(home.path).parents[:-1]):
            (home.path / folder).mkdir(mode=0o700, exist_ok=True)
        with target.open("xb") as sink:
            target.chmod(0o600)
            yield sink

    with file.open("rb") as opened:
        manifest = read_archive(_source(opened, passphrase), place)
    _check_home(home, manifest)
    return manifest


def _source(opened: BinaryIO, passphrase: bytes | None) -> Source:
    beginning = opened.read(HEADER)
    sealed = is_sealed(beginning)
    opened.seek(0)
    if not sealed and not beginning.startswith(MANIFEST.encode()):
        raise Invalid("not-a-backup", "It is not a backup of this program, or its beginning is damaged.")
    if not sealed and passphrase is not None:
        # Write access to the backups' folder suffices to forge a plain backup, but not an encrypted one.
        raise Refused(
            "backup-not-sealed",
            "The backup is not encrypted, and a passphrase was given for it: it is not the file that was made with it.",
            "Find out who put it there. One that was made with --plain is taken without a passphrase.",
        )
    if not sealed:
        return opened
    if passphrase is None:
        raise Invalid(
            "passphrase-needed", "The backup is encrypted with a passphrase.", "Give it with --password-file FILE."
        )
    return Opening(opened, passphrase)


def _check_home(home: Home, manifest: Manifest) -> None:
    try:
        found = fleet_fingerprint(home)
        settings_of(home)
    except (OSError, ValueError, Invalid) as error:
        raise Invalid("backup-damaged", f"What the backup holds is no home: {error}.") from error
    if not home.registry.is_file() or found != manifest.fleet:
        raise Invalid("backup-damaged", "The backup's manifest is of another fleet than its files.")
    facts = check_copy(home.registry)
    said = (manifest.event_seq, manifest.audit_rows, manifest.audit_root)
    if (facts.event_seq, facts.audit_rows, facts.audit_root.hex()) != said:
        raise Invalid("backup-damaged", "The backup's registry is not the one that its manifest tells of.")


async def restore_backup(
    source: RestoreSource,
    path: Path,
    *,
    act: Act,
    database: Database = IN_THE_HOME,
    progress: CopyProgress = lambda _table, _rows: None,
) -> Restored:
    """Restore the backup `source` to the home `path`, which must be absent or empty. The registry goes to `database`,
    whichever engine it was saved from: a file in the home, or an empty PostgreSQL database.

    Raises: as `check_backup`; Conflict: `home-exists`, `registry-exists`; Refused: `revocations-incomplete`,
    `revocations-of-another`, `database-in-environment`; what `place_for` raises; Unavailable.
    """
    must_be_free(path)
    server = await _server(Home(path), database)
    with new_home(path) as building:
        manifest = await asyncio.to_thread(_unpacked, source.file, source.passphrase, building, lambda _: True)
        log, events = source.revocations, None
        if log is not None:
            events = events_behind(log, manifest.fleet, manifest.lineage, manifest.event_seq)
        building.run.mkdir(mode=0o700)
        open_home(building.path)
        restored = await _brought_up(building, manifest, events, log, act)
        name_database(building.settings_file, database)
        await asyncio.to_thread(sync_tree, building.path)
        must_be_free(path)
        if server is not None:
            # Last, and in one transaction: if interrupted, the database stays empty.
            await load_file(building.registry, server, progress)
            for left in building.path.glob("registry.*"):
                left.unlink()
            sync(building.path)
    return restored


async def _server(home: Home, database: Database) -> DatabaseUrl | None:
    """The database for the registry, if it is not to be in the home."""
    if os.environ.get(DATABASE_VARIABLE):
        raise Refused(
            "database-in-environment",
            f"{DATABASE_VARIABLE} is set, and the new home would be served with that database, not with its own.",
            "Unset it, and say with --database or --database-file where the registry is to go.",
        )
    place = place_for(home, database)
    if isinstance(place, Path):
        return None
    await must_be_loadable(place)  # check now rather than after an hour of reading
    return place


async def _brought_up(
    home: Home, manifest: Manifest, events: tuple[Event, ...] | None, log: Path | None, act: Act
) -> Restored:
    restore = secrets.token_hex(6)
    registry = await open_engine(home.registry, create=False)
    try:
        if events is not None and log is not None:
            listed = await asyncio.to_thread(RevokedCertificates.beside(log).read, act.now)
            done = await reapply(registry, events, act=act, listed=listed)
            await list_again(registry, listed)
        else:
            done = await suspend_all(registry, restore, act=act)
        detail = {
            "backup_of": manifest.taken_at.isoformat(),
            "event": str(manifest.event_seq),
            "audit_rows": str(manifest.audit_rows),
            "revocations": "none" if events is None else str(len(events)),
            **{name: str(getattr(done, name)) for name in ("devices", "certificates", "tokens", "requests")},
            "bulk": restore,
        }
        entry = AuditEntry(act.now, act.actor, "registry.restore", "registry", "ok", detail=detail)
        await registry.commit(Change(entry))
        stations = await _in_service(registry, CredentialKind.STATION, [s.name for s in await registry.stations()])
        operators = await _in_service(registry, CredentialKind.OPERATOR, [o.name for o in await registry.operators()])
        newest = await registry.last_event()
    finally:
        await registry.close()
    if log is not None:  # lets an older backup be restored later as well
        home.revocations.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(log, home.revocations)
        home.revocations.chmod(0o600)
        RevokedCertificates.beside(log).copy_to(home.revoked_certificates)
    revocation_journal(home).reset(Mark(new_lineage(), newest))
    return Restored(manifest, done, restore, stations, operators)


async def _in_service(registry: Registry, kind: CredentialKind, names: Sequence[str]) -> tuple[str, ...]:
    """The `names` that have a usable certificate of `kind`."""
    held = [(name, await registry.credentials(name)) for name in names]
    return tuple(name for name, all_of_it in held if any(c.kind is kind and c.state in USABLE for c in all_of_it))
