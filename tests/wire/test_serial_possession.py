"""Proof of possession: what is signed, by which keys, and what no verifier takes."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fleet.wire.errors import BadSignature, Unsupported
from fleet.wire.serial.possession import CONTEXT, sign, signed_octets, verify

SESSION, CHALLENGE = bytes(range(8)), bytes(range(32))
OCTETS = CONTEXT + SESSION + CHALLENGE
KEYS: dict[str, PrivateKeyTypes] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


def test_what_is_signed() -> None:
    assert signed_octets(SESSION, CHALLENGE) == OCTETS
    assert OCTETS.startswith(b"fleet-serial-possession-v1\x00")
    assert OCTETS[0] not in (0x01, 0x20, 0x30)  # TLS 1.2, TLS 1.3, DER


@pytest.mark.parametrize(
    ("session", "challenge"),
    [(SESSION[:-1], CHALLENGE), (SESSION + b"x", CHALLENGE), (SESSION, CHALLENGE[:-1]), (SESSION, CHALLENGE + b"x")],
)
def test_a_size_that_is_wrong(session: bytes, challenge: bytes) -> None:
    """With free sizes, octets of one could pass for octets of the other."""
    with pytest.raises(ValueError, match="wrong size"):
        signed_octets(session, challenge)


@pytest.mark.parametrize("name", KEYS)
def test_each_type_of_key(name: str) -> None:
    key = KEYS[name]
    signature = sign(key, OCTETS)
    verify(key.public_key(), signature, OCTETS)
    for other in (signature[:-1] + bytes((signature[-1] ^ 1,)), b"", b"trust me"):
        with pytest.raises(BadSignature):
            verify(key.public_key(), other, OCTETS)
    with pytest.raises(BadSignature):
        verify(key.public_key(), signature, OCTETS[:-1] + b"\x00")
    for stranger in KEYS:
        if stranger != name:
            with pytest.raises(BadSignature):
                verify(KEYS[stranger].public_key(), signature, OCTETS)


def test_each_curve_has_its_hash() -> None:
    for name, algorithm in (("P-256", hashes.SHA256()), ("P-384", hashes.SHA384()), ("P-521", hashes.SHA512())):
        key = KEYS[name]
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        key.public_key().verify(sign(key, OCTETS), OCTETS, ec.ECDSA(algorithm))


def test_rsa_is_pkcs1_with_sha256() -> None:
    key = KEYS["RSA"]
    assert isinstance(key, rsa.RSAPrivateKey)
    key.public_key().verify(sign(key, OCTETS), OCTETS, padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("key", [ed448.Ed448PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())])
def test_other_keys_are_not_supported(key: ed448.Ed448PrivateKey | ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(Unsupported):
        sign(key, OCTETS)
    with pytest.raises(Unsupported):
        verify(key.public_key(), b"x" * 64, OCTETS)
