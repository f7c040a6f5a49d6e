"""A certificate request that comes with a call, and what goes back with the certificate that is made for it."""

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import Invalid
from fleet.domain.writes import AddCredential
from fleet.servers.admin.context import Context
from fleet.services.holders import demand_good_key
from fleet.wire.csr import Csr, decode_csr

_LABEL = "(?:NEW )?CERTIFICATE REQUEST-----"
_PEM = re.compile(rf"\s*-----BEGIN {_LABEL}([A-Za-z0-9+/=\s]+)-----END {_LABEL}\s*")


def read_request(text: str) -> Csr:
    """The certificate request in `text`, PEM: signed by a good new key.

    Raises: Invalid: `bad-csr`, `key-not-allowed`. WireError.
    """
    found = _PEM.fullmatch(text)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der:
        raise Invalid("bad-csr", "csr is no certificate request in PEM.", "Make one with: openssl req -new")
    csr = decode_csr(der)
    demand_good_key(csr.key_type)
    return csr


def lifetime_of(body: dict[str, Any], usual: timedelta) -> timedelta:
    """How long the certificate is to live."""
    return timedelta(seconds=int(body["lifetime_seconds"])) if "lifetime_seconds" in body else usual


def made_in(change: Change) -> Credential:
    """The certificate that `change` records."""
    return next(write.credential for write in change.writes if isinstance(write, AddCredential))


def signed_json(
    context: Context, credential: Credential, issuers: Sequence[x509.Certificate] | None = None
) -> dict[str, str]:
    """What goes back with `credential`: its chain, by whichever of `issuers` has signed it, and the root.

    `issuers` are the fleet's own CAs for devices unless others are given.
    """
    shown = context.authorities().shown()
    if issuers is None:
        issuers = [each.certificate for each in shown if each.role != "root"]
    leaf = x509.load_der_x509_certificate(credential.der)
    chain = [leaf, *(each for each in issuers if _has_signed(each, leaf))]
    root = next(each.certificate for each in shown if each.role == "root")
    return {"chain": "".join(map(pem_of, chain)), "root": pem_of(root)}


async def newest_of(context: Context, holder: str, kind: CredentialKind) -> Credential | None:
    """The newest certificate of `holder`."""
    return next((c for c in reversed(await context.registry.credentials(holder)) if c.kind is kind), None)


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _has_signed(issuer: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
