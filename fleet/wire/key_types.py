"""Key types: the one table of their names and identifiers, and of who may have one. Standard library only.

What `cryptography` knows of each, generation and recognition, is in fleet.wire.keys.
"""

from typing import NamedTuple

from fleet.wire import der


class KeyType(NamedTuple):
    name: str
    """As in models, CSR attributes and the serial protocol."""
    algorithm: str
    """OID of the public key's algorithm; of a key that brings its own hash, of its signatures too. Dotted, as all."""
    curve: str = ""
    """OID of an EC key's named curve."""
    curve_name: str = ""
    """Its name in `cryptography`."""
    of_models: bool = False
    """A model may allow it."""
    of_devices: bool = False
    """The agent and boards make such keys, and prove over the serial line that they have them."""
    octets: int = 0
    """Size of the public key in its BIT STRING; 0 where it varies: a point may be compressed."""

    @property
    def is_plain(self) -> bool:
        """Neither a curve nor a size belongs to it, and no choice of a hash."""
        return not self.curve and self.algorithm != RSA_ENCRYPTION

    @property
    def spki_mark(self) -> bytes:
        """Octets that each subjectPublicKeyInfo of such a key contains: its AlgorithmIdentifier and, where the size is
        fixed, the head of the BIT STRING behind it, which tells a key from a signature of the same algorithm.
        """
        parameters = der.encode_oid(self.curve) if self.curve else b"\x05\x00" if self == RSA else b""
        algorithm = der.encode_element(der.SEQUENCE, der.encode_oid(self.algorithm) + parameters)
        if not self.octets:
            return algorithm + bytes((der.BIT_STRING,))
        bits = der.encode_element(der.BIT_STRING, bytes(1 + self.octets))
        return algorithm + bits[: -self.octets]


EC_PUBLIC_KEY = "1.2.840.10045.2.1"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
_ML_DSA = "2.16.840.1.101.3.4.3"

KEY_TYPES = (
    KeyType("EC-P256", EC_PUBLIC_KEY, "1.2.840.10045.3.1.7", "secp256r1", of_models=True, of_devices=True),
    KeyType("EC-P384", EC_PUBLIC_KEY, "1.3.132.0.34", "secp384r1", of_models=True, of_devices=True),
    KeyType("EC-P521", EC_PUBLIC_KEY, "1.3.132.0.35", "secp521r1"),
    KeyType("RSA-2048+", RSA_ENCRYPTION, of_models=True, of_devices=True),
    KeyType("Ed25519", "1.3.101.112", of_models=True, of_devices=True, octets=32),
    KeyType("Ed448", "1.3.101.113", octets=57),
    KeyType("ML-DSA-44", f"{_ML_DSA}.17", of_models=True, octets=1312),
    KeyType("ML-DSA-65", f"{_ML_DSA}.18", of_models=True, octets=1952),
    KeyType("ML-DSA-87", f"{_ML_DSA}.19", octets=2592),
)
"""All that can sign a CSR here."""

BY_NAME = {each.name: each for each in KEY_TYPES}
RSA = BY_NAME["RSA-2048+"]
"""From 2,048 bits on."""
OF_MODELS = tuple(each.name for each in KEY_TYPES if each.of_models)
OF_DEVICES = tuple(each.name for each in KEY_TYPES if each.of_devices)
