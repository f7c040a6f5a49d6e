"""Signatures with a device's key over octets of ours, by the key's type: ECDSA (DER) with the curve's hash, RSA PKCS#1
v1.5 with SHA-256, or Ed25519. What is signed begins with a context of its own, so that one is never taken for another.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from fleet.wire.errors import BadSignature, Unsupported
from fleet.wire.key_types import KEY_TYPES
from fleet.wire.keys import curve_hash

_CURVES = frozenset(each.curve_name for each in KEY_TYPES if each.curve)


def sign(key: PrivateKeyTypes, octets: bytes) -> bytes:
    """The signature with `key`. Raises: Unsupported for another type of key."""
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(octets, ec.ECDSA(_curve_hash(key)))
        case rsa.RSAPrivateKey():
            return key.sign(octets, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(octets)
        case _:
            raise Unsupported("Signatures with this type of key are not supported.")


def verify(key: PublicKeyTypes, signature: bytes, octets: bytes) -> None:
    """Verify that `signature` over `octets` is by `key`. Raises: BadSignature, Unsupported."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, octets, ec.ECDSA(_curve_hash(key)))
            case rsa.RSAPublicKey():
                key.verify(signature, octets, padding.PKCS1v15(), hashes.SHA256())
            case ed25519.Ed25519PublicKey():
                key.verify(signature, octets)
            case _:
                raise Unsupported("Signatures with this type of key are not supported.")
    except InvalidSignature:
        raise BadSignature("The signature was not made with the certificate's key.") from None


def _curve_hash(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    if key.curve.name not in _CURVES:
        raise Unsupported(f"Keys on the curve {key.curve.name} are not supported.")
    return curve_hash(key)
