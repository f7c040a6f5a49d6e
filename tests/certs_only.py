"""certs-only messages of certificate objects; the server joins the DER that it has."""

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire.pkcs7 import join_signed_data


def encode_certs_only(certificates: Iterable[x509.Certificate]) -> bytes:
    """DER of a certs-only CMC simple PKI response (RFC 5272, 4.1): a SignedData with no signer."""
    return join_signed_data(certificate.public_bytes(Encoding.DER) for certificate in certificates)
