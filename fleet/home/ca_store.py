"""CA store: a folder with one issuing CA, its key, and its predecessors, changed atomically.

    FOLDER/issuing.pem, issuing.key      the current issuing CA; after it, the CAs between it and its root, if any
    FOLDER/root.pem, root.key            its root CA; a tenant without one uses the fleet's
    FOLDER/former/FINGERPRINT.pem, .key  issuing CAs before a rollover: they sign no more, but are trusted until removed
    FOLDER/roots/N-root.pem, .key        the Nth root before its rollover; beside it N-new-with-old.pem and
                                         N-old-with-new.pem, which link the two (RFC 7030, 4.1.3)
    FOLDER/roots/N-issuing.pem           the current issuing CA, signed by the Nth root
    FOLDER/trust-update.json             former roots that were removed, signed by the issuing CA, for devices
    FOLDER/issuing.next/                 a committed rollover; the next reader completes it

A rollover is committed by one rename. Each step after it is idempotent: if the process is killed, the next reader
completes the rollover.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct
from msgspec.structs import replace

from fleet.ca.authority import Certified, ImportedRoot, NewRoot
from fleet.ca.keys import write_key
from fleet.config.durable_files import sync, write_file
from fleet.config.small_files import read_small
from fleet.domain.errors import Invalid, Unavailable
from fleet.home.layout import certificate_in, certificates_in, sync_tree
from fleet.wire.trust_update import UPDATE_SIZE_MAX

NEXT, FORMER, ROOTS = "issuing.next", "former", "roots"
OLD, NEW_WITH_OLD, OLD_WITH_NEW, ISSUING = "root", "new-with-old", "old-with-new", "issuing"
TRUST_UPDATE = "trust-update.json"
CERTIFICATE, KEY, ROOT, ROOT_KEY = "issuing.pem", "issuing.key", "root.pem", "root.key"
FORMER_MAX = 8  # each is one more trust anchor of every listener


class FormerRoot(Struct, frozen=True):
    """A root before its rollover, with the certificates that link it to its successor and to the issuing CA."""

    number: int
    certificate: x509.Certificate
    key_file: Path
    """May be absent."""
    new_with_old: x509.Certificate | None
    """Its successor, signed by it: for clients that trust it. None if its key was away then."""
    old_with_new: x509.Certificate | None
    """Signed by its successor: for clients that trust that one, and chains from what this root signed. None if that
    one's key is elsewhere."""
    issuing: x509.Certificate | None = None
    """The current issuing CA, signed by it; None if it has been made while this root's key was away."""

    @property
    def links(self) -> tuple[x509.Certificate, ...]:
        return tuple(each for each in (self.issuing, self.new_with_old, self.old_with_new) if each is not None)


class Authority(Struct, frozen=True):
    """One tenant's current CAs; `tenant` is "" for the fleet's own."""

    tenant: str
    root: x509.Certificate
    issuing: x509.Certificate
    former: tuple[x509.Certificate, ...]
    """Former issuing CAs, whose certificates may still be in use."""
    key_file: Path
    former_roots: tuple[FormerRoot, ...] = ()
    """Newest first."""
    above: tuple[x509.Certificate, ...] = ()
    """The CAs between the issuing CA and its root, the root's own last."""
    above_former: tuple[x509.Certificate, ...] = ()
    """Likewise of the former issuing CAs, in no order."""
    trust_update: bytes = b""
    """The signed statement of which former roots are retired; b"" if none is."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates of the EST cacerts response."""
        links = (link for each in self.former_roots for link in each.links)
        roots = (each.certificate for each in self.former_roots)
        return tuple(dict.fromkeys((self.root, *self.issuers, *self.above, *self.above_former, *links, *roots)))

    @property
    def issuers(self) -> tuple[x509.Certificate, ...]:
        return (self.issuing, *self.former)

    @property
    def folder(self) -> Path:
        return self.key_file.parent

    @property
    def root_key_file(self) -> Path:
        """Of its own root; may be absent."""
        return self.folder / ROOT_KEY

    @property
    def has_own_root(self) -> bool:
        """A tenant without one is below the fleet's."""
        return (self.folder / ROOT).exists()

    def key_file_of(self, former: x509.Certificate) -> Path:
        """Where the key of a former issuing CA is; may be absent."""
        return self.folder / FORMER / f"{fingerprint(former)}.key"


@contextmanager
def locked(folder: Path, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, or a `shared` one that excludes changes.

    Raises: Unavailable (`ca-busy`): it is locked, and `wait` is false.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Unavailable("ca-busy", f"The CAs in {folder} are being changed just now.", "Try again.") from None
        yield
    finally:
        os.close(handle)


def read_authority(folder: Path, tenant: str, fleets: Authority | None, top: Path, *, wait: bool) -> Authority:
    """The CAs in `folder`, under the root of `fleets` where it has none of its own. `top` is the folder to lock for a
    change.

    An interrupted rollover is completed first.

    Raises: Unavailable (`ca-busy`): a change is in progress, and `wait` is false. OSError, Invalid
    (`bad-certificate-file`): a file is missing or unreadable.
    """
    if (folder / NEXT).exists():
        with locked(top, wait=wait):
            finish_rollover(folder)
    chains = [certificates_in(file) for file in (folder / FORMER).glob("*.pem")]
    chains.sort(key=lambda chain: chain[0].not_valid_before_utc, reverse=True)
    above = root_in(folder) if fleets is None or (folder / ROOT).exists() else fleets
    issuing, *intermediates = certificates_in(folder / CERTIFICATE)
    return replace(
        above,
        tenant=tenant,
        issuing=issuing,
        above=tuple(intermediates),
        former=tuple(chain[0] for chain in chains),
        above_former=tuple(each for chain in chains for each in chain[1:]),
        key_file=folder / KEY,
        former_roots=tuple(replace(each, issuing=_cross_in(folder, each, issuing)) for each in above.former_roots),
    )


def cross_file(folder: Path, root: FormerRoot) -> Path:
    """Where the issuing CA of `folder` is kept as signed by `root`."""
    return folder / ROOTS / f"{root.number}-{ISSUING}.pem"


def _cross_in(folder: Path, root: FormerRoot, issuing: x509.Certificate) -> x509.Certificate | None:
    found = _certificate_if_any(cross_file(folder, root))
    # One of a former issuing CA is left behind by a rollover without the key of `root`.
    return found if found is not None and found.public_key() == issuing.public_key() else None


def _certificate_if_any(file: Path) -> x509.Certificate | None:
    return certificate_in(file) if file.exists() else None


def root_in(folder: Path) -> Authority:
    """The root in `folder` and its predecessors, without an issuing CA."""

    roots = folder / ROOTS
    numbers = (int(file.name.partition("-")[0]) for file in roots.glob(f"*-{OLD}.pem"))
    former = tuple(
        FormerRoot(
            number,
            certificate_in(roots / f"{number}-{OLD}.pem"),
            roots / f"{number}-{OLD}.key",
            _certificate_if_any(roots / f"{number}-{NEW_WITH_OLD}.pem"),
            _certificate_if_any(roots / f"{number}-{OLD_WITH_NEW}.pem"),
        )
        for number in sorted(numbers, reverse=True)
    )
    root = certificate_in(folder / ROOT)
    update = folder / TRUST_UPDATE
    signed = read_small(update, UPDATE_SIZE_MAX) if update.exists() else b""
    return Authority("", root, root, (), folder / KEY, former, trust_update=signed)


def roll_over(
    folder: Path,
    new: Certified,
    crosses: Mapping[int, x509.Certificate],
    root: NewRoot | ImportedRoot | None = None,
    above: Sequence[x509.Certificate] = (),
) -> None:
    """Make `new` the issuing CA, under the new `root` if given, with the CAs `above` between them. Its predecessor is
    kept with its key and signs no more.

    `crosses` are `new` as signed by former roots, by their numbers; with a new `root`, one is of the present one, by
    the number that it gets. The caller holds the folder's lock.

    Raises: Invalid (`too-many-former`); OSError.
    """
    finish_rollover(folder)
    if len(list((folder / FORMER).glob("*.pem"))) >= FORMER_MAX:
        what = f"{FORMER_MAX} former issuing CAs are still trusted, which is the maximum."
        raise Invalid("too-many-former", what, "Remove one: fleet ca forget FINGERPRINT")
    for left in folder.glob(".issuing.*"):  # left by a rollover interrupted before its commit or after its completion
        _remove(left)
    building = folder / f".{NEXT}.{secrets.token_hex(6)}"
    building.mkdir(mode=0o700)
    certificate, key = new
    (building / CERTIFICATE).write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *above)))
    write_key(building / KEY, key)
    for name in (CERTIFICATE, KEY):
        _copy(folder / name, building / f"former.{name}")
    if crosses or root is not None:
        (building / ROOTS).mkdir(mode=0o700)
    for number, cross in crosses.items():
        (building / ROOTS / f"{number}-{ISSUING}.pem").write_bytes(cross.public_bytes(Encoding.PEM))
    if root is not None:
        _write_root(folder, building, root)
    sync_tree(building)
    building.rename(folder / NEXT)
    sync(folder)
    finish_rollover(folder)


def _write_root(folder: Path, building: Path, root: NewRoot | ImportedRoot) -> None:
    certificate = root.certificate if isinstance(root, ImportedRoot) else root.certified[0]
    (building / ROOT).write_bytes(certificate.public_bytes(Encoding.PEM))
    if isinstance(root, NewRoot):
        write_key(building / ROOT_KEY, root.certified[1])
    if not (folder / ROOT).exists():
        return  # a tenant below the fleet's root, which gets one of its own
    number = next_number(root_in(folder).former_roots)
    roots = building / ROOTS
    for suffix in (".pem", ".key"):
        if (folder / f"root{suffix}").exists():
            _copy(folder / f"root{suffix}", roots / f"{number}-{OLD}{suffix}")
    for name, link in ((NEW_WITH_OLD, root.new_with_old), (OLD_WITH_NEW, root.old_with_new)):
        if link is not None:
            (roots / f"{number}-{name}.pem").write_bytes(link.public_bytes(Encoding.PEM))


def next_number(roots: Sequence[FormerRoot]) -> int:
    """Number of the present root, should it be rolled over."""
    return roots[0].number + 1 if roots else 1


def finish_rollover(folder: Path) -> None:
    """Complete a committed rollover, if there is one. The caller holds the folder's lock."""
    decided = folder / NEXT
    if not decided.exists():
        return
    former = folder / FORMER
    former.mkdir(mode=0o700, exist_ok=True)
    name = fingerprint(certificate_in(decided / f"former.{CERTIFICATE}"))
    for kept, source in ((f"{name}.key", KEY), (f"{name}.pem", CERTIFICATE)):
        _copy(decided / f"former.{source}", former / kept)
    sync(former)
    if (decided / ROOTS).exists():
        (folder / ROOTS).mkdir(mode=0o700, exist_ok=True)
        for kept_root in sorted((decided / ROOTS).iterdir()):
            _copy(kept_root, folder / ROOTS / kept_root.name)
        sync(folder / ROOTS)
    for file in (ROOT_KEY, ROOT, KEY, CERTIFICATE):
        if (decided / file).exists():
            _copy(decided / file, folder / file)
    if (decided / ROOT).exists() and not (decided / ROOT_KEY).exists():
        (folder / ROOT_KEY).unlink(missing_ok=True)  # that of the root before, which is kept beside it
    sync(folder)
    done = folder / f".issuing.done.{secrets.token_hex(6)}"
    decided.rename(done)
    sync(folder)
    _remove(done)


def replace_links(
    folder: Path, root: FormerRoot, new_with_old: x509.Certificate, old_with_new: x509.Certificate
) -> None:
    """Link `root` to another successor. The caller holds the folder's lock."""
    for name, link in ((NEW_WITH_OLD, new_with_old), (OLD_WITH_NEW, old_with_new)):
        file = folder / ROOTS / f"{root.number}-{name}.pem"
        write_file(file, link.public_bytes(Encoding.PEM), secret=False, force=True)


def forget(folder: Path, wanted: x509.Certificate) -> None:
    """Remove this former issuing CA or former root, its key and what links it. The caller holds the folder's lock."""
    name = fingerprint(wanted)
    files = [folder / FORMER / f"{name}.pem", folder / FORMER / f"{name}.key"]
    for root in root_in(folder).former_roots if (folder / ROOT).exists() else ():
        if root.certificate == wanted:
            files = sorted(
                (folder / ROOTS).glob(f"{root.number}-*"), key=lambda file: file.stem != f"{root.number}-{OLD}"
            )
    for file in files:  # the certificate first: without it the others are unused
        file.unlink(missing_ok=True)
        sync(file.parent)
    os.utime(folder)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _copy(source: Path, target: Path) -> None:
    """Copy `source` to `target`, mode 0600, atomically."""
    fresh = target.with_name(f".issuing.{secrets.token_hex(6)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
