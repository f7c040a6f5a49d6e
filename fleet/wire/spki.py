"""SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): DER in, the library's public key out."""

import functools
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

KEYS_REMEMBERED = 256  # an enrollment reads its key twice within milliseconds; a key takes about 1 KB

# id-ecPublicKey, secp256r1, and a BIT STRING that begins with an uncompressed point: what the library writes for every
# P-256 key, so that a key which begins so need not be encoded once more to be compared.
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_P256_SIZE = len(_P256) + 64


class PublicKey(NamedTuple):
    key: PublicKeyTypes
    """Of an EC key, the point has been found to lie on its curve."""
    is_canonical: bool
    """Whether it was encoded as the library encodes it: a named curve, an uncompressed point, parameters as usual."""


@functools.lru_cache(maxsize=KEYS_REMEMBERED)
def load_spki(spki_der: bytes) -> PublicKey:
    """The public key in `spki_der`.

    Raises: ValueError, TypeError, UnsupportedAlgorithm: it can't be read.
    """
    key = load_der_public_key(spki_der)
    if len(spki_der) == _P256_SIZE and spki_der.startswith(_P256):
        return PublicKey(key, is_canonical=True)
    return PublicKey(key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki_der)
