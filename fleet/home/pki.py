"""PKI files of a home: create and load its CAs and keys, issue and renew the server certificate."""

import hmac
import ipaddress
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.authority import (
    create_issuing,
    create_operators,
    create_root,
    issue_server_certificate,
    names_of_server,
    renewed_server_certificate,
)
from fleet.ca.chain import has_signed
from fleet.ca.head_signer import LocalHeadSigner
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.ca.key_identifiers import identifier_of, issuer_identifier_of
from fleet.ca.keys import load_key, load_or_make_key, write_key
from fleet.config.durable_files import sync, write_file
from fleet.config.settings import Settings
from fleet.config.small_files import CERTIFICATES_SIZE_MAX, read_small
from fleet.domain.errors import Invalid, Refused
from fleet.home.authorities import authority_of
from fleet.home.ca_store import Authority, locked
from fleet.home.layout import Home, certificate_in, certificates_in, settings_of
from fleet.home.publication import publication_of, publication_of_operators, publication_of_root
from fleet.home.served_chain import served_chain
from fleet.tls.contexts import ServerIdentity
from fleet.webhook.signing import Signer
from fleet.wire.key_package import Sealer


def load_issuer(home: Home) -> LocalIssuer:
    """The issuing CA of `home`, ready to sign."""
    publication = publication_of(settings_of(home), "")
    return LocalIssuer(certificate_in(home.issuing_certificate), load_key(home.issuing_key), publication=publication)


def audit_signer(home: Home) -> LocalHeadSigner:
    """The signer of the audit's tree heads; its key is created for a home without one.

    Raises: Invalid (`bad-key`, `key-exposed`). Refused (`audit-key-lost`): the registry holds heads signed with a
    missing key, which must not be replaced silently. OSError.
    """
    if home.audit_public_key.exists() and not home.audit_key.exists():
        raise Refused(
            "audit-key-lost",
            f"{home.audit_key} is gone, and {home.audit_public_key} is there.",
            "Put the key back. If it is lost, rename audit.pub and keep it: `audit verify --public-key` takes both.",
        )
    signer = LocalHeadSigner(load_or_make_key(home.audit_key))
    pem = signer.public_key.pem()
    if not home.audit_public_key.exists():
        with suppress(FileExistsError):  # another process has written it meanwhile
            write_file(home.audit_public_key, pem, secret=False)
    if read_small(home.audit_public_key, CERTIFICATES_SIZE_MAX) != pem:
        message = f"{home.audit_public_key} is not the public half of audit.key beside it."
        raise Invalid("bad-key", message, "Find out who put which of them there.")
    return signer


def cursor_key(home: Home) -> bytes:
    """The key that authenticates the API's cursors: the same in each process and node with this home's keys."""
    if not home.webhook_key.exists():
        load_or_make_key(home.webhook_key)
    return hmac.digest(read_small(home.webhook_key, CERTIFICATES_SIZE_MAX), b"cursors of the admin API", "sha256")


def operators_authority(home: Home, now: datetime) -> x509.Certificate:
    """The operators' CA of `home`, created for a home without one.

    Raises: Refused (`operators-ca-lost`): its certificate is gone, and its key is there. Invalid (`bad-settings`): the
    fleet's name is unknown, so it cannot be created. OSError.
    """
    with locked(home.ca):  # two concurrent commands must not create two
        if not home.operators_certificate.exists() and not _is_creation_finished(home):
            _write_operators_authority(home, settings_of(home).name, now)
    return certificate_in(home.operators_certificate)


def load_operators_issuer(home: Home, now: datetime) -> LocalIssuer:
    """The issuer of operators' certificates of `home`; its CA is created if missing."""
    publication = publication_of_operators(settings_of(home))
    return LocalIssuer(operators_authority(home, now), load_key(home.operators_key), OPERATORS, publication)


def _is_creation_finished(home: Home) -> bool:
    """Finish a creation that was interrupted after its key was written. False: there was none.

    Raises: Refused (`operators-ca-lost`): the key is of another creation, and may have signed.
    """
    if not home.operators_key.exists():
        return False
    draft = _draft(home)
    if not draft.exists() or certificate_in(draft).public_key() != load_key(home.operators_key).public_key():
        raise Refused(
            "operators-ca-lost",
            f"{home.operators_certificate} is gone, and {home.operators_key} is there.",
            "Put the certificate back, from a backup or another node. If it is lost, move operators.key out of the "
            "home: the next command or start makes a new CA, by which every operator needs a new certificate.",
        )
    draft.replace(home.operators_certificate)
    sync(home.ca)
    return True


def _write_operators_authority(home: Home, name: str, now: datetime) -> None:
    """Write a draft of the certificate, the key, and then the certificate: it always has its key, and a key without it
    has its draft.
    """
    certificate, key = create_operators(name, now)
    write_file(_draft(home), certificate.public_bytes(Encoding.PEM), secret=False, force=True)
    write_key(home.operators_key, key)
    _draft(home).replace(home.operators_certificate)
    sync(home.ca)


def _draft(home: Home) -> Path:
    return home.operators_certificate.with_suffix(".draft")


def server_identity(home: Home) -> ServerIdentity:
    """The listeners' server certificate: leaf and chain without the root, and the key."""
    return ServerIdentity(tuple(certificates_in(home.server_chain)), load_key(home.server_key))


def renew_server_certificate(home: Home, settings: Settings, now: datetime) -> str:
    """Renew the server certificate if due, for the same key; the reason, or "" if it was not due, or is of another CA.

    It is due when there is none, when a third of its lifetime is left, when `fleet.toml` names other hosts, or when the
    CAs above it have changed. The file is replaced atomically: a reader finds the old chain or the new one.
    """
    authority = authority_of(home, "")
    chain = served_chain(authority, now)
    why = _why_renew(home, settings, authority, chain, now)
    if why:
        issuing_key, key = load_key(home.issuing_key), load_key(home.server_key)
        publication = publication_of(settings, "")
        renewed = renewed_server_certificate((authority.issuing, issuing_key), settings.hosts, key, now, publication)
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in (renewed, *chain))
        write_file(home.server_chain, pem, secret=False, force=True)
    return why


def _why_renew(
    home: Home, settings: Settings, authority: Authority, chain: tuple[x509.Certificate, ...], now: datetime
) -> str:
    if not home.server_chain.exists():
        return "there was none"
    current, *above = certificates_in(home.server_chain)
    if not is_our_own(current, authority):
        return ""
    life = current.not_valid_after_utc - current.not_valid_before_utc
    if names_of_server(current) != {canonical_host(host) for host in settings.hosts}:
        return "fleet.toml names other hosts"
    if current.not_valid_after_utc - now < life / 3:
        return f"it would expire on {current.not_valid_after_utc:%Y-%m-%d}"
    if current.issuer != authority.issuing.subject:
        return "its issuing CA signs no more"
    if issuer_identifier_of(current) not in (None, identifier_of(authority.issuing)):
        return "it names its issuing CA's key otherwise than that CA's certificate"
    return "another chain serves every client" if above != [*chain] else ""


def is_our_own(server: x509.Certificate, authority: Authority) -> bool:
    """Whether a CA of `authority` has signed `server`; another's is installed, and renewed, by the operator."""
    return any(has_signed(each, server) for each in authority.issuers)


def canonical_host(host: str) -> str:
    """`host` as a certificate's names are compared with."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def write_authorities(home: Home, settings: Settings, now: datetime) -> None:
    for folder in (home.root_certificate.parent, home.server_chain.parent):
        folder.mkdir(mode=0o700)
    root, root_key = create_root(settings.name, now)
    publication = publication_of_root(settings, "")
    issuing, issuing_key = create_issuing(settings.name, root, root_key, now, publication=publication)
    server, server_key = issue_server_certificate(issuing, issuing_key, settings.hosts, now)
    home.root_certificate.write_bytes(root.public_bytes(Encoding.PEM))
    home.issuing_certificate.write_bytes(issuing.public_bytes(Encoding.PEM))
    home.server_chain.write_bytes(server.public_bytes(Encoding.PEM) + issuing.public_bytes(Encoding.PEM))
    write_key(home.root_key, root_key)
    write_key(home.issuing_key, issuing_key)
    write_key(home.server_key, server_key)
    audit_signer(home)
    _write_operators_authority(home, settings.name, now)


def key_sealer(home: Home) -> Sealer:
    """The signer of server-generated keys: the server itself (RFC 7030, 4.4.2)."""
    return Sealer(certificate_in(home.server_chain), load_key(home.server_key))


def load_webhook_signer(home: Home) -> Signer:
    """The signer of webhook requests; its key is created on first use.

    Raises: Invalid (`bad-key`, `key-exposed`). OSError.
    """
    return Signer(load_or_make_key(home.webhook_key))
