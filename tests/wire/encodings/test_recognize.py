"""Every kind of file is known by its content, cut anywhere or dressed up."""

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire import armor, der
from fleet.wire.encodings.bundle import INPUT_SIZE_MAX, Form
from fleet.wire.encodings.recognize import Content, recognize
from fleet.wire.encodings.writing import write
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from tests.wire.encodings.material import BUNDLE, KEY, LEAF, PASSWORD, REQUEST, REVOCATION_LIST

RSA = rsa.generate_private_key(65537, 2048)
DSA = dsa.generate_private_key(1024)  # noqa: S505  its shape alone is looked at, and of this size it is made fast
LEAF_DER = LEAF.public_bytes(Encoding.DER)
TRADITIONAL = PrivateFormat.TraditionalOpenSSL

SAMPLES = {
    "certificate": (LEAF_DER, Content.CERTIFICATE),
    "request": (REQUEST.public_bytes(Encoding.DER), Content.REQUEST),
    "revocation list": (REVOCATION_LIST.public_bytes(Encoding.DER), Content.REVOCATION_LIST),
    "pkcs7": (write(BUNDLE, Form.P7B, drop=True), Content.PKCS7),
    "pkcs12": (write(BUNDLE, Form.P12, PASSWORD), Content.PKCS12),
    "pkcs8": (KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), Content.PRIVATE_KEY),
    "sec1": (KEY.private_bytes(Encoding.DER, TRADITIONAL, NoEncryption()), Content.PRIVATE_KEY),
    "pkcs1": (RSA.private_bytes(Encoding.DER, TRADITIONAL, NoEncryption()), Content.PRIVATE_KEY),
    "dsa": (DSA.private_bytes(Encoding.DER, TRADITIONAL, NoEncryption()), Content.PRIVATE_KEY),
    "public": (
        KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        Content.PUBLIC_KEY,
    ),
    "tpm": (
        der.encode_element(der.SEQUENCE, der.encode_oid("2.23.133.10.1.3") + b"\x02\x01\x01"),
        Content.TPM_KEY,
    ),
    "pem": (LEAF.public_bytes(Encoding.PEM), Content.PEM),
    "base64": (armor.lines(LEAF_DER), Content.BASE64),
}


@pytest.mark.parametrize(("data", "expected"), SAMPLES.values(), ids=SAMPLES.keys())
def test_every_kind(data: bytes, expected: Content) -> None:
    assert recognize(data) is expected


@pytest.mark.parametrize("data", [data for data, _ in SAMPLES.values()], ids=SAMPLES.keys())
def test_cut_at_every_byte_it_is_not_something_else(data: bytes) -> None:
    expected = recognize(data)
    for at in range(len(data)):
        try:
            found = recognize(data[:at])
        except WireError:
            continue
        # PEM shows by its first line; of base64 only the last line end may be missing.
        assert found is expected
        assert found is Content.PEM or data[:at].strip() == data.strip()


def test_a_version_1_certificate() -> None:
    assert recognize(_version_1()) is Content.CERTIFICATE


def _version_1() -> bytes:
    """`LEAF` with its version and extensions taken out; the signature no longer fits, the shape does."""
    body, algorithm, signature = der.children(der.only_element(LEAF_DER, der.SEQUENCE))
    parts = [part.whole for part in der.children(body) if part.tag not in (0xA0, 0xA3)]
    return der.encode_element(
        der.SEQUENCE, der.encode_element(der.SEQUENCE, b"".join(parts)) + algorithm.whole + signature.whole
    )


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"Some words first.\r\n\r\n", b"\n\n"])
def test_pem_behind_a_mark_or_words(mark: bytes) -> None:
    assert recognize(mark + LEAF.public_bytes(Encoding.PEM)) is Content.PEM


@pytest.mark.parametrize("codec", ["utf-16", "utf-8-sig"])
def test_pem_as_windows_redirects_it(codec: str) -> None:
    assert recognize(LEAF.public_bytes(Encoding.PEM).decode().encode(codec)) is Content.PEM


@pytest.mark.parametrize(
    "data", [b"", b" \r\n", b"hello", b"\0\0", b"\xff\xfe\0", b"0\0", b"\x30\x03\x02\x01\x00", b"\x31\0"]
)
def test_what_is_nothing(data: bytes) -> None:
    with pytest.raises(Malformed):
        recognize(data)


def test_bytes_after_der_are_told() -> None:
    with pytest.raises(Malformed, match="after its end"):
        recognize(LEAF_DER + b"\n")


def test_a_java_keystore_is_named() -> None:
    with pytest.raises(Unsupported, match="keytool"):
        recognize(b"\xfe\xed\xfe\xed\0\0\0\2")


def test_the_size_is_capped_first() -> None:
    with pytest.raises(TooLarge):
        recognize(bytes(INPUT_SIZE_MAX + 1))


@given(st.binary(max_size=100))
def test_any_bytes_are_something_or_a_wire_error(data: bytes) -> None:
    try:
        assert recognize(data) in Content
    except WireError:
        return
