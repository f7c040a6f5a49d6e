"""Name constraints of an imported CA (RFC 5280, 4.2.1.10) after its import: for new names of models, at each issue."""

from datetime import datetime

from cryptography import x509

from fleet.ca.issuer import trial_leaf
from fleet.ca.keys import load_key
from fleet.domain.device import Model
from fleet.domain.errors import Refused
from fleet.home.authorities import read_authorities
from fleet.home.ca_store import Authority
from fleet.home.layout import Home
from fleet.tls.verification import why_unverified


def is_constrained(authority: Authority) -> bool:
    """Whether a CA of its chain has name constraints."""
    chain = (authority.issuing, *authority.above, authority.root)
    return any(each.oid == x509.NameConstraints.oid for ca in chain for each in ca.extensions)


def demand_names(authority: Authority, leaf: x509.Certificate, what: str) -> None:
    """Raises: Refused (`name-impossible`): clients would reject `leaf`, that of `what`, below `authority`."""
    chain = (leaf, authority.issuing, *authority.above)
    if why := why_unverified(chain, [authority.root], None, server=False):
        ca = authority.issuing.subject.rfc4514_string()
        advice = "Choose names that the name constraints above it allow."
        raise Refused("name-impossible", f"Clients would reject {what} below {ca}: {why}.", advice)


def demand_model_names(home: Home, model: Model, now: datetime) -> None:
    """Try a certificate of the profile of `model` below the CA that signs for it, if its key is here.

    Raises: Refused (`name-impossible`, `issuer-expired`). Invalid, OSError: the CA cannot be read.
    """
    authority = read_authorities(home).of(model.rules.tenant)
    if authority is None or not is_constrained(authority) or not authority.key_file.exists():
        return
    issuing = authority.issuing, load_key(authority.key_file)
    demand_names(
        authority, trial_leaf(issuing, model.name, model.rules.profile, now), f"a device of model {model.name}"
    )
