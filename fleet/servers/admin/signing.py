"""A certificate request that comes in a body, and what is returned with the certificate that is issued for it.

`cryptography` is loaded by the first of them: most requests need none.
"""

import base64
import binascii
import re
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fleet.domain.ca_role import CaRole
from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import Invalid
from fleet.domain.writes import AddCredential
from fleet.servers.admin.context import Context
from fleet.servers.admin.records.holders import newest
from fleet.services.holders import demand_good_key, demand_own_name

if TYPE_CHECKING:
    from cryptography import x509

    from fleet.wire.csr import Csr

_LABEL = "(?:NEW )?CERTIFICATE REQUEST-----"
_PEM = re.compile(rf"\s*-----BEGIN {_LABEL}([A-Za-z0-9+/=\s]+)-----END {_LABEL}\s*")


def read_request(text: str) -> "Csr":
    """The certificate request in `text`, PEM: signed by a good new key.

    Raises: Invalid: `bad-csr`, `key-not-allowed`. WireError.
    """
    from fleet.wire.csr import decode_csr

    found = _PEM.fullmatch(text)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der:
        raise Invalid("bad-csr", "csr is not a certificate request in PEM.", "Make one with: openssl req -new")
    csr = decode_csr(der)
    demand_good_key(csr.key_type)
    return csr


def read_named_request(name: str, text: str) -> "Csr":
    """The same, with the subject CN=`name`. Raises: as `read_request`; Invalid (`name-not-in-request`)."""
    csr = read_request(text)
    demand_own_name(name, csr.subject)
    return csr


def made_in(change: Change) -> Credential:
    """The certificate that `change` records."""
    return next(write.credential for write in change.writes if isinstance(write, AddCredential))


def signed(
    context: Context, credential: Credential, issuers: "Sequence[x509.Certificate] | None" = None
) -> dict[str, str]:
    """What is returned with `credential`: its chain, by whichever of `issuers` signed it, and the root.

    `issuers` are the fleet's own CAs for devices unless others are given.
    """
    from cryptography import x509

    from fleet.ca.chain import has_signed

    shown = context.authorities().shown()
    if issuers is None:
        issuers = [each.certificate for each in shown if each.role is not CaRole.ROOT]
    leaf = x509.load_der_x509_certificate(credential.der)
    chain = [leaf, *(each for each in issuers if has_signed(each, leaf))]
    root = next(each.certificate for each in shown if each.role is CaRole.ROOT)
    return {"chain": "".join(map(_pem, chain)), "root": _pem(root)}


async def newest_of(context: Context, holder: str, kind: CredentialKind) -> dict[str, Any]:
    """The fields of the newest certificate of `holder`, if there is one."""
    held = reversed(await context.registry.credentials(holder))
    return newest(next((c for c in held if c.kind is kind), None))


def _pem(certificate: "x509.Certificate") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return ssl.DER_cert_to_PEM_cert(certificate.public_bytes(Encoding.DER))
