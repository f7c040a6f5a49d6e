"""Keys of `cryptography` by key type: recognition, with the bounds of each; generation; the hash of a signature."""

from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PublicKeyTypes
from cryptography.x509 import ObjectIdentifier

from fleet.wire.errors import Unsupported, WeakKey
from fleet.wire.key_types import BY_NAME, KEY_TYPES, RSA
from fleet.wire.rsa_modulus import modulus_weakness

RSA_BITS_MIN = 2048
RSA_BITS_MAX = 8192  # verifying with longer ones costs the server more than the client
RSA_EXPONENT_MIN = 65537
RSA_EXPONENT_MAX = (1 << 64) - 1  # the same reason
CURVE_BITS_MIN = 256

SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

_CURVES = {each.curve_name: each.name for each in KEY_TYPES if each.curve}
_PLAIN: dict[str, tuple[type[PublicKeyTypes], Callable[[], CertificateIssuerPrivateKeyTypes]]] = {
    "Ed25519": (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey.generate),
    "Ed448": (ed448.Ed448PublicKey, ed448.Ed448PrivateKey.generate),
    "ML-DSA-44": (mldsa.MLDSA44PublicKey, mldsa.MLDSA44PrivateKey.generate),
    "ML-DSA-65": (mldsa.MLDSA65PublicKey, mldsa.MLDSA65PrivateKey.generate),
    "ML-DSA-87": (mldsa.MLDSA87PublicKey, mldsa.MLDSA87PrivateKey.generate),
}


def key_type_of(public_key: PublicKeyTypes) -> str:
    """The name of the type of `public_key`. Raises: WeakKey, Unsupported."""
    match public_key:
        case ec.EllipticCurvePublicKey(curve=curve):
            if curve.name in _CURVES:
                return _CURVES[curve.name]
            if curve.key_size < CURVE_BITS_MIN:
                raise WeakKey(f"An EC key on curve {curve.name} is too short; use P-256.")
            raise Unsupported(f"EC keys on curve {curve.name} are not taken; use P-256.")
        case rsa.RSAPublicKey():
            _check_rsa(public_key)
            return RSA.name
        case dsa.DSAPublicKey():
            raise WeakKey("DSA keys are not accepted; use an EC key on P-256.")
        case _:
            name = next((name for name, (kind, _) in _PLAIN.items() if isinstance(public_key, kind)), None)
            if name is None:
                raise Unsupported("Keys of this kind can't sign and are not taken; use an EC key on P-256.")
            return name


def _check_rsa(public_key: rsa.RSAPublicKey) -> None:
    bits, numbers = public_key.key_size, public_key.public_numbers()
    if bits < RSA_BITS_MIN:
        raise WeakKey(f"An RSA key of {bits} bits is too short; use {RSA_BITS_MIN} or more.")
    if bits > RSA_BITS_MAX:
        raise Unsupported(f"An RSA key of {bits} bits is too long; use at most {RSA_BITS_MAX}.")
    if not RSA_EXPONENT_MIN <= numbers.e <= RSA_EXPONENT_MAX or numbers.e % 2 == 0:
        raise WeakKey("The RSA key's public exponent is out of bounds; use 65537.")
    if (weakness := modulus_weakness(numbers.n)) is not None:
        raise WeakKey(f"The RSA key can be broken: {weakness}. Make a new one with another generator.")


def generate_key(key_type: str, *, rsa_bits: int = RSA_BITS_MIN) -> CertificateIssuerPrivateKeyTypes:
    """A new key of the type of this name. Raises: KeyError."""
    found = BY_NAME[key_type]
    if found.curve:
        return ec.generate_private_key(ec.get_curve_for_oid(ObjectIdentifier(found.curve))())
    return rsa.generate_private_key(RSA_EXPONENT_MIN, rsa_bits) if found is RSA else _PLAIN[key_type][1]()


def curve_hash(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> SigningHash:
    """The hash that matches the curve's strength."""
    if key.key_size > 384:
        return hashes.SHA512()
    return hashes.SHA384() if key.key_size > 256 else hashes.SHA256()
