"""An issuing CA that a corporate or offline root has signed: its request, and the import of the chain that came back.

FOLDER/request.key          the key of the request, until the chain is imported
tenants/NAME.request.key    likewise, for a tenant that is new
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from fleet.ca.authority import (
    Certified,
    ImportedRoot,
    certify_root,
    cross_certify,
    issuing_name,
    renewed_server_certificate,
)
from fleet.ca.authority_request import authority_request
from fleet.ca.chain import checked_chain, has_signed, has_signed_crl
from fleet.ca.imported_crl import crls_of
from fleet.ca.issuer import trial_leaf
from fleet.ca.keys import load_key, load_or_make_key
from fleet.config.durable_files import sync
from fleet.domain.errors import Invalid, NotFound, Refused
from fleet.domain.model_rules import ProfileRules
from fleet.home.authorities import (
    authority_of,
    must_be_new_tenant,
    next_generation,
    read_authorities,
    require_unique_ca_name,
    signed_by_former,
    tenant_folder,
    tenant_names,
    touch_watched_folders,
    write_issuing,
)
from fleet.home.ca_store import KEY, ROOT, Authority, locked, next_number, roll_over
from fleet.home.layout import Home, keep_fleet_fingerprint, settings_of
from fleet.tls.verification import why_unverified
from fleet.wire.encodings.reading import read
from fleet.wire.errors import WireError

REQUEST_KEY = "request.key"
ANY_MODEL = "any"  # of a new tenant, which has none yet
FILE_SIZE_MAX = 256 * 1024


SignedCrl = tuple[x509.Certificate, x509.CertificateRevocationList]
"""A CA and its CRL."""


class Imported(Struct, frozen=True):
    """What an import changes, before it is done."""

    chain: tuple[x509.Certificate, ...]
    """The issuing CA first, its root last."""
    root: ImportedRoot | None
    """None: the root stays."""
    crls: tuple[SignedCrl, ...]
    """Of the CAs above the issuing one."""


def request_issuing(home: Home, tenant: str, *, name: str = "", new_key: bool = False) -> bytes:
    """A request, PEM, for the next issuing CA of `tenant` ("": the fleet's own), called `name` or as a rollover does.
    Repeated for the same key until its chain is imported, or for a `new_key`.

    Raises: NotFound (`no-such-tenant`). Invalid (`bad-name`, `bad-key`). OSError.
    """
    try:
        authority = authority_of(home, tenant)
    except NotFound as error:
        error.advice = f"For a new one: fleet ca csr --tenant {tenant} --new-tenant"
        raise
    file = authority.key_file.with_name(REQUEST_KEY)
    subject = issuing_name(_fleet_name(home, tenant), next_generation(authority), name)
    with locked(home.ca):
        if new_key or (file.exists() and _is_answered(authority, load_key(file))):
            file.unlink(missing_ok=True)
        return authority_request(subject, load_or_make_key(file))


def request_tenant(home: Home, tenant: str, *, name: str = "", new_key: bool = False) -> bytes:
    """Likewise, for the issuing CA of a `tenant` that is made when the chain is imported.

    Raises: Conflict (`tenant-exists`). Invalid: `bad-name`, `bad-key`. OSError.
    """
    must_be_new_tenant(home, tenant)
    subject = issuing_name(_fleet_name(home, tenant), 1, name)
    with locked(home.ca):
        home.tenants.mkdir(mode=0o700, exist_ok=True)
        file = _key_of_new(home, tenant)
        if new_key:
            file.unlink(missing_ok=True)
        return authority_request(subject, load_or_make_key(file))


def is_requested(home: Home, tenant: str) -> bool:
    """Whether a chain for `tenant` makes a new one."""
    return bool(tenant) and tenant not in tenant_names(home) and _key_of_new(home, tenant).exists()


def _key_of_new(home: Home, tenant: str) -> Path:
    return home.tenants / f"{tenant}.{REQUEST_KEY}"


def _fleet_name(home: Home, tenant: str) -> str:
    return f"{settings_of(home).name} {tenant}".rstrip()


def _is_answered(authority: Authority, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether an import that was interrupted after its commit has left the key of its request."""
    return any(key.public_key() == ca.public_key() for ca in authority.issuers)


def read_import(home: Home, tenant: str, data: bytes, profiles: Mapping[str, ProfileRules], now: datetime) -> Imported:
    """The chain in `data` (PEM, DER, PKCS#7), for the request of `tenant`, whose devices have `profiles`, by model.

    Raises: NotFound (`no-such-tenant`, `no-ca-request`). Invalid (`bad-chain`). Conflict (`name-taken`). OSError.
    """
    known = read_authorities(home)
    authority = authority_of(home, tenant)
    key = _request_key(home, authority)
    given, crls = _given(data)
    chain = checked_chain(given, key.public_key(), [authority.root, known.own.root], now)
    require_unique_ca_name(chain[0], known)
    if not tenant:
        _server_must_verify(home, (chain[0], key), chain, now)
    for model, profile in profiles.items():
        _devices_must_verify(trial_leaf((chain[0], key), model, profile, now), model, chain, now)
    root = chain[-1]
    return Imported(
        chain, None if root == authority.root else _links(authority, root, given, now), _of_chain(crls, chain)
    )


def read_new_tenant(home: Home, tenant: str, data: bytes, now: datetime) -> Imported:
    """The chain in `data` for the request of the new `tenant`. Its root may be another than the fleet's.

    Raises: Invalid (`bad-chain`). Conflict (`name-taken`). OSError.
    """
    known = read_authorities(home)
    given, crls = _given(data)
    key = load_key(_key_of_new(home, tenant))
    chain = checked_chain(given, key.public_key(), [known.own.root], now)
    require_unique_ca_name(chain[0], known)
    _devices_must_verify(trial_leaf((chain[0], key), ANY_MODEL, ProfileRules(), now), ANY_MODEL, chain, now)
    root = None if chain[-1] == known.own.root else ImportedRoot(chain[-1], None, None)
    return Imported(chain, root, _of_chain(crls, chain))


@contextmanager
def imported_tenant(home: Home, tenant: str, made: Imported) -> Iterator[Authority]:
    """The new `tenant` with its CA. It is durable when the block begins, and takes effect when the block ends without
    an exception.

    Raises: as `tenant_folder`. OSError.
    """
    file = _key_of_new(home, tenant)
    issuing, *above = made.chain[:-1]
    with tenant_folder(home, tenant) as (building, _):
        if made.root is not None:
            (building / ROOT).write_bytes(made.root.certificate.public_bytes(Encoding.PEM))
        write_issuing(building, (issuing, load_key(file)), above)
        yield Authority(tenant, made.chain[-1], issuing, (), home.tenants / tenant / KEY, above=tuple(above))
    file.unlink()


def _of_chain(
    crls: Sequence[x509.CertificateRevocationList], chain: Sequence[x509.Certificate]
) -> tuple[SignedCrl, ...]:
    names = {each.subject for each in chain[1:]}
    return tuple(_signed(crl, chain[1:]) for crl in crls if crl.issuer in names)


def read_crls(home: Home, tenant: str, data: bytes) -> list[SignedCrl]:
    """The CRLs in `data`, with the CAs above the issuing ones of `tenant` that have signed them; none: it holds
    certificates too, or instead.

    Raises: NotFound (`no-such-tenant`). Invalid (`bad-chain`): no such CA has signed one. OSError.
    """
    certificates, crls = _given(data)
    if certificates:
        return []
    known = authority_of(home, tenant)
    former = (each.certificate for each in known.former_roots)
    return [_signed(crl, (known.root, *known.above, *known.above_former, *former)) for crl in crls]


def _signed(crl: x509.CertificateRevocationList, above: Sequence[x509.Certificate]) -> SignedCrl:
    ca = next((each for each in above if has_signed_crl(each, crl)), None)
    if ca is None:
        why = f"its issuer, {crl.issuer.rfc4514_string()}, is no CA above the issuing one, or has not signed it"
        raise Invalid("bad-chain", f"The CRL is refused: {why}.", "See: fleet ca show")
    crls_of(crl, ca)
    return ca, crl


def _request_key(home: Home, authority: Authority) -> ec.EllipticCurvePrivateKey:
    file = authority.key_file.with_name(REQUEST_KEY)
    key = load_key(file) if file.exists() else None
    if key is None or _is_answered(authority, key):
        asking = [f"--tenant {name}" for name in _asking(home)]
        advice = f"Say whose: {' or '.join(asking)}" if asking else "Make one with: fleet ca csr"
        raise NotFound("no-ca-request", "There is no request that this could answer.", advice)
    return key


def _asking(home: Home) -> list[str]:
    """Tenants with an open request, new ones among them."""
    new = (file.name.removesuffix(f".{REQUEST_KEY}") for file in home.tenants.glob(f"*.{REQUEST_KEY}"))
    old = (name for name in tenant_names(home) if (home.tenants / name / REQUEST_KEY).exists())
    return sorted({*new, *old})


def _given(data: bytes) -> tuple[tuple[x509.Certificate, ...], tuple[x509.CertificateRevocationList, ...]]:
    if len(data) > FILE_SIZE_MAX:
        raise Invalid("bad-chain", f"The chain is refused: the file is larger than {FILE_SIZE_MAX} bytes.")
    try:
        found = read(data)
    except WireError as error:
        raise Invalid("bad-chain", f"The chain is refused: {error}", "Give it in PEM, DER or PKCS#7.") from None
    return found.certificates, found.revocation_lists


def _server_must_verify(home: Home, issuing: Certified, chain: Sequence[x509.Certificate], now: datetime) -> None:
    """As a client would see it, name constraints included (RFC 5280, 4.2.1.10)."""
    hosts = settings_of(home).hosts
    trial = renewed_server_certificate(issuing, hosts, issuing[1], now, None)
    if why := why_unverified((trial, *chain[:-1]), [chain[-1]], now):
        advice = f"It has to allow the server's hosts: {', '.join(hosts)}."
        raise Invalid("bad-chain", f"The chain is refused: clients would reject a server below it: {why}.", advice)


def _devices_must_verify(leaf: x509.Certificate, model: str, chain: Sequence[x509.Certificate], now: datetime) -> None:
    """Likewise, the `leaf` of a device of `model`."""
    if why := why_unverified((leaf, *chain[:-1]), [chain[-1]], now, server=False):
        what = f"The chain is refused: clients would reject a device of model {model} below it: {why}."
        raise Invalid("bad-chain", what, "It has to allow the names of the model's certificates: fleet model show")


def _links(
    authority: Authority, root: x509.Certificate, given: Sequence[x509.Certificate], now: datetime
) -> ImportedRoot:
    """The new `root` with what links it to the present one: out of `given`, or signed by the present one's key."""
    before = authority.root
    new_with_old = _link(given, root, before)
    if new_with_old is None and authority.root_key_file.exists():
        new_with_old = certify_root(root, before, load_key(authority.root_key_file), now)
    return ImportedRoot(root, new_with_old, _link(given, before, root))


def _link(
    given: Sequence[x509.Certificate], subject: x509.Certificate, issuer: x509.Certificate
) -> x509.Certificate | None:
    """The certificate of the key of `subject` that `issuer` has signed."""
    for each in given:
        is_same = each.subject == subject.subject and each.public_key() == subject.public_key()
        if is_same and each != subject and has_signed(issuer, each):
            return each
    return None


def import_chain(home: Home, tenant: str, made: Imported, now: datetime, *, force: bool = False) -> Authority:
    """Issue from the imported CA from now on. The one before is kept, as in a rollover; so is the root before.

    Raises: Refused (`root-key-away`): clients that trust the root before could no longer verify, and `force` is not
    given. Invalid (`too-many-former`). OSError.
    """
    before = authority_of(home, tenant)
    folder = before.folder
    if made.root is not None and before.has_own_root and made.root.new_with_old is None and not force:
        raise Refused(
            "root-key-away",
            "Clients that trust the present root alone could not verify the new chain: its key is not here to sign the "
            "new root, and the file holds no such certificate (NewWithOld).",
            "Put the key back for this command; or use --force, if they have the new root already.",
        )
    with locked(home.ca):
        key = _request_key(home, before)
        crosses = signed_by_former(made.chain[0], before, now)
        if made.root is not None and before.has_own_root:
            crosses |= _cross_of_present(before, made, now)
            if not tenant:
                keep_fleet_fingerprint(home)
        roll_over(folder, (made.chain[0], key), crosses, made.root, above=made.chain[1:-1])
        folder.joinpath(REQUEST_KEY).unlink()
        sync(folder)
    touch_watched_folders(home)
    return authority_of(home, tenant)


def _cross_of_present(before: Authority, made: Imported, now: datetime) -> dict[int, x509.Certificate]:
    """The new issuing CA as signed by the present root, by the number that this one gets: for Go, which searches."""
    if not before.root_key_file.exists():
        return {}
    number = next_number(before.former_roots)
    return {number: cross_certify(made.chain[0], before.root, load_key(before.root_key_file), now)}
