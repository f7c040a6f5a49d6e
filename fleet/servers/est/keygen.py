"""serverkeygen (RFC 7030, 4.4): a key pair for a device that cannot generate a good one.

The private key exists in this process for one request only: it is in no file, no row and no log.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.domain.errors import Invalid
from fleet.domain.peer import Peer
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.csr import Csr
from fleet.wire.est import CERTS_ONLY, encode_body
from fleet.wire.key_package import CIPHERS, Recipient, Sealer, can_receive, seal_key
from fleet.wire.keys import generate_key
from fleet.wire.spki import load_spki, spki_of

PKCS8 = "application/pkcs8"
SEALED_KEY = "application/pkcs7-mime; smime-type=server-generated-key"


@dataclass(slots=True)
class ServerKeyGenerator:
    """Generates the key for one request that has passed the checks; a `fleet.domain.ports.KeyGenerator`."""

    csr: Csr
    peer: Peer
    sealer: Callable[[], Sealer]
    _sealed_by: Sealer | None = field(default=None, repr=False)
    _key: CertificateIssuerPrivateKeyTypes | None = field(default=None, repr=False)

    async def make(self, key_type: str) -> tuple[bytes, bytes]:
        """A key of `key_type`, the CSR's own type: DER of its SubjectPublicKeyInfo, and the SHA-256 of that.

        Raises: Invalid (`sealing-impossible`): the CSR asks for an encrypted key, and it cannot be encrypted so.
        """
        # Before anything is issued: RFC 7030, 4.4.1.2 ends the request when the key cannot be encrypted.
        if self._recipient() is not None:
            self._sealed_by = self.sealer()
        if self._key is None:
            self._key = await asyncio.to_thread(generate_key, key_type)  # an RSA key takes a tenth of a second
        spki = spki_of(self._key.public_key())
        return spki, hashlib.sha256(spki).digest()

    def key_part(self, *, wrap: bool) -> tuple[str, bytes]:
        """Media type and base64 of the generated key."""
        if self._key is None:
            raise RuntimeError("No key has been generated.")
        pkcs8 = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        sealing = self._recipient()
        if sealing is None or self._sealed_by is None:
            return PKCS8, encode_body(pkcs8, wrap=wrap)
        recipient, cipher = sealing
        return SEALED_KEY, encode_body(seal_key(pkcs8, recipient, self._sealed_by, cipher), wrap=wrap)

    def _recipient(self) -> tuple[Recipient, str] | None:
        """Recipient and cipher of the key's encryption; None when the CSR asks for TLS alone."""
        sealing = self.csr.sealing
        if sealing is None:
            return None
        if not sealing.is_asymmetric:
            # RFC 7030, 4.4.1.1: a symmetric key that both sides hold. No device shares one with this server.
            raise _impossible("No symmetric key is shared with this server.")
        offered = [name for oid, name in CIPHERS.items() if sealing.ciphers is None or oid in sealing.ciphers]
        if not offered:
            raise _impossible(f"Of the ciphers, one of {', '.join(CIPHERS.values())} is needed.")
        for public_key in self._known_keys():
            if sealing.identifier in _identifiers(public_key):
                if not can_receive(public_key):
                    raise _impossible("The key named signs only; an RSA or EC key is needed.")
                return Recipient(public_key, sealing.identifier), offered[0]
        raise _impossible("The identifier names neither the request's own key nor that of the certificate presented.")

    def _known_keys(self) -> list[CertificatePublicKeyTypes]:
        infos = [self.csr.spki_der]
        if self.peer.certificate_der is not None:
            infos.append(certificate_fields(self.peer.certificate_der).spki.whole)
        return [cast(CertificatePublicKeyTypes, load_spki(each)) for each in infos]  # of keys that certificates hold


def _impossible(why: str) -> Invalid:
    message = f"The new key cannot be encrypted as requested. {why}"
    return Invalid("sealing-impossible", message, "Or request none: TLS encrypts it.")


def _identifiers(public_key: CertificatePublicKeyTypes) -> tuple[bytes, ...]:
    """Subject key identifiers that a client may have computed: RFC 5280, 4.2.1.2 (1), and ours."""
    spki = spki_of(public_key)
    digest = hashlib.sha256(spki).digest()
    return x509.SubjectKeyIdentifier.from_public_key(public_key).digest, digest[:20], digest


def multipart(key_type: str, key: bytes, certificates: bytes) -> tuple[str, bytes]:
    """Content-Type and body of the response (RFC 7030, 4.4.2): the key, then the certificate, each in base64."""
    boundary = f"fleet-{secrets.token_hex(12)}"
    body = b""
    for content_type, content in ((key_type, key), (CERTS_ONLY, certificates)):
        head = f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        body += head.encode() + content + b"\r\n"
    return f"multipart/mixed; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
