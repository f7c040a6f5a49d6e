"""Certificate requests: what is taken, what is refused and why, and names that compare with a certificate's."""

import datetime
import hashlib
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import which

import pytest
from asn1crypto import csr as foreign
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire import der
from fleet.wire.csr import ATTRIBUTES_MAX, CSR_SIZE_MAX, build_csr, decode_csr
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WeakKey, WireError
from fleet.wire.keys import key_type_of
from fleet.wire.names import ALT_NAMES_MAX, alt_name, alt_name_text, names_of_certificate

NEEDS_OPENSSL = pytest.mark.skipif(which("openssl") is None, reason="needs openssl")

KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = (("2.5.4.3", "pump-7"), ("2.5.4.5", "SN0001"))
ALT_NAMES = ("DNS:pump-7.example", "IP:192.0.2.7", "IP:2001:db8::7", "URI:urn:dev:7", "HW:1.3.6.1.4.1.4128.1:0a0b0c")
REQUEST = build_csr(KEY, SUBJECT, ALT_NAMES, "binding")


def signed(
    key: CertificateIssuerPrivateKeyTypes,
    name: x509.Name | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (),
    attributes: tuple[tuple[str, bytes], ...] = (),
) -> bytes:
    """A request made by the library alone, past every check of `build_csr`."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(name or x509.Name([]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    for oid, value in attributes:
        builder = builder.add_attribute(x509.ObjectIdentifier(oid), value)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def hand_signed(body: bytes) -> bytes:
    """A request around any CertificationRequestInfo, with a true ECDSA signature."""
    algorithm = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2"))
    signature = KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    return der.encode_element(der.SEQUENCE, body + algorithm + der.encode_element(0x03, b"\0" + signature))


def request_info(name: bytes = b"\x30\0", attributes: bytes = b"") -> bytes:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der.encode_element(der.SEQUENCE, b"\x02\x01\0" + name + spki + der.encode_element(0xA0, attributes))


def test_everything_comes_back_as_it_was_asked_for() -> None:
    request = decode_csr(REQUEST)
    assert request.der == REQUEST
    assert request.subject == SUBJECT
    assert request.alt_names == ALT_NAMES
    assert request.key_type == "EC-P256"
    assert request.challenge_password == "binding"
    assert request.spki_der == KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert request.key_sha256 == hashlib.sha256(request.spki_der).digest()


def test_the_challenge_password_is_not_shown() -> None:
    assert "binding" not in repr(decode_csr(REQUEST))


def test_a_foreign_decoder_reads_what_we_build() -> None:
    info = foreign.CertificationRequest.load(REQUEST, strict=True)["certification_request_info"]
    assert info["subject"].native == {"common_name": "pump-7", "serial_number": "SN0001"}
    kinds = {attribute["type"].native for attribute in info["attributes"]}
    assert kinds == {"extension_request", "challenge_password"}


@pytest.mark.parametrize(
    ("make_key", "expected"),
    [
        (partial(ec.generate_private_key, ec.SECP384R1()), "EC-P384"),
        (partial(ec.generate_private_key, ec.SECP521R1()), "EC-P521"),
        (partial(rsa.generate_private_key, 65537, 2048), "RSA-2048+"),
        (ed25519.Ed25519PrivateKey.generate, "Ed25519"),
        (ed448.Ed448PrivateKey.generate, "Ed448"),
        (mldsa.MLDSA44PrivateKey.generate, "ML-DSA-44"),
        (mldsa.MLDSA65PrivateKey.generate, "ML-DSA-65"),
        (mldsa.MLDSA87PrivateKey.generate, "ML-DSA-87"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_key_signs_and_verifies(
    make_key: Callable[[], CertificateIssuerPrivateKeyTypes], expected: str
) -> None:
    data = build_csr(make_key(), SUBJECT, ALT_NAMES)
    assert decode_csr(data).key_type == expected
    flipped = bytearray(data)
    flipped[-1] ^= 1
    with pytest.raises((BadSignature, Malformed)):
        decode_csr(bytes(flipped))


def test_rsa_pss_signatures_are_taken() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    data = builder.sign(key, hashes.SHA256(), rsa_padding=pss).public_bytes(Encoding.DER)
    assert decode_csr(data).key_type == "RSA-2048+"


def test_cut_at_every_byte() -> None:
    for at in range(len(REQUEST)):
        with pytest.raises(WireError):
            decode_csr(REQUEST[:at])
    with pytest.raises(Malformed):
        decode_csr(REQUEST + b"\0")


def test_every_flipped_byte_is_refused() -> None:
    for at in range(len(REQUEST)):
        damaged = bytearray(REQUEST)
        damaged[at] ^= 0x55
        with pytest.raises(WireError):
            decode_csr(bytes(damaged))


def test_size_is_capped_before_parsing() -> None:
    with pytest.raises(TooLarge):
        decode_csr(bytes(CSR_SIZE_MAX + 1))


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_csr(data)


@given(st.integers(0, len(REQUEST) - 1), st.sampled_from([b"\x30\0", b"\x31\0", b"\x05\0", b"\x04\0", b"\xa0\0"]))
def test_an_empty_set_or_sequence_anywhere_is_no_crash(at: int, empty: bytes) -> None:
    for data in (REQUEST[:at] + empty + REQUEST[at:], REQUEST[:at] + empty + REQUEST[at + 2 :]):
        if data != REQUEST:
            with pytest.raises(WireError):
                decode_csr(data)


def extension_request(*extensions: bytes) -> bytes:
    content = der.encode_element(der.SEQUENCE, b"".join(extensions))
    return der.encode_element(
        der.SEQUENCE, der.encode_oid("1.2.840.113549.1.9.14") + der.encode_element(der.SET, content)
    )


def extension(oid: str, value: bytes) -> bytes:
    return der.encode_element(der.SEQUENCE, der.encode_oid(oid) + der.encode_element(der.OCTET_STRING, value))


SAN, EKU, KEY_USAGE = "2.5.29.17", "2.5.29.37", "2.5.29.15"


@pytest.mark.parametrize(
    "attributes",
    [
        extension_request(extension(SAN, b"\x30\0")),
        extension_request(extension(EKU, b"\x30\0")) + extension_request(extension(SAN, b"\x30\0")),
        extension_request(extension(SAN, b"")),
        extension_request(extension(SAN, b"\x30\x02\x82\0"), extension(SAN, b"\x30\x02\x82\0")),
        der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.9.14") + der.encode_element(der.SET, b"")),
        der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.9.7") + der.encode_element(der.SET, b"")),
        der.encode_element(der.SEQUENCE, b""),
    ],
    ids=["san", "twice", "san-nothing", "same-twice", "no-extensions", "no-challenge", "attribute"],
)
def test_true_signatures_over_empty_things(attributes: bytes) -> None:
    with pytest.raises(WireError):
        decode_csr(hand_signed(request_info(attributes=attributes)))


def test_an_empty_rdn_is_refused() -> None:
    with pytest.raises(WireError):
        decode_csr(hand_signed(request_info(name=b"\x30\x02\x31\0")))


def test_two_values_in_one_rdn_are_refused() -> None:
    rdn = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.SERIAL_NUMBER, "b")]
    )
    with pytest.raises(Unsupported, match="RDN"):
        decode_csr(signed(KEY, x509.Name([rdn])))


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\u202eb", "a\u200bb"])
def test_control_characters_in_the_subject_are_refused(value: str) -> None:
    with pytest.raises(Malformed, match="control character"):
        decode_csr(signed(KEY, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])))


@pytest.mark.parametrize("value", ["a.example\0.evil", "a\n.example"])
def test_control_characters_in_alternative_names_are_shown_as_octets(value: str) -> None:
    [name] = decode_csr(signed(KEY, extensions=(x509.SubjectAlternativeName([x509.DNSName(value)]),))).alt_names
    assert name == f"#{der.encode_element(0x82, value.encode()).hex()}"


def test_counts_are_capped() -> None:
    names = [x509.DNSName(f"n{number}") for number in range(ALT_NAMES_MAX + 1)]
    with pytest.raises(TooLarge):
        decode_csr(signed(KEY, extensions=(x509.SubjectAlternativeName(names),)))
    assert len(decode_csr(signed(KEY, extensions=(x509.SubjectAlternativeName(names[1:]),))).alt_names) == ALT_NAMES_MAX
    with pytest.raises(TooLarge):
        decode_csr(signed(KEY, x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "u")] * 17)))
    attributes = tuple((f"1.3.6.1.4.1.1.{number}", b"x") for number in range(ATTRIBUTES_MAX + 1))
    with pytest.raises(TooLarge):
        decode_csr(signed(KEY, attributes=attributes))


@pytest.mark.parametrize(
    ("make_key", "error"),
    [
        (partial(rsa.generate_private_key, 65537, 1024), WeakKey),
        (partial(rsa.generate_private_key, 3, 2048), WeakKey),
        (partial(ec.generate_private_key, ec.SECP224R1()), WeakKey),
        (partial(ec.generate_private_key, ec.SECP256K1()), Unsupported),
        (partial(dsa.generate_private_key, 2048), WeakKey),
    ],
    ids=["RSA-1024", "RSA-e3", "P-224", "secp256k1", "DSA"],
)
def test_weak_and_unknown_keys_are_refused(
    make_key: Callable[[], CertificateIssuerPrivateKeyTypes], error: type[WireError]
) -> None:
    key = make_key()
    with pytest.raises(error):
        decode_csr(signed(key))


def test_rsa_keys_over_the_limit_are_refused_before_their_signature_is_verified() -> None:
    numbers = rsa.RSAPublicNumbers(65537, (1 << 8200) + 1)
    with pytest.raises(Unsupported, match="too long"):
        key_type_of(numbers.public_key())


@NEEDS_OPENSSL
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime192v1"), WeakKey),
        (
            (
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-pkeyopt", "ec_param_enc:explicit"),
            ),
            WireError,
        ),
        (("-newkey", "rsa:2048", "-sha1"), Unsupported),
        (("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-sha1"), Unsupported),
    ],
    ids=["P-192", "explicit", "RSA-SHA1", "EC-SHA1"],
)
def test_what_openssl_makes_and_we_refuse(tmp_path: Path, arguments: tuple[str, ...], error: type[WireError]) -> None:
    with pytest.raises(error):
        decode_csr(openssl_request(tmp_path, *arguments))


def openssl_request(directory: Path, *arguments: str) -> bytes:
    out = directory / "request.der"
    done = subprocess.run(
        [
            *("openssl", "req", "-new", "-nodes", "-subj", "/CN=pump-7", "-outform", "DER", "-out", str(out)),
            *("-keyout", str(directory / "key.pem"), *arguments),
        ],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"this openssl can't make it: {' '.join(arguments)}")
    return out.read_bytes()


@NEEDS_OPENSSL
def test_openssl_requests_are_taken(tmp_path: Path) -> None:
    data = openssl_request(
        tmp_path,
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-addext", "subjectAltName=DNS:a.example,otherName:1.3.6.1.5.5.7.8.4;SEQUENCE:hw"),
        *("-config", str(openssl_config(tmp_path))),
    )
    request = decode_csr(data)
    assert request.subject == (("2.5.4.3", "pump-7"),)
    assert request.alt_names == ("DNS:a.example", "HW:1.2.3.4:aabb")


def openssl_config(directory: Path) -> Path:
    path = directory / "openssl.cnf"
    path.write_text(
        "[req]\ndistinguished_name=dn\n[dn]\n[hw]\nhwType=OID:1.2.3.4\nhwSerialNum=FORMAT:HEX,OCTETSTRING:aabb\n"
    )
    return path


@NEEDS_OPENSSL
def test_openssl_verifies_what_we_build(tmp_path: Path) -> None:
    path = tmp_path / "request.der"
    path.write_bytes(REQUEST)
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-in", str(path), "-verify", "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CN = pump-7" in done.stdout
    assert "DNS:pump-7.example" in done.stdout


def test_a_signature_by_another_key_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    stolen = REQUEST.replace(spki, other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(BadSignature):
        decode_csr(stolen)


def test_one_key_is_written_one_way() -> None:
    """A compressed point must not make a new key of a revoked one."""
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    algorithm = next(der.children(der.only_element(spki, der.SEQUENCE))).whole
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = der.encode_element(der.SEQUENCE, algorithm + der.encode_element(0x03, b"\0" + point))
    body = der.encode_element(der.SEQUENCE, b"\x02\x01\0" + b"\x30\0" + compressed + b"\xa0\0")
    with pytest.raises(Unsupported, match="compressed"):
        decode_csr(hand_signed(body))


def challenge(tag: int, value: bytes) -> bytes:
    """The attribute with its value as any type of string."""
    values = der.encode_element(der.SET, der.encode_element(tag, value))
    return der.encode_element(der.SEQUENCE, der.encode_oid(AttributeOID.CHALLENGE_PASSWORD.dotted_string) + values)


@pytest.mark.parametrize(("tag", "value"), [(12, b"a"), (19, b"a"), (20, b"a"), (22, b"a"), (30, b"\0a")])
def test_challenge_passwords_of_every_type_of_string(tag: int, value: bytes) -> None:
    assert decode_csr(hand_signed(request_info(attributes=challenge(tag, value)))).challenge_password == "a"


@pytest.mark.parametrize(("tag", "value"), [(12, b"x" * 256), (12, b"\xff\xfe"), (19, b"\xff"), (30, b"a"), (2, b"\1")])
def test_challenge_passwords_are_text_and_short(tag: int, value: bytes) -> None:
    with pytest.raises(WireError):
        decode_csr(hand_signed(request_info(attributes=challenge(tag, value))))


# Names


def certificate_with(alt_names: list[x509.GeneralName], subject: x509.Name) -> x509.Certificate:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .public_key(KEY.public_key())
    )
    if alt_names:
        builder = builder.add_extension(x509.SubjectAlternativeName(alt_names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def test_names_compare_between_request_and_certificate() -> None:
    request = x509.load_der_x509_csr(REQUEST)
    names = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    certificate = certificate_with(names, request.subject)
    decoded = decode_csr(REQUEST)
    assert names_of_certificate(certificate) == (decoded.subject, decoded.alt_names)


def test_a_certificate_without_alternative_names() -> None:
    assert names_of_certificate(certificate_with([], x509.Name([]))) == ((), ())


def test_every_kind_of_general_name_has_its_text() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a,b")])
    names = [
        x509.RFC822Name("a@b.example"),
        x509.DirectoryName(name),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a"),
    ]
    expected = ("EMAIL:a@b.example", "DIR:CN=a\\,b", "RID:1.2.3", "OTHER:1.3.6.1.4.1.311.20.2.3:0c0161")
    assert names_of_certificate(certificate_with(names, name))[1] == expected


@pytest.mark.parametrize(
    "value", [b"", b"\x30\0", b"\x04\x01a", b"\x30\x03\x06\x01\x2a", b"\x30\x07\x06\x02\x2a\x03\x0c\x01a"]
)
def test_a_damaged_hardware_name_names_no_hardware(value: bytes) -> None:
    content = der.encode_oid("1.3.6.1.5.5.7.8.4") + der.encode_element(0xA0, value)
    assert text_of(0xA0, content) == f"#{der.encode_element(0xA0, content).hex()}"


def text_of(tag: int, content: bytes) -> str:
    return alt_name_text(der.only_element(der.encode_element(tag, content), tag))


@pytest.mark.parametrize(
    ("tag", "content"),
    [(0x82, b"a\0b"), (0x82, b"a\nb"), (0x81, b"\xff"), (0x87, b"abc"), (0xA3, b""), (0xA4, b"\x30"), (0x88, b"\x80")],
)
def test_a_name_that_is_not_read_is_shown_as_its_octets(tag: int, content: bytes) -> None:
    assert text_of(tag, content) == f"#{der.encode_element(tag, content).hex()}"
    with pytest.raises(TooLarge):
        text_of(tag, content + bytes(300))


_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_TEXTS = st.one_of(
    st.lists(_LABEL, min_size=1, max_size=4).map(lambda labels: "DNS:" + ".".join(labels)),
    st.ip_addresses().map(lambda address: f"IP:{address}"),
    _LABEL.map(lambda text: f"URI:urn:{text}"),
    _LABEL.map(lambda text: f"EMAIL:{text}@{text}"),
    st.binary(max_size=40).map(lambda serial: f"HW:1.3.6.1.4.1.4128.1:{serial.hex()}"),
    st.binary(max_size=20).map(lambda value: f"OTHER:1.2.3.4:{core_octets(value).hex()}"),
)


def core_octets(value: bytes) -> bytes:
    return der.encode_element(der.OCTET_STRING, value)


@given(
    st.lists(_TEXTS, max_size=8), st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=16)
)  # 64 octets in UTF-8
def test_any_names_go_round(texts: list[str], common_name: str) -> None:
    request = decode_csr(build_csr(KEY, (("2.5.4.3", common_name),), texts))
    assert request.alt_names == tuple(texts)
    assert request.subject == (("2.5.4.3", common_name),)


@pytest.mark.parametrize(
    "text", ["", "DNS", "IP:host", "HW:1.2", "HW:1.2.3:zz", "HW::00", "DIR:CN=a", "X:y", "OTHER:1.2.3:0"]
)
def test_names_that_cannot_be_asked_for(text: str) -> None:
    if text == "DNS":
        text = "DNS:\u00e9"
    with pytest.raises(WireError):
        alt_name(text)


def test_subjects_that_cannot_be_asked_for() -> None:
    for subject in ((("2.5.4.3", "x" * 65),), (("no", "x"),), (("2.5.4.6", "Germany"),)):
        with pytest.raises(WireError):
            build_csr(KEY, subject, ())
