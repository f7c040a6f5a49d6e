"""Private keys in: PKCS#8, encrypted or not, SEC 1 and PKCS#1; and the cost of a password capped before it is paid."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from fleet.wire import der
from fleet.wire.encodings.bundle import KEY_SIZE_MAX, PasswordNeeded, WrongPassword
from fleet.wire.errors import Malformed, TooLarge, WireError
from fleet.wire.parsing import library_errors

ROUNDS_MAX = 10_000_000  # some four seconds; the boldest keystores ask for a million

_INTEGER = 0x02
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
    return _opened(load_der_private_key, data, password)


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
            case [der.SEQUENCE, der.OCTET_STRING, 0x02]:
                pass
            case _:
                return []
    except WireError:
        return []  # not ASN.1 after all: an OCTET STRING that happens to begin like it
    return [int.from_bytes(part.content) for part in parts if part.tag == _INTEGER]
