"""Private keys in: PKCS#8, encrypted or not, SEC 1 and PKCS#1; and the cost of a password capped before it is paid."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from fleet.wire import der
from fleet.wire.encodings.bundle import KEY_SIZE_MAX, PasswordNeeded, WrongPassword
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.parsing import library_errors

ROUNDS_MAX = 10_000_000  # some four seconds; the boldest keystores ask for a million

_PBES2 = "1.2.840.113549.1.5.13"
_KNOWN_CIPHERS = ("2.16.840.1.101.3.4.1.", "1.2.840.113549.3.")  # AES; 3DES and RC2
_OTHER_CIPHERS = {
    "1.2.410.200046.1.1.": "ARIA",
    "1.2.392.200011.61.1.1.1.": "Camellia",
    "1.2.410.200004.1.": "SEED",
    "1.2.156.10197.1.104.": "SM4",
    "1.3.14.3.2.7": "DES",
}
_KEY_DERIVATIONS = (
    "1.2.840.113549.1.5.",  # PKCS#5: PBES1, PBKDF2
    "1.2.840.113549.1.12.1.",  # PKCS#12: its own schemes
    "1.3.6.1.4.1.11591.4.11",  # scrypt: N, r, p
)


def plain_key(data: bytes) -> PrivateKeyTypes:
    """The unencrypted key in `data`. Raises: TooLarge, Malformed, Unsupported."""
    _check_size(data)
    with library_errors("private key"):
        return load_der_private_key(data, None)


def encrypted_key(data: bytes, password: bytes | None) -> PrivateKeyTypes:
    """The key in the encrypted PKCS#8 `data`. Raises: PasswordNeeded, WrongPassword, TooLarge, Unsupported."""
    _check_size(data)
    check_rounds(data)
    try:
        return _opened(load_der_private_key, data, password)
    except WrongPassword:
        if cipher := _unsupported_cipher(data):
            message = f"The private key is encrypted by {cipher}, which is not supported; use AES-256-CBC."
            raise Unsupported(message) from None
        raise


def _unsupported_cipher(data: bytes) -> str:
    """The cipher of a PKCS#8 key encrypted by PBES2 (RFC 8018, 6.2), if it is none that the library knows; else ""."""
    oids = [der.dotted_oid(each.content) for each in der.walk(der.only_element(data, der.SEQUENCE)) if _is_oid(each)]
    if _PBES2 not in oids or any(oid.startswith(_KNOWN_CIPHERS) for oid in oids):
        return ""
    return next(
        (f"{name} ({oid})" for oid in oids for arc, name in _OTHER_CIPHERS.items() if oid.startswith(arc)), oids[-1]
    )


def _is_oid(element: der.Element) -> bool:
    return element.tag == der.OBJECT_IDENTIFIER


def old_encrypted_key(text: bytes, password: bytes | None) -> PrivateKeyTypes:
    """The key in a PEM block encrypted as in RFC 1421. Raises: PasswordNeeded, WrongPassword, TooLarge, Unsupported."""
    _check_size(text)
    return _opened(load_pem_private_key, text, password)


def _opened(
    load: Callable[[bytes, bytes | None], PrivateKeyTypes], data: bytes, password: bytes | None
) -> PrivateKeyTypes:
    if password is None:
        raise PasswordNeeded("The private key is encrypted and needs a password.")
    try:
        with library_errors("encrypted private key"):
            return load(data, password)
    except Malformed:
        raise WrongPassword("The password does not open the private key, or the key is damaged.") from None


def _check_size(data: bytes) -> None:
    if len(data) > KEY_SIZE_MAX:
        raise TooLarge(f"The private key is larger than {KEY_SIZE_MAX // 1024} KiB.")


def check_rounds(data: bytes) -> None:
    """Refuse a key derivation that would take minutes, as far as it can be seen from outside the encryption.

    Raises: TooLarge, Malformed.
    """
    outer = der.only_element(data, der.SEQUENCE, ber=True)
    for element in der.walk(outer):
        if element.tag == der.SEQUENCE and any(rounds > ROUNDS_MAX for rounds in _rounds(element)):
            raise TooLarge(f"The file asks for more than {ROUNDS_MAX} rounds of key derivation.")


def _rounds(element: der.Element) -> list[int]:
    """The integers in the parameters of an AlgorithmIdentifier for key derivation, or in a PKCS#12 MacData."""
    try:
        parts = list(der.children(element, ber=True))
        match [part.tag for part in parts]:
            case [der.OBJECT_IDENTIFIER, der.SEQUENCE]:
                if not der.dotted_oid(parts[0].content).startswith(_KEY_DERIVATIONS):
                    return []
                parts = list(der.children(parts[1], ber=True))
            case [der.SEQUENCE, der.OCTET_STRING, der.INTEGER]:
                pass
            case _:
                return []
    except WireError:
        return []  # not ASN.1 after all: an OCTET STRING that happens to begin like it
    return [int.from_bytes(part.content) for part in parts if part.tag == der.INTEGER]
