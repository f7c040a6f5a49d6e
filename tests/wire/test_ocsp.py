"""OCSP requests, whole and cut, with nonces of every size; responses as the library reads them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fleet.ca.authority import create_root
from fleet.wire.der import BIT_STRING, INTEGER, encode_element, encode_oid, sequence
from fleet.wire.errors import Malformed, TooLarge, WireError
from fleet.wire.ocsp import (
    NONCE_SIZE_MAX,
    REQUEST_SIZE_MAX,
    REQUESTS_MAX,
    SHA1,
    SHA256,
    CertId,
    Failure,
    Revoked,
    SingleResponse,
    Unrevoked,
    encode_failure,
    encode_response,
    encode_response_data,
    read_request,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
SERIAL = 0x40AB
NONCE = "1.3.6.1.5.5.7.48.1.2"


def library_request(nonce: bytes | None = None, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    algorithm = algorithm or hashes.SHA1()  # noqa: S303  what clients name a CA by
    size = algorithm.digest_size
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(b"n" * size, b"k" * size, SERIAL, algorithm)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def cert_id(oid: str = SHA1, serial: bytes = b"\x40\xab", parameters: bytes = b"\x05\x00") -> bytes:
    hashed = encode_element(4, b"n" * 20), encode_element(4, b"k" * 20)
    return sequence(sequence(encode_oid(oid), parameters), *hashed, encode_element(INTEGER, serial))


def extension(oid: str, value: bytes, critical: bytes = b"") -> bytes:
    return sequence(encode_oid(oid), critical, encode_element(4, value))


def request(*singles: bytes, extensions: bytes = b"", before: bytes = b"", behind: bytes = b"") -> bytes:
    listed = encode_element(0xA2, sequence(extensions)) if extensions else b""
    return sequence(sequence(before, sequence(*map(sequence, singles)), listed), behind)


def test_a_request_of_the_library() -> None:
    found = read_request(library_request(b"n" * 32))
    assert found.nonce == b"n" * 32
    [asked] = found.certificates
    assert asked.issuer == (SHA1, b"n" * 20, b"k" * 20)
    assert asked.serial == SERIAL
    [asked] = read_request(library_request(algorithm=hashes.SHA256())).certificates
    assert asked.issuer == (SHA256, b"n" * 32, b"k" * 32)


def test_a_hash_with_and_without_its_null() -> None:
    for parameters in (b"", b"\x05\x00"):
        encoded = cert_id(parameters=parameters)
        assert read_request(request(encoded)).certificates[0].encoded == encoded


def test_several_certificates_and_fields_that_are_left_unread() -> None:
    version = encode_element(0xA0, encode_element(INTEGER, b"\0"))
    name = encode_element(0xA1, encode_element(0x82, b"a.example"))
    signature = encode_element(0xA0, sequence(sequence(encode_oid(SHA1)), encode_element(BIT_STRING, b"\0s")))
    known = extension("1.3.6.1.5.5.7.48.1.4", sequence(encode_oid("1.3.6.1.5.5.7.48.1.1")))  # the types that it reads
    whole = request(
        cert_id(), cert_id(SHA256, b"\x01") + encode_element(0xA0, sequence(extension("1.2.3", b"?"))),
        extensions=known, before=version + name, behind=signature,
    )  # fmt: skip
    found = read_request(whole)
    assert [asked.serial for asked in found.certificates] == [SERIAL, 1]
    assert [asked.encoded for asked in found.certificates] == [cert_id(), cert_id(SHA256, b"\x01")]
    assert found.nonce is None
    [asked] = read_request(request(cert_id(serial=b"\xff" + b"x" * 19))).certificates
    assert asked.serial < 0, "a serial number that no CA gives is one to be unknown"


@pytest.mark.parametrize("size", [1, 15, 16, 32, 33, NONCE_SIZE_MAX])
def test_nonces_that_are_taken(size: int) -> None:
    assert read_request(library_request(b"x" * size)).nonce == b"x" * size


@pytest.mark.parametrize("size", [0, NONCE_SIZE_MAX + 1, 1000])
def test_nonces_that_are_refused(size: int) -> None:
    inner = encode_element(4, b"x" * size)
    with pytest.raises(Malformed, match="1 to 128 octets"):
        read_request(request(cert_id(), extensions=extension(NONCE, inner)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        b"\x30\x80\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        sequence(),
        sequence(sequence()),
        sequence(sequence(sequence())),
        request(cert_id()) + b"\0",
        request(cert_id(), behind=sequence()),
        request(cert_id(), before=encode_element(0xA0, encode_element(INTEGER, b"\1"))),
        request(cert_id(), before=encode_element(INTEGER, b"\0")),
        request(cert_id(), extensions=extension(NONCE, b"raw octets")),
        request(cert_id(), extensions=extension(NONCE, encode_element(4, b"a")) * 2),
        request(cert_id(), extensions=extension("1.2.3", b"", critical=b"\x01\x01\xff")),
        request(cert_id() + encode_element(0xA0, sequence(extension("1.2.3", b"", critical=b"\x01\x01\xff")))),
        request(cert_id() + cert_id()),
        sequence(sequence(sequence(encode_element(0x31, cert_id())))),
        request(b""),
        request(cert_id(parameters=b"\x04\x00")),
        request(cert_id(parameters=encode_element(5, b"x" * 999))),
        request(cert_id(serial=b"")),
        request(cert_id(serial=b"\x00\x01")),
        request(cert_id(serial=b"\xff\x80")),
        request(cert_id(serial=b"x" * 22)),
        request(sequence(sequence(), encode_element(4, b"n"), encode_element(4, b"k"), encode_element(INTEGER, b"\1"))),
        request(
            sequence(sequence(encode_oid(SHA1)), *(encode_element(4, b"n" * 65),) * 2, encode_element(INTEGER, b"\1"))
        ),
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_request(data)


def test_too_much() -> None:
    assert len(read_request(request(*(cert_id(),) * REQUESTS_MAX)).certificates) == REQUESTS_MAX
    with pytest.raises(TooLarge):
        read_request(request(*(cert_id(),) * (REQUESTS_MAX + 1)))
    with pytest.raises(TooLarge):
        read_request(b"\x30" * (REQUEST_SIZE_MAX + 1))


def test_cut_at_every_byte() -> None:
    whole = request(cert_id(), cert_id(SHA256), extensions=extension(NONCE, encode_element(4, b"n" * 32)))
    assert len(read_request(whole).certificates) == 2
    for end in range(len(whole)):
        with pytest.raises(WireError):
            read_request(whole[:end])


def test_responses_as_the_library_reads_them() -> None:
    good = SingleResponse(
        CertId(SHA1, b"n" * 20, b"k" * 20, SERIAL, cert_id()), Unrevoked.GOOD, NOW, NOW + timedelta(1)
    )
    states = (
        (Unrevoked.GOOD, ocsp.OCSPCertStatus.GOOD, None),
        (Unrevoked.UNKNOWN, ocsp.OCSPCertStatus.UNKNOWN, None),
        (Revoked(NOW), ocsp.OCSPCertStatus.REVOKED, None),
        (Revoked(NOW, 0), ocsp.OCSPCertStatus.REVOKED, None),
        (Revoked(NOW, 1), ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.key_compromise),
        (Revoked(NOW, 6), ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.certificate_hold),
    )
    ecdsa = sequence(encode_oid("1.2.840.10045.4.3.2"))
    certificate = create_root("Acme", NOW)[0].public_bytes(Encoding.DER)
    for status, expected, reason in states:
        data = encode_response_data(b"h" * 20, NOW, [replace(good, status=status)], b"nonce")
        encoded = encode_response(data, ecdsa, b"signature", certificate)
        found = ocsp.load_der_ocsp_response(encoded)
        assert found.tbs_response_bytes == data
        assert (found.certificate_status, found.revocation_reason) == (expected, reason)
        whole_seconds = NOW.replace(microsecond=0)
        assert found.revocation_time_utc == (whole_seconds if isinstance(status, Revoked) else None)
        assert (found.this_update_utc, found.next_update_utc) == (whole_seconds, whole_seconds + timedelta(1))
        assert (found.serial_number, found.responder_key_hash) == (SERIAL, b"h" * 20)
        assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"nonce"
    without = encode_response(encode_response_data(b"h" * 20, NOW, [good, good], None), ecdsa, b"s", certificate)
    both = ocsp.load_der_ocsp_response(without)
    assert len(list(both.responses)) == 2
    assert len(both.extensions) == 0


def test_failures_as_the_library_reads_them() -> None:
    for failure in Failure:
        assert ocsp.load_der_ocsp_response(encode_failure(failure)).response_status.value == failure
