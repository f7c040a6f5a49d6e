"""Blobs of the serial protocol: concatenated DER certificates, bounded by what a small board can hold."""

from collections.abc import Iterable

from cryptography import x509

from fleet.wire import der
from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.parsing import library_errors
from fleet.wire.serial.messages import BLOB_SIZE_MAX, CERTIFICATES_MAX


def join_certificates(certificates_der: Iterable[bytes]) -> bytes:
    """One blob of all certificates, in order.

    Raises: TooLarge over BLOB_SIZE_MAX octets or CERTIFICATES_MAX certificates, Malformed if there are none.
    """
    certificates = list(certificates_der)
    blob = b"".join(certificates)
    if not certificates:
        raise Malformed("A blob holds at least one certificate.")
    if len(certificates) > CERTIFICATES_MAX:
        raise TooLarge(f"A blob holds at most {CERTIFICATES_MAX} certificates, not {len(certificates)}.")
    if len(blob) > BLOB_SIZE_MAX:
        raise TooLarge(f"The certificates take {len(blob)} octets; a board holds at most {BLOB_SIZE_MAX}.")
    return blob


def split_certificates(blob: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in `blob`, in order, at least one. Raises: TooLarge, Malformed, Unsupported."""
    if len(blob) > BLOB_SIZE_MAX:
        raise TooLarge(f"A blob is at most {BLOB_SIZE_MAX} octets.")
    certificates: list[x509.Certificate] = []
    at = 0
    while at < len(blob):
        if len(certificates) == CERTIFICATES_MAX:
            raise TooLarge(f"A blob holds at most {CERTIFICATES_MAX} certificates.")
        element = der.read_element(blob, at, len(blob))
        with library_errors("certificate"):
            certificates.append(x509.load_der_x509_certificate(element.whole))
        at = element.end
    if not certificates:
        raise Malformed("A blob holds at least one certificate.")
    return tuple(certificates)
