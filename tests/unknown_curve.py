"""Certificates that can be read, and whose key cannot."""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

P256 = bytes.fromhex("06082a8648ce3d030107")
UNKNOWN = bytes.fromhex("06082a8648ce3d03017f")


def with_unknown_curve(certificate: x509.Certificate) -> x509.Certificate:
    """`certificate` with its P-256 key on a curve that nobody has defined; its signature verifies no more."""
    data = certificate.public_bytes(Encoding.DER)
    assert P256 in data
    return x509.load_der_x509_certificate(data.replace(P256, UNKNOWN))
