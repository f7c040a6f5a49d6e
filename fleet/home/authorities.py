"""The CAs of a home: the fleet's own and each tenant's. Creation of a tenant's, rollover and removal of former ones.

A tenant is a folder with an issuing CA of its own, complete or absent.

ca/tenants/NAME/    as described in fleet/home/ca_store.py
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct
from msgspec.structs import replace

from fleet.ca.authority import Certified, create_issuing, create_root, cross_certify, link_roots, succeed_root
from fleet.ca.chain import has_signed
from fleet.ca.keys import load_key, write_key
from fleet.config.durable_files import sync, write_file
from fleet.domain.device import plain_name
from fleet.domain.errors import Conflict, Invalid, NotFound, Refused, no_such
from fleet.domain.labels import must_be_a_label
from fleet.home.ca_store import (
    CERTIFICATE,
    KEY,
    ROOT,
    ROOT_KEY,
    TRUST_UPDATE,
    Authority,
    cross_file,
    fingerprint,
    forget,
    locked,
    next_number,
    read_authority,
    replace_links,
    roll_over,
)
from fleet.home.layout import Home, keep_fleet_fingerprint, settings_of, sync_tree
from fleet.home.publication import publication_of_root
from fleet.wire.errors import WireError
from fleet.wire.trust_update import RETIRED_MAX, decode_trust_update, key_name, sign_trust_update

TENANTS_MAX = 200  # every CertificateRequest names each tenant's CA: 60 bytes of a handshake each


class Authorities(Struct, frozen=True):
    """Every current issuing CA of a home."""

    own: Authority
    tenants: Mapping[str, Authority]
    broken: Mapping[str, str]
    """Tenants whose CA cannot be read, and why: a folder that is still being copied, for instance."""

    @property
    def all(self) -> tuple[Authority, ...]:
        return (self.own, *self.tenants.values())

    def of(self, tenant: str) -> Authority | None:
        return self.tenants.get(tenant) if tenant else self.own


def read_authorities(home: Home, *, wait: bool = True) -> Authorities:
    """Raises: as `read_authority`, for the fleet's own CA."""
    own = read_authority(home.ca, "", None, home.ca, wait=wait)
    tenants: dict[str, Authority] = {}
    broken: dict[str, str] = {}
    for name in sorted(tenant_names(home)):
        try:
            tenants[name] = read_authority(home.tenants / name, name, own, home.ca, wait=wait)
        except (OSError, Invalid) as error:
            broken[name] = str(error)
    return Authorities(own, tenants, broken)


def tenant_names(home: Home) -> frozenset[str]:
    """Every tenant with a folder, complete or damaged."""
    try:
        with os.scandir(home.tenants) as found:
            return frozenset(each.name for each in found if each.is_dir() and _is_name(each.name))
    except FileNotFoundError:
        return frozenset()


def _is_name(text: str) -> bool:
    try:
        return bool(plain_name(text, "tenant"))
    except Invalid:
        return False


def must_be_new_tenant(home: Home, name: str) -> None:
    """Raises: Invalid (`bad-name`). Conflict (`tenant-exists`)."""
    must_be_a_label(plain_name(name, "tenant"), "tenant")
    if name in tenant_names(home):
        raise Conflict("tenant-exists", f"There is a tenant {name} already; nothing was changed.")


@contextmanager
def tenant_folder(home: Home, name: str) -> Iterator[tuple[Path, Authorities]]:
    """A folder, 0700, in which the new tenant `name` is made, and the CAs that are there. The tenant takes effect when
    the block ends without an exception.

    Raises: Invalid: `bad-name`, `too-many-tenants`. Conflict (`tenant-exists`). OSError.
    """
    read_authorities(home)  # completes an interrupted rollover, which needs the lock
    with locked(home.ca):
        home.tenants.mkdir(mode=0o700, exist_ok=True)
        for left in home.tenants.glob(".*"):
            shutil.rmtree(left)  # left by an interrupted creation
        known = read_authorities(home, wait=False)
        must_be_new_tenant(home, name)
        if len(known.tenants) >= TENANTS_MAX:
            raise Invalid("too-many-tenants", f"A fleet has at most {TENANTS_MAX} tenants.", "Make a fleet of its own.")
        building = home.tenants / f".{name}.{secrets.token_hex(6)}"
        building.mkdir(mode=0o700)
        try:
            yield building, known
            building.rename(home.tenants / name)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync(home.tenants)
        sync(home.ca)


@contextmanager
def new_tenant(home: Home, name: str, *, own_root: bool, now: datetime) -> Iterator[Authority]:
    """An issuing CA for the new tenant `name`, signed by the fleet's root or, with `own_root`, by a root of its own.

    It is durable when the block begins, and takes effect when the block ends without an exception.

    Raises: as `tenant_folder`. Invalid (`bad-key`). Conflict (`name-taken`). Refused (`root-key-away`). OSError.
    """
    settings = settings_of(home)
    fleet, publication = settings.name, publication_of_root(settings, name if own_root else "")
    with tenant_folder(home, name) as (building, known):
        root, root_key = known.own.root, None
        if own_root:
            root, root_key = create_root(f"{fleet} {name}", now)
            (building / ROOT).write_bytes(root.public_bytes(Encoding.PEM))
            write_key(building / ROOT_KEY, root_key)
        root_key = root_key or key_of_root(home.root_key)
        certified = create_issuing(f"{fleet} {name}", root, root_key, now, publication=publication)
        require_unique_ca_name(certified[0], known)
        write_issuing(building, certified)
        yield Authority(name, root, certified[0], (), home.tenants / name / KEY)


def write_issuing(building: Path, certified: Certified, above: Sequence[x509.Certificate] = ()) -> None:
    """Write an issuing CA with the CAs `above` it, its key, and all that is in `building`, durably."""
    chain = (certified[0], *above)
    (building / CERTIFICATE).write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    write_key(building / KEY, certified[1])
    sync_tree(building)


def require_unique_ca_name(issuing: x509.Certificate, known: Authorities) -> None:
    """Raises: Conflict (`name-taken`): another CA of the home has its name."""
    # RFC 5280, 4.1.2.6: a CA's name identifies one entity, so that an issuer found by name is unique.
    if any(issuing.subject in (c.subject, a.root.subject) for a in known.all for c in a.issuers):
        text = f"There is a CA called {issuing.subject.rfc4514_string()} already."
        raise Conflict("name-taken", text, "Choose another name.")


def found_tenant(home: Home, name: str) -> Authority:
    """Raises: NotFound (`no-such-tenant`). Invalid (`tenant-damaged`)."""
    found = read_authorities(home)
    if name in found.broken:
        raise Invalid("tenant-damaged", f"The CA of tenant {name} cannot be read: {found.broken[name]}.")
    if name not in found.tenants:
        raise no_such("tenant", name)
    return found.tenants[name]


def new_issuing_key(home: Home, tenant: str, now: datetime, *, root_too: bool = False) -> Authority:
    """Replace the issuing CA of `tenant` ("": the fleet's own) by a new one under the same root or, with `root_too`,
    under a root with a new key.

    Raises: NotFound (`no-such-tenant`). Invalid: `bad-name`, `bad-key`, `too-many-former`, `not-its-root`,
    `issuer-expired`. Refused (`root-key-away`). OSError.
    """
    old = authority_of(home, tenant)
    folder = old.folder
    root_key = key_of_root(old.root_key_file if old.has_own_root else home.root_key)
    settings = settings_of(home)
    name, publication = f"{settings.name} {tenant}".rstrip(), publication_of_root(settings, tenant * old.has_own_root)
    if root_too and not old.has_own_root:
        text = f"Tenant {tenant} has no root of its own: its issuing CA is signed by the fleet's."
        raise Invalid("not-its-root", text, "Roll over the fleet's: fleet ca rollover --root")
    with locked(home.ca):
        old = read_authority(folder, tenant, read_authorities(home, wait=False).own, home.ca, wait=False)
        new_root = succeed_root(old.root, root_key, now) if root_too else None
        root, key = new_root.certified if new_root is not None else (old.root, root_key)
        generation = next_generation(old)
        issuing = create_issuing(name, root, key, now, generation=generation, publication=publication)
        crosses = signed_by_former(issuing[0], old, now)
        if new_root is not None:
            crosses[next_number(old.former_roots)] = cross_certify(issuing[0], old.root, root_key, now)
        if new_root is not None and not tenant:
            keep_fleet_fingerprint(home)
        roll_over(folder, issuing, crosses, new_root)
    touch_watched_folders(home)
    return authority_of(home, tenant)


def complete_cross_certificates(home: Home, now: datetime) -> None:
    """Have the former roots whose keys are here sign the fleet's issuing CA, where they have not."""
    with locked(home.ca):
        own = read_authorities(home, wait=False).own
        lacking = replace(own, former_roots=tuple(each for each in own.former_roots if each.issuing is None))
        if not any(each.key_file.exists() for each in lacking.former_roots):
            return
        made = signed_by_former(own.issuing, lacking, now)
        for root in lacking.former_roots:
            if cross := made.get(root.number):
                write_file(cross_file(home.ca, root), cross.public_bytes(Encoding.PEM), secret=False, force=True)
    touch_watched_folders(home)


def signed_by_former(issuing: x509.Certificate, authority: Authority, now: datetime) -> dict[int, x509.Certificate]:
    """`issuing` as signed by each former root of `authority` that has not expired and whose key is here, by number."""
    return {
        root.number: cross_certify(issuing, root.certificate, load_key(root.key_file), now)
        for root in authority.former_roots
        if root.key_file.exists() and root.certificate.not_valid_after_utc > now
    }


def forget_former(home: Home, tenant: str, sha256: str, now: datetime) -> x509.Certificate:
    """Remove a former issuing CA or a former root, ending trust in it. The root before such a one is linked to the root
    after it.

    Raises: as `former_of`. Refused (`root-key-away`): the keys of those two are not here.
    """
    authority = authority_of(home, tenant)
    folder = authority.folder
    with locked(home.ca):
        gone = former_of(home, tenant, sha256)
        _link_around(folder, authority, gone, now)
        _retire(folder, authority, gone, now)
        forget(folder, gone)
    touch_watched_folders(home)
    return gone


def _retire(folder: Path, authority: Authority, gone: x509.Certificate, now: datetime) -> None:
    """Sign for devices that they shall no longer trust `gone`, if it is a root and the issuing CA's key is here."""
    if not any(gone == root.certificate for root in authority.former_roots) or not authority.key_file.exists():
        return
    before: tuple[str, ...] = ()
    with suppress(WireError):  # none yet, or a file that was damaged: devices that have seen it keep to it
        before = decode_trust_update(authority.trust_update).retired
    retired = tuple(dict.fromkeys((*before, key_name(gone))))[-RETIRED_MAX:]
    chain = (authority.issuing, *authority.above)
    signed = sign_trust_update(retired, chain, load_key(authority.key_file), now)
    write_file(folder / TRUST_UPDATE, signed, secret=False, force=True)


def _link_around(folder: Path, authority: Authority, gone: x509.Certificate, now: datetime) -> None:
    """Have the former root older than `gone` and the root newer than it sign each other."""
    roots = [(authority.root, authority.root_key_file)]
    roots += [(each.certificate, each.key_file) for each in authority.former_roots]
    at = next((number for number, (certificate, _) in enumerate(roots) if certificate == gone), len(roots))
    if at + 1 >= len(roots):
        return  # the oldest root, or an issuing CA
    (newer, newer_key), (older, older_key) = roots[at - 1], roots[at + 1]
    if not (newer_key.exists() and older_key.exists()):
        raise Refused(
            "root-key-away",
            "The root before it and the root after it must sign each other, and their keys are not both here.",
            f"Put them into {folder}, or forget the older one first: {fingerprint(older)}",
        )
    links = link_roots((older, load_key(older_key)), (newer, load_key(newer_key)), now)
    replace_links(folder, authority.former_roots[at], *links)


def former_of(home: Home, tenant: str, sha256: str) -> x509.Certificate:
    """A former issuing CA or former root of `tenant`. Raises: NotFound: `no-such-tenant`, `no-such-ca`."""
    authority = authority_of(home, tenant)
    roots = (root.certificate for root in authority.former_roots if authority.has_own_root)
    for each in (*authority.former, *roots):
        if fingerprint(each) == sha256:
            return each
    if sha256 in (fingerprint(authority.root), fingerprint(authority.issuing)):
        raise NotFound(
            "no-such-ca", f"{sha256} is in use: only a former CA can be forgotten.", "See: fleet ca rollover"
        )
    raise NotFound("no-such-ca", f"There is no former CA {sha256[:80]!r}.", "See: fleet ca show")


def issuers_below(home: Home, former: x509.Certificate) -> tuple[x509.Certificate, ...]:
    """The former issuing CAs whose certificates need `former`: itself, or those that it has signed as a root.

    Raises: Refused (`ca-in-use`): it has signed the present issuing CA of a tenant.
    """
    known = read_authorities(home).all
    issuers = [c for each in known for c in each.former]
    if former in issuers:
        return (former,)
    for each in known:
        if any(has_signed(former, ca) for ca in (each.issuing, *each.above)):
            raise Refused(
                "ca-in-use",
                f"It has signed the issuing CA of tenant {each.tenant}.",
                f"Roll that over first: fleet ca rollover --tenant {each.tenant}",
            )
    between = [ca for each in known for ca in each.above_former if has_signed(former, ca)]
    return tuple(each for each in issuers if any(has_signed(above, each) for above in (former, *between)))


def authority_of(home: Home, tenant: str) -> Authority:
    """Raises: as `found_tenant`."""
    return found_tenant(home, tenant) if tenant else read_authorities(home).own


def key_of_root(file: Path) -> ec.EllipticCurvePrivateKey:
    """Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`)."""
    if not file.exists():
        advice = (
            "An issuing CA is signed by its root: put the key back for as long as this command takes. Where it is kept "
            "elsewhere: fleet ca csr"
        )
        raise Refused("root-key-away", f"The root's key is not here: {file}.", advice)
    return load_key(file)


def next_generation(authority: Authority) -> int:
    """Number of the next issuing CA of our own name, by the number after the name of each; the first has none."""
    names = (each.subject.rfc4514_string().rpartition(" CA")[2].strip() for each in authority.issuers)
    return 1 + max(int(text) if text.isdecimal() and len(text) < 6 else 1 for text in names)


def touch_watched_folders(home: Home) -> None:
    """Update the times of the two folders that a serving process watches."""
    for folder in filter(Path.exists, (home.ca, home.tenants)):
        os.utime(folder)
