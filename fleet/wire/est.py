"""Enrollment over Secure Transport (RFC 7030, RFC 8951): paths, media types, bodies and the certs-only message.

The three stock clients disagree on almost everything that the RFC leaves open: messages sent are what all of them
accept, messages accepted are what any of them sends.
"""

import functools
from dataclasses import dataclass

from cryptography import x509

from fleet.wire import armor
from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.parsing import library_errors
from fleet.wire.pkcs7 import split_signed_data

WELL_KNOWN = "/.well-known/est"
OPERATIONS = ("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs")
"""Last segment of a path; a label may never equal one (RFC 7030, 3.2.2)."""

# Exactly so: libest compares the text, space and all.
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
PKCS10 = "application/pkcs10"
CSRATTRS = "application/csrattrs"

BODY_SIZE_MAX = 64 * 1024  # base64; a chain of four ML-DSA-87 certificates takes 40 KB
CERTIFICATES_MAX = 16  # a chain of three, thrice over in a rollover, and slack
MEDIA_TYPE_SIZE_MAX = 256


def decode_body(body: bytes) -> bytes:
    """The DER in `body`, base64 with CR, LF, space and tab anywhere (RFC 8951, 3.1). Raises: TooLarge, Malformed."""
    if len(body) > BODY_SIZE_MAX:
        raise TooLarge(f"The body is larger than {BODY_SIZE_MAX} bytes.")
    if not body.strip():
        raise Malformed("The body is empty; base64 of DER is expected.")
    data = armor.unwrap(body)
    if data is None and body.lstrip().startswith(b"-----BEGIN"):
        how = "openssl req -outform DER | openssl base64"
        raise Malformed(f"The body is PEM. Send the base64 of the DER, without the BEGIN and END lines, as of: {how}.")
    if data is None:
        raise Malformed("The body is not base64.")
    return data


def encode_body(data: bytes, *, wrap: bool = False) -> bytes:
    """`data` as base64: on one line with no line end, or in lines of 64 for libest, each ended by LF."""
    return armor.lines(data) if wrap else armor.one_line(data)


def decode_certs_only(data: bytes) -> list[x509.Certificate]:
    """The certificates of a certs-only message, DER or BER, in its order. Raises: TooLarge, Malformed, Unsupported."""
    if len(data) > BODY_SIZE_MAX:
        raise TooLarge(f"The message is larger than {BODY_SIZE_MAX} bytes.")
    encoded, _ = split_signed_data(data, CERTIFICATES_MAX)
    if not encoded:
        raise Malformed("The message holds no certificate.")
    with library_errors("certificate in the message"):
        return [x509.load_der_x509_certificate(each) for each in encoded]


@dataclass(frozen=True, slots=True)
class MediaType:
    """A Content-Type: `name` and the parameters' names in lower case, values as sent."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()

    def parameter(self, name: str) -> str | None:
        return next((value for key, value in self.parameters if key == name), None)


def parse_media_type(header: str) -> MediaType:
    """The media type that a Content-Type header spells (RFC 9110, 8.3.1); quotes around a value are dropped.

    Raises: Malformed, TooLarge.
    """
    if len(header) > MEDIA_TYPE_SIZE_MAX:
        raise TooLarge("The content type is too long.")
    name, *rest = (part.strip(" \t") for part in header.split(";"))
    kind, slash, subtype = name.partition("/")
    if not (kind and slash and subtype and name.isascii() and name.isprintable()) or " " in name:
        raise Malformed("The content type is not of the form type/subtype.")
    parameters = []
    for part in filter(None, rest):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise Malformed("The content type has a parameter without a value.")
        parameters.append((key.lower(), value.strip('"')))
    return MediaType(name.lower(), tuple(parameters))


@functools.lru_cache(maxsize=64)  # clients send a handful of different ones
def is_pkcs10(header: str | None) -> bool:
    """Whether a request with this Content-Type carries a CSR (RFC 7030, 4.2.1)."""
    return _is(header, PKCS10) is not None


def is_certs_only(header: str | None) -> bool:
    """Whether an answer with this Content-Type carries certificates (RFC 7030, 4.1.3); servers leave smime-type out."""
    found = _is(header, "application/pkcs7-mime")
    return found is not None and (found.parameter("smime-type") or "certs-only").lower() == "certs-only"


def _is(header: str | None, name: str) -> MediaType | None:
    if header is None:
        return None
    try:
        found = parse_media_type(header)
    except (Malformed, TooLarge):
        return None
    return found if found.name == name else None
