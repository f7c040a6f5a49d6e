"""SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): DER in, the library's public key out, and back."""

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from fleet.wire import der

RSASSA_PSS = "1.2.840.113549.1.1.10"
KEYS_REMEMBERED_MAX = 256  # an enrollment needs its key twice within milliseconds; a key takes about 1 KB

# Up to the coordinates of an uncompressed point on P-256, P-384 and P-521: one of these has no second encoding.
_POINTS = (
    bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),
    bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"),
    bytes.fromhex("30819b301006072a8648ce3d020106052b810400230381860004"),
)

_remembered: dict[bytes, PublicKeyTypes] = {}


def spki_of(key: PublicKeyTypes) -> bytes:
    """DER of `key`."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def encode_spki(key: PublicKeyTypes) -> bytes:
    """As `spki_of`; `load_spki` of the same bytes costs nothing for a while."""
    return _remember(spki_of(key), key)


def canonical_spki(spki_der: bytes, key: PublicKeyTypes) -> bytes:
    """`encode_spki(key)`, of a key that was read from `spki_der`."""
    return _remember(spki_der, key) if spki_der.startswith(_POINTS) else encode_spki(key)


def _remember(spki_der: bytes, key: PublicKeyTypes) -> bytes:
    if len(_remembered) >= KEYS_REMEMBERED_MAX:
        _remembered.clear()
    _remembered[spki_der] = key
    return spki_der


def is_encoding(spki_der: bytes, key: PublicKeyTypes) -> bool:
    """Whether `encode_spki` makes `spki_der` of `key`: a compressed point, for one, is another way to write it."""
    return _remembered.get(spki_der) is key or encode_spki(key) == spki_der


def load_spki(spki_der: bytes) -> PublicKeyTypes:
    """The public key in `spki_der`; an EC point has been found to lie on its curve.

    Raises: ValueError, TypeError, UnsupportedAlgorithm: it can't be read.
    """
    return _remembered.get(spki_der) or load_der_public_key(spki_der)


def is_for_pss(holder: der.Element) -> bool:
    """Whether the key in a SubjectPublicKeyInfo or a PKCS#8 PrivateKeyInfo is for RSASSA-PSS alone (RFC 4055, 1.2).

    The library reads it as any RSA key, and would write it as one. Raises: Malformed, TooLarge.
    """
    algorithm = next((part for part in der.children(holder) if part.tag == der.SEQUENCE), None)
    kind = next(der.children(algorithm), None) if algorithm is not None else None
    return kind is not None and kind.whole == der.encode_oid(RSASSA_PSS)
