"""Whether clients accept the certificate that the listeners present, before it is served and while it is."""

from datetime import datetime

from cryptography import x509

from fleet.ca.authority import names_of_server
from fleet.config.settings import Settings
from fleet.domain.errors import Invalid
from fleet.home.authorities import authority_of
from fleet.home.ca_store import Authority
from fleet.home.layout import Home
from fleet.home.pki import canonical_host, is_our_own, server_identity
from fleet.tls.contexts import ServerIdentity
from fleet.tls.verification import why_unverified
from fleet.wire.spki import spki_of


def must_verify(home: Home, identity: ServerIdentity, authority: Authority) -> None:
    """Raises: Invalid (`bad-server-chain`): no client could verify the chain of `identity`, whatever its dates;
    `bad-server-key`: its key is another certificate's.
    """
    if spki_of(identity.certificate_chain[0].public_key()) != spki_of(identity.private_key.public_key()):
        raise Invalid(
            "bad-server-key",
            f"{home.server_key} is not the key of the first certificate in {home.server_chain}.",
            "Put the pair there; a backup has the one before.",
        )
    if why := _fault(identity.certificate_chain, authority, None):
        raise Invalid(
            "bad-server-chain",
            f"Clients reject the chain in {home.server_chain}: {why}.",
            "It takes the server's certificate first, then each CA above it up to the root, which is left out.",
        )


def server_warning(home: Home, settings: Settings, now: datetime) -> str:
    """What the operator has to see to: "", or a reason that clients reject the server's certificate, or soon will."""
    authority, chain = authority_of(home, ""), server_identity(home).certificate_chain
    if why := _fault(chain, authority, now):
        return f"clients reject it: {why}"
    leaf = chain[0]
    if is_our_own(leaf, authority):
        return ""
    missing = {canonical_host(host) for host in settings.hosts} - names_of_server(leaf)
    if missing:
        return f"it is of another CA and does not name {', '.join(sorted(missing))}"
    if leaf.not_valid_after_utc - now < (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 3:
        return f"it is of another CA, which has to renew it: it expires on {leaf.not_valid_after_utc:%Y-%m-%d}"
    return ""


def _fault(chain: tuple[x509.Certificate, ...], authority: Authority, at: datetime | None) -> str:
    if is_our_own(chain[0], authority):
        return why_unverified(chain, [authority.root], at)
    # What its clients trust is not known here: that its certificates sign one another up to the last is.
    return why_unverified(chain, [chain[-1], authority.root], at, partial=True)
