"""Certificate requests at their bounds: the largest and smallest that are taken, and what a new key is sealed for."""

from math import gcd, prod

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet.wire import der
from fleet.wire.csr import ATTRIBUTES_MAX, CSR_SIZE_MAX, build_csr, decode_csr
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WeakKey, WireError
from fleet.wire.keys import key_type_of
from tests.wire.test_csr import KEY, challenge, hand_signed, request_info, signed

DECRYPT_KEY = "1.2.840.113549.1.9.16.2.37"
ASYMMETRIC_DECRYPT_KEY = "1.2.840.113549.1.9.16.2.54"
SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"
AES_256_CBC, AES_128_CBC = "2.16.840.1.101.3.4.1.42", "2.16.840.1.101.3.4.1.2"


def attribute(oid: str, *values: bytes) -> bytes:
    return der.encode_element(der.SEQUENCE, der.encode_oid(oid) + der.encode_element(der.SET, b"".join(values)))


def octets(content: bytes) -> bytes:
    return der.encode_element(der.OCTET_STRING, content)


def capabilities(*elements: bytes) -> bytes:
    return attribute(SMIME_CAPABILITIES, der.encode_element(der.SEQUENCE, b"".join(elements)))


def capability(oid: str) -> bytes:
    return der.encode_element(der.SEQUENCE, der.encode_oid(oid))


def asking(*attributes: bytes) -> bytes:
    return hand_signed(request_info(attributes=b"".join(sorted(attributes))))  # X.690, 11.6: a SET OF is sorted


def test_a_request_as_large_as_allowed_is_parsed() -> None:
    with pytest.raises(Malformed):
        decode_csr(bytes(CSR_SIZE_MAX))
    with pytest.raises(TooLarge):
        decode_csr(bytes(CSR_SIZE_MAX + 1))


# Keys


def rsa_modulus(bits: int) -> int:
    """The least of this size without a small factor."""
    primes = prod(n for n in range(3, 20_000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2)))
    return next(n for n in range((1 << bits - 1) + 1, 1 << bits, 2) if gcd(n, primes) == 1)


@pytest.mark.parametrize(("bits", "error"), [(2047, WeakKey), (2048, None), (8192, None), (8193, Unsupported)])
def test_rsa_keys_by_their_size(bits: int, error: type[WireError] | None) -> None:
    key = rsa.RSAPublicNumbers(65537, rsa_modulus(bits)).public_key()
    if error is None:
        assert key_type_of(key) == "RSA-2048+"
        return
    with pytest.raises(error):
        key_type_of(key)


@pytest.mark.parametrize(
    ("exponent", "fine"), [(3, False), (65535, False), (65537, True), ((1 << 64) - 1, True), ((1 << 64) + 1, False)]
)
def test_rsa_keys_by_their_exponent(exponent: int, *, fine: bool) -> None:
    key = rsa.RSAPublicNumbers(exponent, rsa_modulus(2048)).public_key()
    if fine:
        assert key_type_of(key) == "RSA-2048+"
        return
    with pytest.raises(WeakKey, match="exponent"):
        key_type_of(key)


def test_an_rsa_modulus_with_a_small_factor_is_weak() -> None:
    with pytest.raises(WeakKey, match="can be broken"):
        key_type_of(rsa.RSAPublicNumbers(65537, (1 << 2047) + 1).public_key())  # a multiple of 3


@pytest.mark.parametrize(
    ("curve", "error"),
    [(ec.SECP192R1(), WeakKey), (ec.SECP224R1(), WeakKey), (ec.BrainpoolP256R1(), Unsupported)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_other_curves_are_weak_or_unsupported_by_their_size(curve: ec.EllipticCurve, error: type[WireError]) -> None:
    with pytest.raises(error) as caught:
        key_type_of(ec.generate_private_key(curve).public_key())
    assert type(caught.value) is error


def test_a_key_that_cannot_sign_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="can't sign"):
        key_type_of(x25519.X25519PrivateKey.generate().public_key())


# Attributes


def test_as_many_attributes_as_allowed() -> None:
    attributes = tuple((f"1.3.6.1.4.1.1.{number}", b"x") for number in range(ATTRIBUTES_MAX))
    assert decode_csr(signed(KEY, attributes=attributes)).sealing is None


def test_the_same_attribute_twice_is_malformed() -> None:
    with pytest.raises(Malformed, match="twice"):
        decode_csr(asking(challenge(12, b"a"), challenge(12, b"b")))
    with pytest.raises(Malformed, match="twice"):
        decode_csr(asking(challenge(12, b"a"), attribute(DECRYPT_KEY, octets(b"k")), challenge(12, b"b")))


def test_a_challenge_password_as_long_as_allowed() -> None:
    assert decode_csr(asking(challenge(12, b"x" * 255))).challenge_password == "x" * 255
    with pytest.raises(TooLarge):
        decode_csr(asking(challenge(12, b"x" * 256)))


def test_the_challenge_password_is_found_among_others() -> None:
    asked = asking(attribute("1.2.3.4", octets(b"x")), challenge(12, b"a"))
    assert decode_csr(asked).challenge_password == "a"
    assert decode_csr(asking(attribute("1.2.3.4", octets(b"x")))).challenge_password is None


def test_extended_key_usages_in_their_order() -> None:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    san = x509.SubjectAlternativeName([x509.DNSName("a.example")])
    asked = decode_csr(signed(KEY, extensions=(san, x509.ExtendedKeyUsage(usages))))
    assert asked.extended_key_usages == ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2")
    assert decode_csr(signed(KEY, extensions=(san,))).extended_key_usages is None


# The key that a server-generated key is sealed for (RFC 7030, 4.4.1)


@pytest.mark.parametrize(("oid", "is_asymmetric"), [(DECRYPT_KEY, False), (ASYMMETRIC_DECRYPT_KEY, True)])
@pytest.mark.parametrize("size", [1, 64])
def test_a_key_to_seal_for_is_named_by_its_identifier(oid: str, size: int, *, is_asymmetric: bool) -> None:
    sealing = decode_csr(asking(attribute(oid, octets(b"k" * size)))).sealing
    assert sealing is not None
    assert (sealing.identifier, sealing.is_asymmetric, sealing.ciphers) == (b"k" * size, is_asymmetric, None)


@pytest.mark.parametrize("value", [octets(b""), octets(b"k" * 65), der.encode_element(12, b"k")])
def test_an_identifier_is_a_short_octet_string(value: bytes) -> None:
    with pytest.raises(Malformed, match="short octet string"):
        decode_csr(asking(attribute(DECRYPT_KEY, value)))


def test_one_key_to_seal_for() -> None:
    both = attribute(DECRYPT_KEY, octets(b"a")), attribute(ASYMMETRIC_DECRYPT_KEY, octets(b"b"))
    with pytest.raises(Malformed, match="two keys"):
        decode_csr(asking(*both))


def test_the_ciphers_that_the_client_can_decrypt_in_their_order() -> None:
    named = attribute(DECRYPT_KEY, octets(b"k"))
    with_parameters = der.encode_element(der.SEQUENCE, der.encode_oid(AES_128_CBC) + b"\x02\x01\x05")
    sealing = decode_csr(asking(named, capabilities(capability(AES_256_CBC), with_parameters))).sealing
    assert sealing is not None
    assert sealing.ciphers == (AES_256_CBC, AES_128_CBC)
    none = decode_csr(asking(named, capabilities())).sealing
    assert none is not None
    assert none.ciphers == ()
    assert decode_csr(asking(capabilities(capability(AES_256_CBC)))).sealing is None  # no key to seal for


@pytest.mark.parametrize("element", [der.encode_element(der.SEQUENCE, b""), b"\x30\x03\x02\x01\x05", b"\x02\x01\x05"])
def test_badly_formed_capabilities_are_refused(element: bytes) -> None:
    with pytest.raises(Malformed):
        decode_csr(asking(attribute(DECRYPT_KEY, octets(b"k")), capabilities(capability(AES_256_CBC), element)))


# What clients build


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), hashes.SHA256),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384),
        (ec.generate_private_key(ec.SECP521R1()), hashes.SHA512),
        (rsa.generate_private_key(65537, 2048), hashes.SHA256),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_hash_is_as_strong_as_the_key(
    key: CertificateIssuerPrivateKeyTypes, algorithm: type[hashes.HashAlgorithm] | None
) -> None:
    used = x509.load_der_x509_csr(build_csr(key, (("2.5.4.3", "a"),), ())).signature_hash_algorithm
    assert (used and type(used)) == algorithm


@pytest.mark.parametrize("subject", [(), (("2.5.4.3", "a"),)])
def test_alternative_names_are_critical_where_there_is_no_subject(subject: tuple[tuple[str, str], ...]) -> None:
    request = x509.load_der_x509_csr(build_csr(KEY, subject, ("DNS:a.example",)))
    assert request.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is (not subject)
    assert len(x509.load_der_x509_csr(build_csr(KEY, subject, ())).extensions) == 0
