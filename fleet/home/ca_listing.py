"""The CAs of a home, for the admin API and the expiry forecast."""

from datetime import datetime
from functools import cache, partial
from pathlib import Path

from cryptography import x509

from fleet.ca.issuer import LocalIssuer
from fleet.ca.view import CaCertificate
from fleet.domain.ca_role import ROOTS, CaRole
from fleet.domain.errors import Unavailable
from fleet.home.authorities import read_authorities
from fleet.home.constrained_names import demand_model_names
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home, certificate_in
from fleet.home.pki import load_issuer, load_operators_issuer, operators_authority
from fleet.servers.admin.ca_access import CaAccess
from fleet.services.forecast import OwnCertificate


def authorities_for_admin(home: Home, now: datetime) -> CaAccess:
    """The CAs of `home`."""
    return CaAccess(
        operators=cache(lambda: operators_authority(home, now)),
        issuer=lambda: load_issuer(home),
        operators_issuer=lambda at: _operators_issuer(home, at),
        shown=lambda: shown_authorities(home),
        forecasted=lambda: forecasted_authorities(home),
        demand_names=partial(demand_model_names, home),
    )


def shown_authorities(home: Home) -> list[CaCertificate]:
    """Root CAs, issuing CAs and those between them, the fleet's own root first."""
    cas = home_cas(home, read_authorities(home), frozenset(CaRole))
    return [CaCertificate(ca.role, ca.certificate, ca.tenant, key_here=ca.key_here is not None) for ca in cas]


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
