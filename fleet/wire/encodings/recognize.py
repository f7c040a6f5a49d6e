"""What a file holds, by its content alone: names and suffixes lie.

The kind of a DER file is recognized by the tags of its first two levels, which is enough: each kind begins in its own
way.
"""

import enum

from fleet.wire import armor, der
from fleet.wire.encodings.bundle import INPUT_SIZE_MAX
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.text import UTF8_MARK, UTF16_MARKS


class Content(enum.StrEnum):
    """Each value is how a person would call it."""

    PEM = "PEM"
    BASE64 = "base64 of DER without a heading"
    CERTIFICATE = "DER certificate"
    REQUEST = "DER certificate request"
    REVOCATION_LIST = "DER certificate revocation list"
    PKCS7 = "PKCS#7"
    PKCS12 = "PKCS#12"
    PRIVATE_KEY = "DER private key"
    ENCRYPTED_KEY = "DER encrypted private key"
    PUBLIC_KEY = "DER public key"
    TPM_KEY = "DER key held by a TPM"


PEM_BEGIN = b"-----BEGIN "

_TPM_KEY_ARC = "2.23.133.10.1."
_JAVA_MAGIC = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")


def cleaned(data: bytes) -> bytes:
    """`data` without a byte order mark; UTF-16, as PowerShell redirects text, turned into ASCII.

    Raises: TooLarge over INPUT_SIZE_MAX, Malformed.
    """
    if len(data) > INPUT_SIZE_MAX:
        raise TooLarge(f"The file is larger than {INPUT_SIZE_MAX // (1024 * 1024)} MiB.")
    if data.startswith(UTF8_MARK):
        return data[len(UTF8_MARK) :]
    if data.startswith(UTF16_MARKS) and data[:4] not in _JAVA_MAGIC:
        try:
            return data.decode("utf-16").encode("ascii", "replace")
        except UnicodeDecodeError:
            raise Malformed("The file looks like UTF-16 text, but is not.") from None
    return data


def recognize(data: bytes) -> Content:
    """What `data` holds, a byte order mark aside.

    Raises: TooLarge over INPUT_SIZE_MAX, Malformed when it is nothing known here, Unsupported for Java's own keystores.
    """
    data = cleaned(data)
    if not data.strip():
        raise Malformed("The file is empty.")
    if data[:4] in _JAVA_MAGIC:
        raise Unsupported(
            "The file is a Java keystore of the old kind; turn it into PKCS#12 with"
            " 'keytool -importkeystore -deststoretype PKCS12'."
        )
    if _is_whole_sequence(data):
        return _recognize_der(data)
    if PEM_BEGIN in data:
        return Content.PEM
    if _is_whole_sequence(armor.unwrap(data) or b""):
        return Content.BASE64
    if data[0] == der.SEQUENCE:
        raise Malformed("The file begins like DER, but is cut off or has bytes after its end.")
    raise Malformed("The file is no certificate, request, key, PKCS#7 or PKCS#12 in any form known here.")


def _is_whole_sequence(data: bytes) -> bool:
    try:
        der.only_element(data, der.SEQUENCE, ber=True)
    except WireError:
        return False
    return True


def _recognize_der(data: bytes) -> Content:
    parts = list(der.children(der.only_element(data, der.SEQUENCE, ber=True), ber=True))
    tags = tuple(part.tag for part in parts)
    match tags:
        case (der.SEQUENCE, der.SEQUENCE, der.BIT_STRING):
            return _recognize_signed(parts[0])
        case (der.OBJECT_IDENTIFIER, *_):
            is_tpm = der.dotted_oid(parts[0].content).startswith(_TPM_KEY_ARC)
            return Content.TPM_KEY if is_tpm else Content.PKCS7
        case (der.INTEGER, der.SEQUENCE, der.OCTET_STRING, *_):
            return Content.PRIVATE_KEY  # PKCS#8: version, algorithm, key
        case (der.INTEGER, der.SEQUENCE, *_):
            return Content.PKCS12  # version, safe, and mostly a MAC
        case (der.INTEGER, der.OCTET_STRING, *_) | (der.INTEGER, der.INTEGER, *_):
            return Content.PRIVATE_KEY  # SEC 1, or PKCS#1 and DSA: rows of integers
        case (der.SEQUENCE, der.OCTET_STRING):
            return Content.ENCRYPTED_KEY
        case (der.SEQUENCE, der.BIT_STRING):
            return Content.PUBLIC_KEY
    raise Malformed("The file is DER, but no certificate, request, key, PKCS#7 or PKCS#12.")


def _recognize_signed(body: der.Element) -> Content:
    """A certificate, a request and a CRL are all SIGNED{...} (X.509): the tags of the body tell which."""
    tags = tuple(part.tag for part in der.children(body))
    match tags:
        case (der.CONTEXT_0, *_):
            return Content.CERTIFICATE
        case (der.INTEGER, der.SEQUENCE, der.SEQUENCE) | (der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.CONTEXT_0):
            return Content.REQUEST
        case (der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.UTC_TIME | der.GENERALIZED_TIME, *_):
            return Content.REVOCATION_LIST
        case (der.SEQUENCE, der.SEQUENCE, der.UTC_TIME | der.GENERALIZED_TIME, *_):
            return Content.REVOCATION_LIST  # version 1 leaves its number out
        case (der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, *_):
            return Content.CERTIFICATE  # version 1 leaves its number out
    raise Malformed("The file is signed DER, but no certificate, request or revocation list.")
