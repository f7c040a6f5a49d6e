"""The CAs of a home, for the admin API and for a forecast."""

from datetime import datetime

from cryptography import x509

from fleet.ca.issuer import LocalIssuer
from fleet.ca.shown import CaCertificate
from fleet.domain.errors import Unavailable
from fleet.home import (
    Home,
    authority_chain,
    load_issuer,
    load_operators_issuer,
    operators_authority,
    server_identity,
)
from fleet.servers.admin.authorities import Authorities
from fleet.services.forecast import Authority


def authorities_for_admin(home: Home, now: datetime) -> Authorities:
    """Those of `home`."""
    return Authorities(
        operators=operators_authority(home, now),
        stations_issuer=lambda: load_issuer(home),
        operators_issuer=lambda at: _operators_issuer(home, at),
        shown=lambda: shown_authorities(home),
        forecasted=lambda: forecasted_authorities(home),
    )


def shown_authorities(home: Home) -> list[CaCertificate]:
    """What devices trust, and what signs for them."""
    root, issuing = authority_chain(home)
    return [CaCertificate("root", root), CaCertificate("issuing", issuing)]


def forecasted_authorities(home: Home) -> list[Authority]:
    """The certificates of the home's own, as a forecast looks at them."""
    root, issuing = authority_chain(home)
    leaf = server_identity(home).certificate_chain[0]
    return [_authority(role, each) for role, each in (("root", root), ("issuing", issuing), ("server", leaf))]


def _authority(role: str, certificate: x509.Certificate) -> Authority:
    return Authority(role, certificate.subject.rfc4514_string(), certificate.not_valid_after_utc)


def _operators_issuer(home: Home, now: datetime) -> LocalIssuer:
    try:
        return load_operators_issuer(home, now)
    except FileNotFoundError as error:
        message = "The key of the operators' CA is not on this server."
        advice = "Add the operator at the home that holds it, with --home."
        raise Unavailable("operators-ca-away", message, advice) from error
