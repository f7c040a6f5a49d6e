"""Files as people have them: dressed up, damaged, locked."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire import armor, der
from fleet.wire.encodings.bundle import (
    CERTIFICATES_MAX,
    KEY_SIZE_MAX,
    OBJECTS_MAX,
    PKCS12_SIZE_MAX,
    Bundle,
    Form,
    PasswordNeeded,
    WrongPassword,
)
from fleet.wire.encodings.keys import ROUNDS_MAX
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.writing import write
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from tests.wire.encodings.material import (
    BUNDLE,
    CHAIN,
    CHAIN_PEM,
    ISSUING,
    KEY,
    KEY_PEM,
    LEAF,
    PASSWORD,
    REQUEST,
    REVOCATION_LIST,
    ROOT,
    WRONG,
    key_bytes,
)

LEAF_PEM = LEAF.public_bytes(Encoding.PEM)
LOCKED_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD))
OLD_LOCKED_PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(PASSWORD))


def block(label: str, data: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + armor.lines(data) + f"-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        LEAF_PEM,
        LEAF_PEM.replace(b"\n", b"\r\n"),
        LEAF_PEM.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + LEAF_PEM,
        LEAF_PEM.decode().encode("utf-16"),
        b"subject=CN = pump-7\nissuer=x\n" + LEAF_PEM + b"\nVerify return code: 0 (ok)\n---\n",
        b"".join(b"    " + line + b"  \n" for line in LEAF_PEM.splitlines()),
        LEAF_PEM.rstrip(b"\n"),
        LEAF.public_bytes(Encoding.DER),
        armor.one_line(LEAF.public_bytes(Encoding.DER)),
        armor.lines(LEAF.public_bytes(Encoding.DER)).replace(b"\n", b"\r\n"),
        block("X509 CERTIFICATE", LEAF.public_bytes(Encoding.DER)),
    ],
    ids=["pem", "crlf", "cr", "bom", "utf-16", "words", "indented", "no-end", "der", "base64", "wrapped", "x509"],
)
def test_one_certificate_in_any_dress(data: bytes) -> None:
    assert read(data) == Bundle(certificates=(LEAF,))


def test_a_key_brings_its_certificate_to_the_front() -> None:
    data = b"".join(each.public_bytes(Encoding.PEM) for each in (ROOT, ISSUING, LEAF)) + KEY_PEM
    found = read(data)
    assert found.certificates == (LEAF, ROOT, ISSUING)
    assert key_bytes(found) == key_bytes(BUNDLE)


def test_a_set_comes_back_as_a_chain() -> None:
    assert read(write(Bundle(certificates=(ROOT, LEAF, ISSUING)), Form.P7B)).certificates == CHAIN


def test_certificates_alone_keep_their_order() -> None:
    data = ROOT.public_bytes(Encoding.PEM) + LEAF_PEM
    assert read(data).certificates == (ROOT, LEAF)


@pytest.mark.parametrize("shape", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("key", [KEY, rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"])
def test_keys_in_every_form(
    shape: PrivateFormat, encoding: Encoding, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    found = read(key.private_bytes(encoding, shape, NoEncryption()))
    assert key_bytes(found) == key_bytes(Bundle(private_key=key))


@pytest.mark.parametrize(
    "data",
    [
        LOCKED_PEM,
        OLD_LOCKED_PEM,
        KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD)),
    ],
    ids=["pem", "old", "der"],
)
def test_locked_keys(data: bytes) -> None:
    closed = read(data)
    assert closed.locked_keys == 1
    assert closed.private_key is None
    assert key_bytes(read(data, PASSWORD)) == key_bytes(BUNDLE)
    with pytest.raises(WrongPassword):
        read(data, WRONG)


def test_a_password_that_is_not_needed_does_no_harm() -> None:
    assert key_bytes(read(KEY_PEM + CHAIN_PEM, PASSWORD)) == key_bytes(BUNDLE)


def test_requests_and_revocation_lists() -> None:
    data = REQUEST.public_bytes(Encoding.PEM) + REVOCATION_LIST.public_bytes(Encoding.PEM)
    found = read(data.replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"))
    assert found.requests == (REQUEST,)
    assert found.revocation_lists == (REVOCATION_LIST,)
    assert read(REQUEST.public_bytes(Encoding.DER)).requests == (REQUEST,)
    assert read(REVOCATION_LIST.public_bytes(Encoding.DER)).revocation_lists == (REVOCATION_LIST,)


def test_a_trusted_certificate_of_openssl_s() -> None:
    found = read(block("TRUSTED CERTIFICATE", LEAF.public_bytes(Encoding.DER) + b"\x30\x02\x30\0"))
    assert found.certificates == (LEAF,)
    assert found.others == ("OpenSSL's trust settings",)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("TSS2 PRIVATE KEY", "TPM"),
        ("PKCS#11 PROVIDER URI", "PKCS#11 token"),
        ("OPENSSH PRIVATE KEY", "OpenSSH"),
        ("PUBLIC KEY", "public key"),
        ("DH PARAMETERS", "DH PARAMETERS"),
        ("WHATEVER ELSE", "WHATEVER ELSE"),
    ],
)
def test_blocks_that_are_named_and_not_read(label: str, words: str) -> None:
    found = read(block(label, b"\x30\0") + LEAF_PEM)
    assert found.certificates == (LEAF,)
    assert len(found.others) == 1
    assert words in found.others[0]


def test_curve_parameters_before_a_key_are_silent() -> None:
    found = read(block("EC PARAMETERS", der.encode_oid("1.2.840.10045.3.1.7")) + KEY_PEM)
    assert found.others == ()
    assert found.private_key is not None


def test_a_tpm_key_in_der() -> None:
    found = read(der.encode_element(der.SEQUENCE, der.encode_oid("2.23.133.10.1.3") + b"\x02\x01\x01"))
    assert "TPM" in found.others[0]


def test_a_public_key() -> None:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert read(spki) == Bundle(others=("a public key",))


@pytest.mark.parametrize(
    "data",
    [
        LEAF_PEM.replace(b"-----END", b"-----FIN"),
        LEAF_PEM.replace(b"END CERTIFICATE", b"END PUBLIC KEY"),
        LEAF_PEM[:200] + LEAF_PEM,
        LEAF_PEM.replace(b"\nMII", b"\nM*I"),
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        b"-----BEGIN -----\n-----END -----\n",
        LEAF_PEM.replace(b"\n", b"\\n"),
        block("PRIVATE KEY", b"\x30\0"),
        block("PKCS7", b"\x30\0"),
    ],
)
def test_damaged_pem(data: bytes) -> None:
    with pytest.raises(Malformed):
        read(data)


def test_the_error_names_the_line() -> None:
    line = len(LEAF_PEM.splitlines()) + 2
    with pytest.raises(Malformed, match=f"line {line} "):
        read(LEAF_PEM + b"\n" + LEAF_PEM.replace(b"\nMII", b"\nM*I"))


def test_two_keys_are_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(Unsupported, match="2 private keys"):
        read(KEY_PEM + other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_the_key_is_not_shown() -> None:
    assert "private_key" not in repr(BUNDLE)


def pkcs12_file(password: bytes | None, name: bytes | None = b"pump") -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return pkcs12.serialize_key_and_certificates(name, KEY, LEAF, [ROOT, ISSUING], encryption)


def test_pkcs12_is_put_in_order_and_keeps_names() -> None:
    found = read(pkcs12_file(PASSWORD), PASSWORD)
    assert found.certificates == CHAIN
    assert found.friendly_names == ("pump", None, None)
    assert key_bytes(found) == key_bytes(BUNDLE)
    assert read(pkcs12_file(PASSWORD, None), PASSWORD).friendly_names == ()


def test_pkcs12_and_its_passwords() -> None:
    with pytest.raises(PasswordNeeded):
        read(pkcs12_file(PASSWORD))
    with pytest.raises(WrongPassword):
        read(pkcs12_file(PASSWORD), WRONG)
    assert read(pkcs12_file(None)).certificates == CHAIN


def test_a_password_with_a_nul_is_refused() -> None:
    for data in (pkcs12_file(PASSWORD), LOCKED_PEM):
        with pytest.raises(Unsupported, match="NUL"):
            read(data, b"\0")


def test_pkcs12_in_base64() -> None:
    assert read(armor.lines(pkcs12_file(PASSWORD)), PASSWORD).certificates == CHAIN


def test_pkcs12_that_would_take_minutes_is_refused() -> None:
    data = pkcs12_file(PASSWORD)
    with pytest.raises(TooLarge, match="rounds"):
        read(with_rounds(data, ROUNDS_MAX + 1), PASSWORD)


def test_a_key_that_would_take_minutes_is_refused() -> None:
    locked = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD))
    with pytest.raises(TooLarge, match="rounds"):
        read(with_rounds(locked, ROUNDS_MAX + 1), PASSWORD)


def with_rounds(data: bytes, rounds: int) -> bytes:
    """`data` with its last INTEGER, a number of rounds in PKCS#8 and in PKCS#12, replaced; all lengths made anew."""
    outer = der.only_element(data, der.SEQUENCE)
    last = [each for each in der.walk(outer) if each.tag == 0x02][-1]

    return rebuilt(outer, last, der.encode_element(0x02, b"\0" + rounds.to_bytes(4)))


def rebuilt(element: der.Element, old: der.Element, new: bytes) -> bytes:
    """`element` encoded again with `new` in the place of `old`."""
    if element == old:
        return new
    if element.tag != der.SEQUENCE:
        return element.whole
    return der.encode_element(element.tag, b"".join(rebuilt(child, old, new) for child in der.children(element)))


def test_a_short_initialization_vector_is_no_crash() -> None:
    """The library's Rust half panics over it; here it is a damaged file like any other."""
    locked = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD))
    outer = der.only_element(locked, der.SEQUENCE)
    vector = [each for each in der.walk(outer) if each.tag == der.OCTET_STRING][1]
    assert len(vector.content) == 16
    with pytest.raises(WrongPassword):
        read(rebuilt(outer, vector, der.encode_element(der.OCTET_STRING, bytes(8))), PASSWORD)


def test_counts_and_sizes_are_capped() -> None:
    with pytest.raises(TooLarge):
        read(LEAF_PEM * (CERTIFICATES_MAX + 1))
    with pytest.raises(TooLarge):
        read(block("WHATEVER", b"x") * (OBJECTS_MAX + 1))
    with pytest.raises(TooLarge):
        read(block("PRIVATE KEY", bytes(KEY_SIZE_MAX + 1)))
    with pytest.raises(TooLarge):
        content = der.encode_element(der.SEQUENCE, bytes(PKCS12_SIZE_MAX))
        read(der.encode_element(der.SEQUENCE, b"\x02\x01\x03" + content))


FILES = {
    "pem": KEY_PEM + CHAIN_PEM,
    "locked": LOCKED_PEM,
    "old": OLD_LOCKED_PEM,
    "request": REQUEST.public_bytes(Encoding.DER),
    "list": REVOCATION_LIST.public_bytes(Encoding.DER),
    "p7b": write(BUNDLE, Form.P7B, drop=True),
    "certificate": LEAF.public_bytes(Encoding.DER),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_cut_at_every_byte(data: bytes) -> None:
    whole = read(data, PASSWORD)
    for at in range(len(data)):
        try:
            part = read(data[:at], PASSWORD)
        except WireError:
            continue
        # PEM may be cut between two blocks; what is read then is whole.
        assert data.startswith(b"-----BEGIN ")
        assert set(part.certificates) <= set(whole.certificates)


def test_pkcs12_cut_at_every_byte() -> None:
    data = pkcs12_file(None)
    for at in range(len(data)):
        with pytest.raises(WireError):
            read(data[:at])


@given(st.sampled_from(sorted(FILES)), st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_damage_anywhere_is_no_crash(name: str, at: int, junk: bytes) -> None:
    data = FILES[name]
    at %= len(data)
    for damaged in (data[:at] + junk + data[at:], data[:at] + junk + data[at + len(junk) :]):
        try:
            read(damaged)
        except WireError:
            continue


def test_a_certificate_whose_names_cannot_be_read_does_no_harm_in_a_set() -> None:
    """The library reads names late: they must not blow up while a set is put in order."""
    encoded = LEAF.public_bytes(Encoding.DER)
    damaged = encoded.replace(b"Issuing", b"Issu\xffng")
    assert x509.load_der_x509_certificate(damaged).fingerprint(hashes.SHA256())
    found = read(write(Bundle(certificates=(x509.load_der_x509_certificate(damaged), ROOT)), Form.P7B))
    assert len(found.certificates) == 2
