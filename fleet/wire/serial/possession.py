"""Proof of possession: the board holds the private key of the certificate that it was given.

The board signs a context, the session and the station's fresh challenge. No other signature of the key covers octets
that begin like the context: those of TLS 1.3 begin with 20, those of TLS 1.2 with 01, those of a CSR with 30.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from fleet.wire.errors import BadSignature, Unsupported
from fleet.wire.key_types import KEY_TYPES
from fleet.wire.keys import curve_hash
from fleet.wire.serial.messages import CHALLENGE_SIZE, SESSION_SIZE

CONTEXT = b"fleet-serial-possession-v1\x00"

_CURVES = frozenset(each.curve_name for each in KEY_TYPES if each.curve)


def signed_octets(session: bytes, challenge: bytes) -> bytes:
    """The octets to sign: CONTEXT, session, challenge."""
    if len(session) != SESSION_SIZE or len(challenge) != CHALLENGE_SIZE:
        raise ValueError("session or challenge of the wrong size")
    return CONTEXT + session + challenge


def sign(key: PrivateKeyTypes, octets: bytes) -> bytes:
    """The signature with `key`: ECDSA (DER) with the curve's hash, RSA PKCS#1 v1.5 with SHA-256, or Ed25519.

    Raises: Unsupported for another type of key.
    """
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(octets, ec.ECDSA(_curve_hash(key)))
        case rsa.RSAPrivateKey():
            return key.sign(octets, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(octets)
        case _:
            raise Unsupported("Proof of possession is not supported for this type of key.")


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
                raise Unsupported("Proof of possession is not supported for this type of key.")
    except InvalidSignature:
        raise BadSignature("The proof of possession was not made with the certificate's key.") from None


def _curve_hash(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    if key.curve.name not in _CURVES:
        raise Unsupported(f"Keys on the curve {key.curve.name} are not supported.")
    return curve_hash(key)
