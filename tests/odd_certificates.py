"""Certificates written by hand, in forms that TLS engines take and strict parsers do not."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.wire import der
from fleet.wire.der import encode_element, encode_oid, sequence

Key = ec.EllipticCurvePrivateKey

ECDSA_SHA256 = sequence(encode_oid("1.2.840.10045.4.3.2"))
ECDSA_WITH_NULL = sequence(encode_oid("1.2.840.10045.4.3.2"), b"\x05\0")
TRUE = b"\x01\x01\xff"
CA = sequence(TRUE)
CA_OF_ONE = sequence(b"\x01\x01\x01")
"""BER's TRUE: any octet but zero."""
FALSE_IN_FULL = sequence(b"\x01\x01\0")
BASIC, USAGE, EXTENDED, SAN = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"
CERT_SIGN, DIGITAL_SIGNATURE = b"\x03\x02\x02\x04", b"\x03\x02\x07\x80"
X400_NAME = sequence(encode_element(0xA3, sequence()))


def name(common_name: bytes, tag: int = 0x0C) -> bytes:
    pair = sequence(encode_oid("2.5.4.3"), encode_element(tag, common_name))
    return sequence(encode_element(der.SET, pair))


def extension(oid: str, value: bytes) -> bytes:
    return sequence(encode_oid(oid), encode_element(der.OCTET_STRING, value))


def certificate(
    key: Key,
    *extensions: bytes,
    subject: bytes = name(b"Maker"),
    begins: bytes = b"20250101000000Z",
    algorithm: bytes = ECDSA_SHA256,
    issuer: bytes | None = None,
    serial: int = 7,
) -> bytes:
    """DER, truly signed by `key` over its own public key."""
    tbs = sequence(
        encode_element(der.CONTEXT_0, b"\x02\x01\x02"),
        encode_element(0x02, serial.to_bytes(1, signed=True)),
        algorithm,
        issuer or subject,
        sequence(encode_element(0x18, begins), encode_element(0x18, b"20550101000000Z")),
        subject,
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        encode_element(0xA3, sequence(*extensions)) if extensions else b"",
    )
    signature = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return sequence(tbs, algorithm, encode_element(0x03, b"\0" + signature))
