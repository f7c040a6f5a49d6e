"""Every CA of a home: its role, its certificate, where its key may be, and whose it is; those that publish CRLs; the
CAs for the admin API and the expiry forecast.
"""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from functools import cache, partial
from pathlib import Path

from cryptography import x509

from fleet.ca.chain import has_signed
from fleet.ca.crl import LocalCrlSigner, urls_in
from fleet.ca.issuer import LocalIssuer
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import load_key
from fleet.ca.view import CaCertificate
from fleet.domain.ca_role import ISSUES_TO_DEVICES, ROOTS, CaRole
from fleet.domain.crl_store import CrlSigner
from fleet.domain.errors import Invalid, Unavailable
from fleet.home.authorities import Authorities, key_of_root, read_authorities
from fleet.home.ca_store import Authority
from fleet.home.constrained_names import demand_model_names
from fleet.home.layout import Home, certificate_in
from fleet.home.pki import load_issuer, load_operators_issuer, operators_authority
from fleet.servers.admin.ca_access import CaAccess
from fleet.services.crl_publishing import CrlCa
from fleet.services.forecast import OwnCertificate


def home_cas(
    home: Home, authorities: Authorities, roles: Collection[CaRole] = frozenset(CaRole)
) -> list[CaCertificate]:
    """The CAs of `roles`, the fleet's own first, of each tenant its root first, present ones before former ones; the
    operators' CA last. A root that tenants share is the fleet's.

    Raises: Invalid (`bad-certificate-file`). OSError.
    """
    own = authorities.own
    found = [ca for a in authorities.all for ca in _of(a, has_root=not a.tenant or a.root != own.root)]
    if CaRole.OPERATORS in roles and home.operators_certificate.exists():
        found.append(CaCertificate(CaRole.OPERATORS, certificate_in(home.operators_certificate), home.operators_key))
    return [ca for ca in found if ca.role in roles]


def _of(authority: Authority, *, has_root: bool) -> Iterator[CaCertificate]:
    tenant = authority.tenant
    if has_root:
        yield CaCertificate(CaRole.ROOT, authority.root, authority.root_key_file, tenant)
        for root in authority.former_roots:
            yield CaCertificate(CaRole.FORMER_ROOT, root.certificate, root.key_file, tenant)
    yield CaCertificate(CaRole.ISSUING, authority.issuing, authority.key_file, tenant)
    for former in authority.former:
        yield CaCertificate(CaRole.FORMER, former, authority.key_file_of(former), tenant)
    for between in dict.fromkeys((*authority.above, *authority.above_former)):
        yield CaCertificate(CaRole.INTERMEDIATE, between, None, tenant)


def crl_authorities(home: Home) -> list[CrlCa]:
    """Every CA of `home` whose key is here: issuing CAs, those before a rollover, roots, the operators' CA."""
    found: dict[bytes, CrlCa] = {}
    for ca in home_cas(home, read_authorities(home)):
        if (key := ca.key_here) is not None:
            identifier = identifier_of(ca.certificate)
            is_sharded, is_root = ca.role in ISSUES_TO_DEVICES, ca.role in ROOTS
            found.setdefault(identifier, CrlCa(identifier, _signer(ca.certificate, key), urls_in, is_sharded, is_root))
    return list(found.values())


def root_that_has_signed(home: Home, certificates: Collection[x509.Certificate]) -> tuple[x509.Certificate, Path]:
    """The fleet's root, or the former one, that has signed all of `certificates`, and where its key may be.

    Raises: Invalid (`bad-ca-certificate`): none has.
    """
    own = read_authorities(home).own
    roots = [(own.root, home.root_key), *((root.certificate, root.key_file) for root in own.former_roots)]
    for root, key in roots:
        if all(each != root and has_signed(root, each) for each in certificates):
            return root, key
    names = " and ".join(each.subject.rfc4514_string() for each in certificates)
    raise Invalid("bad-ca-certificate", f"The root has not signed {names}, nor has a former one.")


def root_that_publishes(home: Home, revoked: Collection[x509.Certificate] = ()) -> tuple[x509.Certificate, CrlCa]:
    """The fleet's root, or the one that has signed `revoked`, and it as a CA whose CRL is as valid as is asked for.

    Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`, `bad-ca-certificate`).
    """
    root, key = root_that_has_signed(home, revoked)
    signer = LocalCrlSigner(root, key_of_root(key))
    return root, CrlCa(identifier_of(root), lambda: signer, urls_in, is_sharded=False)


def _signer(certificate: x509.Certificate, key: Path) -> Callable[[], CrlSigner]:
    return lambda: LocalCrlSigner(certificate, load_key(key))


def authorities_for_admin(home: Home, now: datetime) -> CaAccess:
    """The CAs of `home`."""
    return CaAccess(
        operators=cache(lambda: operators_authority(home, now)),
        issuer=lambda: load_issuer(home),
        operators_issuer=lambda at: _operators_issuer(home, at),
        # Root CAs, issuing CAs and those between them, the fleet's own root first.
        shown=lambda: home_cas(home, read_authorities(home)),
        forecasted=lambda: forecasted_authorities(home),
        demand_names=partial(demand_model_names, home),
    )


def root_keys_here(home: Home) -> list[Path]:
    """Keys of roots, present and former, in `home`: a serving node needs none."""
    return [key for ca in home_cas(home, read_authorities(home), ROOTS) if (key := ca.key_here) is not None]


def forecasted_authorities(home: Home) -> list[OwnCertificate]:
    """The home's own CA and server certificates, for the forecast."""
    cas = home_cas(home, read_authorities(home), {CaRole.ROOT, CaRole.ISSUING})
    found = [_forecasted(ca.role, ca.certificate, ca.tenant) for ca in cas]
    return [*found, _forecasted("server", certificate_in(home.server_chain))]


def _forecasted(role: str, certificate: x509.Certificate, tenant: str = "") -> OwnCertificate:
    return OwnCertificate(role, certificate.subject.rfc4514_string(), certificate.not_valid_after_utc, tenant)


def _operators_issuer(home: Home, now: datetime) -> LocalIssuer:
    try:
        return load_operators_issuer(home, now)
    except FileNotFoundError as error:
        message = "The key of the operators' CA is not on this server."
        advice = "Add the operator at the home that holds it, with --home."
        raise Unavailable("operators-ca-away", message, advice) from error
