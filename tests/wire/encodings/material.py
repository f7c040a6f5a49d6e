"""A chain, its key, a request and a revocation list, for every test of files."""

import datetime
import subprocess
from shutil import which

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.wire.csr import build_csr
from fleet.wire.encodings.bundle import Bundle, Request
from fleet.wire.names import alt_name

NEEDS_OPENSSL = pytest.mark.skipif(which("openssl") is None, reason="needs openssl")
NEEDS_KEYTOOL = pytest.mark.skipif(which("keytool") is None, reason="needs keytool")

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
PASSWORD = b"correct horse"
WRONG = b"battery staple"


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    alt_names: tuple[str, ...] = (),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(days=30, minutes=30))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=not alt_names, path_length=None), critical=True)
    )
    if alt_names:
        names = x509.SubjectAlternativeName([alt_name(text) for text in alt_names])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


ROOT_KEY, ISSUING_KEY, KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
ROOT = _certificate("Root", ROOT_KEY, "Root", ROOT_KEY)
ISSUING = _certificate("Issuing", ISSUING_KEY, "Root", ROOT_KEY)
ALT_NAMES = ("DNS:pump-7.example", "HW:1.3.6.1.4.1.4128.1:0a0b0c")
LEAF = _certificate("pump-7", KEY, "Issuing", ISSUING_KEY, alt_names=ALT_NAMES)
CHAIN = (LEAF, ISSUING, ROOT)

REQUEST = Request(build_csr(KEY, (("2.5.4.3", "pump-7"),), ALT_NAMES))
REVOCATION_LIST = (
    x509.CertificateRevocationListBuilder()
    .issuer_name(_name("Issuing"))
    .last_update(NOW)
    .next_update(NOW + datetime.timedelta(days=7))
    .add_extension(x509.CRLNumber(4), critical=False)
    .sign(ISSUING_KEY, hashes.SHA256())
)

KEY_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
CHAIN_PEM = b"".join(each.public_bytes(Encoding.PEM) for each in CHAIN)
BUNDLE = Bundle(certificates=CHAIN, private_key=KEY)


def key_bytes(bundle: Bundle) -> bytes | None:
    """The key in one comparable form."""
    if bundle.private_key is None:
        return None
    return bundle.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def openssl(*arguments: str, data: bytes | None = None) -> bytes:
    """What `openssl` writes to standard output. It must succeed."""
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True).stdout
