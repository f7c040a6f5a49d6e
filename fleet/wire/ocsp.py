"""OCSP (RFC 6960): requests read, responses encoded; the nonce is RFC 9654's.

The library reads and writes a single certificate's; a request may ask for several. Signatures of requests are left
unread: everybody is answered.
"""

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet.wire.der import (
    BIT_STRING,
    CONTEXT_0,
    CONTEXT_1,
    GENERALIZED_TIME,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    Element,
    children,
    dotted_oid,
    encode_element,
    encode_oid,
    only_element,
    sequence,
)
from fleet.wire.errors import Malformed, TooLarge

REQUEST_SIZE_MAX = 16 * 1024  # REQUESTS_MAX take 2,300 octets; a signed request holds a certificate or two besides
REQUESTS_MAX = 20  # certificates in one request: each costs a look-up
NONCE_SIZE_MAX = 128  # RFC 9654, 2.1: 1 to 128 octets
HASH_SIZE_MAX = 64  # SHA-512's
SERIAL_SIZE_MAX = 21  # 20 octets (RFC 5280, 4.1.2.2), and those that have one more for the sign

REQUEST_TYPE, RESPONSE_TYPE = "application/ocsp-request", "application/ocsp-response"
"""Media types (RFC 6960, A)."""

SHA1, SHA256 = "1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1"
SHA384, SHA512 = "2.16.840.1.101.3.4.2.2", "2.16.840.1.101.3.4.2.3"

_NONCE = "1.3.6.1.5.5.7.48.1.2"
_NONCE_OID = encode_oid(_NONCE)
_BASIC = encode_oid("1.3.6.1.5.5.7.48.1.1")
_BOOLEAN, _NULL, _ENUMERATED = 0x01, b"\x05\x00", 0x0A
_CONTEXT_2 = 0xA2
_HOLDERS = (SEQUENCE, CONTEXT_0, _CONTEXT_2)  # tags of what holds others in a request


class Failure(enum.IntEnum):
    """Why there is no answer (RFC 6960, 4.2.1)."""

    MALFORMED_REQUEST = 1
    TRY_LATER = 3
    UNAUTHORIZED = 6
    """Nobody here can answer for the CA that is named (RFC 5019, 2.2.3)."""


@dataclass(frozen=True, slots=True)
class CertId:
    """The certificate that is asked for (RFC 6960, 4.1.1): its issuer by hashes, and its serial number."""

    algorithm: str
    """The hash's OID."""
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    encoded: bytes
    """As it came: an answer repeats it."""

    @property
    def issuer(self) -> tuple[str, bytes, bytes]:
        return self.algorithm, self.issuer_name_hash, self.issuer_key_hash


def cert_id(issuer: tuple[str, bytes, bytes], serial: int) -> CertId:
    """The id of a certificate, for an answer that nobody has asked for."""
    algorithm, name_hash, key_hash = issuer
    encoded = sequence(
        sequence(encode_oid(algorithm), _NULL),
        encode_element(OCTET_STRING, name_hash),
        encode_element(OCTET_STRING, key_hash),
        encode_element(INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1)),
    )
    return CertId(algorithm, name_hash, key_hash, serial, encoded)


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """What a client asks."""

    certificates: tuple[CertId, ...]
    nonce: bytes | None


def read_request(data: bytes) -> OcspRequest:
    """The request in `data`, DER.

    Raises: Malformed, also for a nonce of no or more than 128 octets (RFC 9654, 2.1) and for a critical extension that
    is not known. TooLarge.
    """
    if len(data) > REQUEST_SIZE_MAX:
        raise TooLarge(f"An OCSP request is larger than {REQUEST_SIZE_MAX} bytes.")
    # A signature may follow.
    tbs, *_ = _parts(only_element(data, SEQUENCE), (SEQUENCE,), (SEQUENCE, CONTEXT_0))
    fields = _fields(tbs)
    version, requests = fields.get(CONTEXT_0), fields.get(SEQUENCE)
    if version is not None and _parts(version, (INTEGER,))[0].content != b"\0":
        raise Malformed("An OCSP request is of an unknown version.")
    if requests is None:
        raise Malformed("An OCSP request asks for no certificate.")
    asked: list[CertId] = []
    for request in children(requests):
        if len(asked) >= REQUESTS_MAX:
            raise TooLarge(f"An OCSP request asks for more than {REQUESTS_MAX} certificates.")
        asked.append(_read_single(request))
    if not asked:
        raise Malformed("An OCSP request asks for no certificate.")
    return OcspRequest(tuple(asked), _read_extensions(fields.get(_CONTEXT_2)))


def _fields(tbs: Element) -> dict[int, Element]:
    """Fields of the TBSRequest, by tag: version [0], requestorName [1], requestList, requestExtensions [2]."""
    order = (CONTEXT_0, CONTEXT_1, SEQUENCE, _CONTEXT_2)
    found = list(children(tbs))
    tags = [each.tag for each in found]
    if tags != [tag for tag in order if tag in tags]:
        raise Malformed("An OCSP request is badly formed.")
    return dict(zip(tags, found, strict=True))


def _read_single(request: Element) -> CertId:
    certificate, *extensions = _parts(request, (SEQUENCE,), (SEQUENCE, CONTEXT_0))
    for each in extensions:
        _read_extensions(each)
    algorithm, name_hash, key_hash, serial = _parts(certificate, (SEQUENCE, OCTET_STRING, OCTET_STRING, INTEGER))
    oid, *parameters = _parts(algorithm, (OBJECT_IDENTIFIER,), (OBJECT_IDENTIFIER, _NULL[0]))
    if any(each.content for each in parameters) or max(len(name_hash.content), len(key_hash.content)) > HASH_SIZE_MAX:
        raise Malformed("A certificate's id is badly formed.")
    number = int.from_bytes(serial.content, signed=True)
    # X.690, 8.3.2: as few octets as can be. The size of a negative one is that of its complement.
    size = (number if number >= 0 else ~number).bit_length() // 8 + 1
    if len(serial.content) != size or size > SERIAL_SIZE_MAX:
        raise Malformed("A serial number is longer than any certificate's, or badly formed.")
    return CertId(dotted_oid(oid.content), name_hash.content, key_hash.content, number, certificate.whole)


def _read_extensions(explicit: Element | None) -> bytes | None:
    """The nonce among the extensions in a field with an explicit tag."""
    nonces = []
    listed = _parts(explicit, (SEQUENCE,))[0] if explicit is not None else None
    for extension in children(listed) if listed is not None else ():
        parts = _parts(extension, (OBJECT_IDENTIFIER, OCTET_STRING), (OBJECT_IDENTIFIER, _BOOLEAN, OCTET_STRING))
        if dotted_oid(parts[0].content) == _NONCE:
            nonces.append(only_element(parts[-1].content, OCTET_STRING).content)
        elif len(parts) == 3 and any(parts[1].content):
            raise Malformed("A critical extension of an OCSP request is not known.")
    if len(nonces) > 1 or not all(1 <= len(nonce) <= NONCE_SIZE_MAX for nonce in nonces):
        raise Malformed(f"A nonce has 1 to {NONCE_SIZE_MAX} octets, and there is one at most (RFC 9654, 2.1).")
    return nonces[0] if nonces else None


def _parts(parent: Element, *shapes: tuple[int, ...]) -> list[Element]:
    """The elements in `parent`, whose tags are one of `shapes`."""
    found = list(children(parent))
    if parent.tag not in _HOLDERS or tuple(each.tag for each in found) not in shapes:
        raise Malformed("An OCSP request is badly formed.")
    return found


@dataclass(frozen=True, slots=True)
class Revoked:
    """Since when, and the CRLReason (RFC 5280, 5.3.1); None: none was given."""

    at: datetime
    reason: int | None = None


class Unrevoked(enum.Enum):
    """The other states of a certificate (RFC 6960, 2.2), by their tags."""

    GOOD = 0x80
    UNKNOWN = 0x82


@dataclass(frozen=True, slots=True)
class SingleResponse:
    """The state of one certificate."""

    certificate: CertId
    status: Revoked | Unrevoked
    this_update: datetime
    next_update: datetime


def encode_response_data(
    key_hash: bytes, produced_at: datetime, responses: Sequence[SingleResponse], nonce: bytes | None
) -> bytes:
    """The ResponseData to be signed; `key_hash` is SHA-1 of the responder's public key, its id (RFC 6960, 4.2.1)."""
    extensions = b""
    if nonce is not None:
        extension = sequence(_NONCE_OID, encode_element(OCTET_STRING, encode_element(OCTET_STRING, nonce)))
        extensions = encode_element(CONTEXT_1, sequence(extension))
    return sequence(
        encode_element(_CONTEXT_2, encode_element(OCTET_STRING, key_hash)),
        _time(produced_at),
        sequence(*map(_encode_single, responses)),
        extensions,
    )


def _encode_single(single: SingleResponse) -> bytes:
    status = single.status
    if isinstance(status, Unrevoked):
        encoded = encode_element(status.value, b"")
    else:
        # RFC 5280, 5.3.1: unspecified (0) is left out
        reason = (
            encode_element(CONTEXT_0, encode_element(_ENUMERATED, bytes((status.reason,)))) if status.reason else b""
        )
        encoded = encode_element(CONTEXT_1, _time(status.at) + reason)
    return sequence(
        single.certificate.encoded,
        encoded,
        _time(single.this_update),
        encode_element(CONTEXT_0, _time(single.next_update)),
    )


def encode_response(data: bytes, algorithm: bytes, signature: bytes, responder: bytes) -> bytes:
    """The whole response: `data` as signed by the certificate `responder`, DER, with the AlgorithmIdentifier given."""
    certificates = encode_element(CONTEXT_0, sequence(responder))
    basic = sequence(data, algorithm, encode_element(BIT_STRING, b"\0" + signature), certificates)
    content = encode_element(CONTEXT_0, sequence(_BASIC, encode_element(OCTET_STRING, basic)))
    return sequence(encode_element(_ENUMERATED, b"\0"), content)


def encode_failure(failure: Failure) -> bytes:
    """The response that there is no answer."""
    return sequence(encode_element(_ENUMERATED, bytes((failure,))))


def _time(at: datetime) -> bytes:
    """A GeneralizedTime in whole seconds."""
    return _second(at.astimezone(UTC).replace(microsecond=0))


@functools.lru_cache(maxsize=1024)  # answers of one second share theirs
def _second(at: datetime) -> bytes:
    return encode_element(GENERALIZED_TIME, at.strftime("%Y%m%d%H%M%SZ").encode())
