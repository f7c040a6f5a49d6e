"""PKCS#7 SignedData without signers (RFC 5652, 5.1): reader and writer for its certificates and CRLs.

Only the envelope is walked; what it holds stays DER. BER is read too: BouncyCastle and Windows write indefinite
lengths.
"""

from collections.abc import Iterable

from fleet.wire import der
from fleet.wire.errors import Malformed, TooLarge, Unsupported

_SIGNED_DATA = "1.2.840.113549.1.7.2"
_OID_SIGNED_DATA = der.encode_oid(_SIGNED_DATA)
_HEAD = (
    bytes((0x02, 0x01, 0x01))  # version 1
    + der.encode_element(der.SET, b"")  # no digest algorithms
    + der.sequence(der.encode_oid("1.2.840.113549.1.7.1"))  # data, absent
)
_NO_SIGNERS = der.encode_element(der.SET, b"")


def split_signed_data(data: bytes, count_max: int) -> tuple[list[bytes], list[bytes]]:
    """DER of each certificate and of each CRL in the message, in its order; signatures are not looked at.

    Raises: TooLarge for more than `count_max` certificates or CRLs, Malformed, Unsupported.
    """
    content_info = list(der.children(der.only_element(data, der.SEQUENCE, ber=True), ber=True))
    if not content_info or content_info[0].tag != der.OBJECT_IDENTIFIER:
        raise Malformed("The message is not PKCS#7.")
    if der.dotted_oid(content_info[0].content) != _SIGNED_DATA:
        raise Unsupported("The PKCS#7 message is of another kind than SignedData.")
    if [part.tag for part in content_info[1:]] != [der.CONTEXT_0]:
        raise Malformed("The PKCS#7 message has no content.")
    wrapped = list(der.children(content_info[1], ber=True))
    if [part.tag for part in wrapped] != [der.SEQUENCE]:
        raise Malformed("The PKCS#7 content is not a SignedData.")
    certificates: list[bytes] = []
    lists: list[bytes] = []
    for part in der.children(wrapped[0], ber=True):
        if part.tag == der.CONTEXT_0:
            certificates += _encoded_each(part, "certificates", count_max - len(certificates))
        elif part.tag == der.CONTEXT_1:
            lists += _encoded_each(part, "revocation lists", count_max - len(lists))
    return certificates, lists


def _encoded_each(parent: der.Element, what: str, count_max: int) -> list[bytes]:
    found: list[bytes] = []
    for element in der.children(parent, ber=True):
        if element.tag != der.SEQUENCE:
            raise Unsupported(f"The PKCS#7 message holds {what} of another kind than X.509.")
        if len(found) == count_max:
            raise TooLarge(f"The PKCS#7 message holds too many {what}.")
        found.append(element.whole)
    return found


def join_signed_data(certificates: Iterable[bytes], lists: Iterable[bytes] = ()) -> bytes:
    """DER of a SignedData that holds these DER certificates and CRLs, and no signer.

    Both are SETs OF, so their order is the encoding's, not the caller's.
    """
    signed_data = _HEAD + _set_of(der.CONTEXT_0, certificates) + _set_of(der.CONTEXT_1, lists) + _NO_SIGNERS
    return der.sequence(_OID_SIGNED_DATA, der.encode_element(der.CONTEXT_0, der.sequence(signed_data)))


def _set_of(tag: int, encoded: Iterable[bytes]) -> bytes:
    """An IMPLICIT SET OF, left out when it is empty (both are OPTIONAL in SignedData)."""
    content = b"".join(sorted(encoded))  # X.690, 11.6
    return der.encode_element(tag, content) if content else b""
