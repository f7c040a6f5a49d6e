"""A folder that holds one issuing CA: the key that signs, and the CAs that signed before it. Changed whole.

    FOLDER/issuing.pem, issuing.key      signs
    FOLDER/root.pem, root.key            the root above it; a tenant without has the fleet's
    FOLDER/former/FINGERPRINT.pem, .key  signed before a rollover, and signs no more; believed until forgotten
    FOLDER/roots/N-root.pem, .key        the Nth root, before it was rolled over; beside it N-new-with-old.pem and
                                         N-old-with-new.pem, which lead from one to the other (RFC 7030, 4.1.3)
    FOLDER/issuing.next/                 a rollover that has been decided; whoever finds it finishes it

A rollover is decided by one rename. From there every step can be done again: a process that is killed leaves what the
next reader puts in order.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import Certified, NewRoot
from fleet.ca.keys import write_key
from fleet.domain.errors import Invalid, NotFound, Unavailable
from fleet.home.layout import certificate_in, sync, sync_tree

NEXT, FORMER, ROOTS = "issuing.next", "former", "roots"
OLD, NEW_WITH_OLD, OLD_WITH_NEW = "root", "new-with-old", "old-with-new"
CERTIFICATE, KEY = "issuing.pem", "issuing.key"
FORMER_MAX = 8  # each is one more CA that every door believes


@dataclass(frozen=True, slots=True)
class Authority:
    """One tenant's CAs as they stand; `tenant` is "" for the fleet's own."""

    tenant: str
    root: x509.Certificate
    issuing: x509.Certificate
    former: tuple[x509.Certificate, ...]
    """Issuing CAs that sign no more, whose certificates may still be in use."""
    key_file: Path
    former_roots: tuple[x509.Certificate, ...] = ()
    """Newest first, as are those below."""
    new_with_old: tuple[x509.Certificate, ...] = ()
    """Lead who trusts a former root to what its successor signs: part of what a server shows."""
    old_with_new: tuple[x509.Certificate, ...] = ()
    """Lead who trusts a root to what the one before it signed."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What cacerts hands out."""
        return (self.root, *self.issuers, *self.new_with_old, *self.old_with_new, *self.former_roots)

    @property
    def issuers(self) -> tuple[x509.Certificate, ...]:
        return (self.issuing, *self.former)


@contextmanager
def locked(folder: Path, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Alone with what is in `folder`, or, when `shared`, sure that nobody changes it.

    Raises: Unavailable (`ca-busy`): somebody else is, and `wait` is false.
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
    """What is in `folder`; below the root of `fleets` when it has none of its own. `top` is the folder that is locked
    for a change.

    A rollover that was cut off is finished first.

    Raises: Unavailable (`ca-busy`): one is under way, and `wait` is false. OSError, ValueError: something is missing,
    or cannot be read.
    """
    if (folder / NEXT).exists():
        with locked(top, wait=wait):
            finish_rollover(folder)
    former = sorted(map(certificate_in, (folder / FORMER).glob("*.pem")), key=lambda each: each.not_valid_before_utc)
    above = root_in(folder) if fleets is None or (folder / "root.pem").exists() else fleets
    return replace(
        above,
        tenant=tenant,
        issuing=certificate_in(folder / CERTIFICATE),
        former=tuple(reversed(former)),
        key_file=folder / KEY,
    )


def root_in(folder: Path) -> Authority:
    """The root in `folder` with those before it, and nothing below it yet."""

    def kept(name: str) -> tuple[x509.Certificate, ...]:
        files = sorted((folder / ROOTS).glob(f"*-{name}.pem"), key=lambda file: -int(file.name.partition("-")[0]))
        return tuple(map(certificate_in, files))

    root = certificate_in(folder / "root.pem")
    return Authority("", root, root, (), folder / KEY, kept(OLD), kept(NEW_WITH_OLD), kept(OLD_WITH_NEW))


def roll_over(folder: Path, new: Certified, root: NewRoot | None = None) -> None:
    """`new` signs from now on, below the new `root` when there is one. What signed before is kept, key and all, and
    signs no more.

    The folder is locked by who calls.

    Raises: Invalid (`too-many-former`); OSError.
    """
    finish_rollover(folder)
    if len(list((folder / FORMER).glob("*.pem"))) >= FORMER_MAX:
        what = f"{FORMER_MAX} former issuing CAs are still believed; one more would make it too many."
        raise Invalid("too-many-former", what, "Let one go: fleet ca forget FINGERPRINT")
    for left in folder.glob(".issuing.*"):  # of one that was cut off before it was decided, or after it was done
        _remove(left)
    building = folder / f".{NEXT}.{secrets.token_hex(6)}"
    building.mkdir(mode=0o700)
    certificate, key = new
    (building / CERTIFICATE).write_bytes(certificate.public_bytes(Encoding.PEM))
    write_key(building / KEY, key)
    for name in (CERTIFICATE, KEY):
        _copy(folder / name, building / f"former.{name}")
    if root is not None:
        _write_root(folder, building, root)
    sync_tree(building)
    building.rename(folder / NEXT)
    sync(folder)
    finish_rollover(folder)


def _write_root(folder: Path, building: Path, root: NewRoot) -> None:
    number = len(list((folder / ROOTS).glob(f"*-{OLD}.pem"))) + 1
    certificate, key = root.certified
    (building / "root.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    write_key(building / "root.key", key)
    roots = building / ROOTS
    roots.mkdir(mode=0o700)
    for suffix in (".pem", ".key"):
        _copy(folder / f"root{suffix}", roots / f"{number}-{OLD}{suffix}")
    for name, link in ((NEW_WITH_OLD, root.new_with_old), (OLD_WITH_NEW, root.old_with_new)):
        (roots / f"{number}-{name}.pem").write_bytes(link.public_bytes(Encoding.PEM))


def finish_rollover(folder: Path) -> None:
    """Do what a rollover that has been decided left to do; nothing when there is none. The folder is locked by who
    calls.
    """
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
    for file in ("root.key", "root.pem", KEY, CERTIFICATE):
        if (decided / file).exists():
            _copy(decided / file, folder / file)
    sync(folder)
    done = folder / f".issuing.done.{secrets.token_hex(6)}"
    decided.rename(done)
    sync(folder)
    _remove(done)


def forget(folder: Path, wanted: str) -> x509.Certificate:
    """Believe the former CA of this fingerprint no more, and remove its key. The folder is locked by who calls.

    Raises: NotFound (`no-such-ca`).
    """
    for file in (folder / FORMER).glob("*.pem"):
        if file.stem == wanted:
            certificate = certificate_in(file)
            file.unlink()  # first: without it the key is nobody's
            file.with_suffix(".key").unlink(missing_ok=True)
            sync(file.parent)
            os.utime(folder)
            return certificate
    raise NotFound("no-such-ca", f"There is no former CA {wanted[:80]!r} in {folder}.", "See: fleet ca show")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _copy(source: Path, target: Path) -> None:
    """The bytes of `source` as the file `target`, 0600, put there in one step."""
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
