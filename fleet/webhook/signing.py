"""HTTP Message Signatures (RFC 9421) of webhook requests, with ecdsa-p256-sha256; Content-Digest as in RFC 9530.

    headers = signer.headers("https://hooks.example/enroll", body, at)

The signature covers the method, the whole URL, the body's media type and digest, so a request signed for one URL is
invalid at another; `created` and `nonce` let a receiver reject old and replayed requests.
"""

import base64
import hashlib
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.wire.spki import spki_of

LABEL = "fleet"
TAG = "fleet-enrollment"
CONTENT_TYPE = "application/json"
COVERED = ("@method", "@target-uri", "content-type", "content-digest")
ALGORITHM = "ecdsa-p256-sha256"

_P256_OCTETS = 32


class Signer:
    """Signs with a P-256 key held in this process."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        spki = spki_of(key.public_key())
        self.key_id = hashlib.sha256(spki).hexdigest()
        """SHA-256 of the public key's DER SubjectPublicKeyInfo, in hex: `keyid` of the signature."""

    def public_pem(self) -> str:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def headers(self, url: str, body: bytes, at: datetime, nonce: str) -> dict[str, str]:
        """Headers for a POST of `body`, JSON, to `url`, signed at `at`. `nonce` is ASCII without quotes."""
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        components = " ".join(f'"{name}"' for name in COVERED)
        parameters = (
            f'({components});created={int(at.timestamp())};keyid="{self.key_id}";alg="{ALGORITHM}";nonce="{nonce}"'
            f';tag="{TAG}"'
        )
        values = ("POST", url, CONTENT_TYPE, digest)
        # RFC 9421, 2.5: one line a component, then the parameters, and no newline at the end.
        lines = [f'"{name}": {value}' for name, value in zip(COVERED, values, strict=True)]
        base = "\n".join([*lines, f'"@signature-params": {parameters}'])
        return {
            "Content-Type": CONTENT_TYPE,
            "Content-Digest": digest,
            "Signature-Input": f"{LABEL}={parameters}",
            "Signature": f"{LABEL}=:{base64.b64encode(self._signature(base.encode())).decode()}:",
        }

    def _signature(self, base: bytes) -> bytes:
        # RFC 9421, 3.3.4: r and s, 32 octets each, and not DER.
        r, s = decode_dss_signature(self._key.sign(base, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_OCTETS) + s.to_bytes(_P256_OCTETS)
