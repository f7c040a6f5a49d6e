"""The CAs of a home, for the admin API and the expiry forecast."""

from datetime import datetime
from functools import cache, partial
from pathlib import Path

from cryptography import x509

from fleet.ca.issuer import LocalIssuer
from fleet.ca.view import CaCertificate
from fleet.domain.errors import Unavailable
from fleet.home.authorities import read_authorities
from fleet.home.ca_store import FORMER, ROOT_KEY, fingerprint
from fleet.home.constrained_names import demand_model_names
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
    """Root CAs and issuing CAs, the fleet's own root first."""
    found = read_authorities(home)
    shown: list[CaCertificate] = []

    def show(role: str, certificate: x509.Certificate, tenant: str, key: Path) -> None:
        shown.append(CaCertificate(role, certificate, tenant, key_here=key.exists()))

    for each in found.all:
        folder = each.key_file.parent
        if not each.tenant or each.root != found.own.root:
            show("root", each.root, each.tenant, folder / ROOT_KEY)
            for root in each.former_roots:
                show("former root", root.certificate, each.tenant, root.key_file)
        show("issuing", each.issuing, each.tenant, each.key_file)
        for former in each.former:
            show("former", former, each.tenant, folder / FORMER / f"{fingerprint(former)}.key")
    if home.operators_certificate.exists():
        show("operators", certificate_in(home.operators_certificate), "", home.operators_key)
    return shown


def root_keys_here(home: Home) -> list[Path]:
    """Keys of roots, present and former, in `home`: a serving node needs none."""
    found = read_authorities(home)
    folders = dict.fromkeys(each.key_file.parent for each in found.all)
    former = (root.key_file for each in found.all for root in each.former_roots)
    return [key for key in dict.fromkeys((*(folder / ROOT_KEY for folder in folders), *former)) if key.exists()]


def forecasted_authorities(home: Home) -> list[OwnCertificate]:
    """The home's own CA and server certificates, for the forecast."""
    all_of_them = read_authorities(home)
    own, server = all_of_them.own, certificate_in(home.server_chain)
    found = [_forecasted(r, each) for r, each in (("root", own.root), ("issuing", own.issuing), ("server", server))]
    for name, tenant in all_of_them.tenants.items():
        if tenant.root != own.root:
            found.append(_forecasted("root", tenant.root, name))
        found.append(_forecasted("issuing", tenant.issuing, name))
    return found


def _forecasted(role: str, certificate: x509.Certificate, tenant: str = "") -> OwnCertificate:
    return OwnCertificate(role, certificate.subject.rfc4514_string(), certificate.not_valid_after_utc, tenant)


def _operators_issuer(home: Home, now: datetime) -> LocalIssuer:
    try:
        return load_operators_issuer(home, now)
    except FileNotFoundError as error:
        message = "The key of the operators' CA is not on this server."
        advice = "Add the operator at the home that holds it, with --home."
        raise Unavailable("operators-ca-away", message, advice) from error
