"""The requests by which a device asks a CA for its first certificate, and where the certificate is in the answer.

EST (RFC 7030) as `fleet serve` speaks it, and step-ca's own JSON with a signed one-time token.
"""

import base64
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.keys import load_key
from fleet.wire.est import PKCS10, WELL_KNOWN, decode_body, decode_certs_only, encode_body

TOKEN_SECONDS = 3600  # longer than any run: tokens are made before the turn that uses them


class EnrollmentProtocol(Protocol):
    """One protocol, with all that a driver needs to authenticate."""

    def request(self, device: str, csr: bytes) -> bytes:
        """HTTP request, head and body, on a connection that the server closes after its answer."""
        ...

    def certificate(self, body: bytes) -> x509.Certificate:
        """The certificate in the body of a success. Raises: WireError, ValueError."""
        ...


@dataclass(frozen=True, slots=True)
class Est:
    """simpleenroll by a token, or, with `token` empty, by the TLS client's certificate."""

    model: str
    token: str

    def request(self, device: str, csr: bytes) -> bytes:
        headers = {"Content-Type": PKCS10, "Content-Transfer-Encoding": "base64"}
        if self.token:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{device}:{self.token}".encode()).decode()
        return _post(f"{WELL_KNOWN}/{self.model}/simpleenroll", headers, encode_body(csr))

    def certificate(self, body: bytes) -> x509.Certificate:
        return decode_certs_only(decode_body(body))[0]


@dataclass(frozen=True, slots=True)
class StepCa:
    """`POST /1.0/sign` with a token of a JWK provisioner; each token is for one device, once."""

    provisioner: str
    key: ec.EllipticCurvePrivateKey
    key_id: str
    audience: str

    def request(self, device: str, csr: bytes) -> bytes:
        pem = x509.load_der_x509_csr(csr).public_bytes(Encoding.PEM).decode()
        body = json.dumps({"csr": pem, "ott": self._token(device)}).encode()
        return _post("/1.0/sign", {"Content-Type": "application/json"}, body)

    def certificate(self, body: bytes) -> x509.Certificate:
        return x509.load_pem_x509_certificate(json.loads(body)["crt"].encode())

    def _token(self, device: str) -> str:
        """A JWT (RFC 7519) signed with ES256 (RFC 7518, 3.4)."""
        now = int(time.time())
        claims: dict[str, object] = {"iss": self.provisioner, "aud": self.audience, "sub": device, "sans": [device]}
        claims |= {"iat": now, "nbf": now, "exp": now + TOKEN_SECONDS, "jti": uuid.uuid4().hex}
        header = {"alg": "ES256", "typ": "JWT", "kid": self.key_id}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def protocol_of(config: Mapping[str, Any]) -> EnrollmentProtocol:
    """The protocol that a driver's configuration names; EST when it names none."""
    if config.get("protocol") == "step-ca":
        key = load_key(Path(config["provisioner_key"]))
        return StepCa(config["provisioner"], key, config["key_id"], config["audience"])
    return Est(config["model"], config["password"])


def _post(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
