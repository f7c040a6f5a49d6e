"""PKCS#12 (RFC 7292), the file with key and chain in one that browsers, Windows and Java exchange."""

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import KeySerializationEncryption, PrivateFormat, pkcs12

from fleet.wire import der
from fleet.wire.encodings.bundle import (
    CERTIFICATES_MAX,
    PKCS12_SIZE_MAX,
    Bundle,
    PasswordNeeded,
    WrongPassword,
    belongs_to,
    chain_order,
)
from fleet.wire.encodings.keys import check_rounds
from fleet.wire.errors import Malformed, TooLarge, Unsupported
from fleet.wire.parsing import library_errors

KDF_ROUNDS = 100_000  # 40 ms here; OpenSSL's 2,048 date from 1999
LEGACY_KDF_ROUNDS = 2_048  # what the systems in question wrote themselves

_KeyTypes = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)
_BAG_OF_SECRETS = "1.2.840.113549.1.12.10.1.5"
_KEY_BAGS = ("1.2.840.113549.1.12.10.1.1", "1.2.840.113549.1.12.10.1.2")


def read_pkcs12(data: bytes, password: bytes | None) -> Bundle:
    """Key, certificates and their names; the key's certificate first, then its chain.

    Without a password, the file is tried as one that has none, or an empty one.

    Raises: PasswordNeeded, WrongPassword, TooLarge, Unsupported.
    """
    if len(data) > PKCS12_SIZE_MAX:
        raise TooLarge(f"The PKCS#12 file is larger than {PKCS12_SIZE_MAX // 1024} KiB.")
    check_rounds(data)
    others = _check_one_key(data)
    loaded = _opened(data, password)
    entries = [entry for entry in (loaded.cert, *loaded.additional_certs) if entry is not None]
    if len(entries) > CERTIFICATES_MAX:
        raise TooLarge(f"The file holds more than {CERTIFICATES_MAX} certificates.")
    key = loaded.key
    entries = [entries[index] for index in chain_order([entry.certificate for entry in entries], key)]
    names = tuple(_text(entry.friendly_name) for entry in entries)
    return Bundle(
        certificates=tuple(entry.certificate for entry in entries),
        private_key=key,
        friendly_names=names if any(names) else (),
        others=others,
    )


def _opened(data: bytes, password: bytes | None) -> pkcs12.PKCS12KeyAndCertificates:
    # RFC 7292, appendix B.1 leaves two ways to encode no password at all: nothing, and an empty string.
    for attempt in (None, b"") if password is None else (password,):
        try:
            with library_errors("PKCS#12 file"):
                return pkcs12.load_pkcs12(data, attempt)
        except Malformed:
            continue
    if password is None:
        raise PasswordNeeded("The PKCS#12 file needs a password.")
    raise WrongPassword("The password does not open the PKCS#12 file, or the file is damaged.")


def _check_one_key(data: bytes) -> tuple[str, ...]:
    """The library would return one key and ignore the rest. What else is there, in words.

    Raises: Unsupported: it holds several.
    """
    outer = der.only_element(data, der.SEQUENCE, ber=True)
    oids = [each.content for each in der.walk(outer) if each.tag == der.OBJECT_IDENTIFIER]
    wanted = [_content(bag) for bag in _KEY_BAGS]
    # Java keeps a secret key as an encrypted key within a secretBag.
    secrets = oids.count(_content(_BAG_OF_SECRETS))
    count = sum(oid in wanted for oid in oids) - secrets
    if count > 1:
        raise Unsupported(
            f"The PKCS#12 file holds {count} private keys; take one out first with the tool that made it."
        )
    return ("a secret key",) * secrets


def _content(oid: str) -> bytes:
    return der.only_element(der.encode_oid(oid), der.OBJECT_IDENTIFIER).content


def _text(name: bytes | None) -> str | None:
    return name.decode("utf-8", "replace") if name else None


def write_pkcs12(bundle: Bundle, password: bytes | None, *, legacy: bool = False) -> bytes:
    """Encrypted with AES-256-CBC under PBKDF2-SHA-256; with `legacy`, with 3DES under SHA-1.

    Without a key it is a truststore that Java takes as one.

    Raises: PasswordNeeded, Unsupported when the key belongs to none of the certificates.
    """
    if not password:
        raise PasswordNeeded("PKCS#12 needs a password that is not empty.")
    encryption = _encryption(password, legacy=legacy)
    entries = [
        pkcs12.PKCS12Certificate(certificate, _encoded(bundle.friendly_name(index)))
        for index, certificate in enumerate(bundle.certificates)
    ]
    with library_errors("PKCS#12 file"):
        if bundle.private_key is None:
            return pkcs12.serialize_java_truststore(entries, encryption)
        return _with_key(bundle.private_key, bundle.certificates, entries, encryption)


def _with_key(
    key: PrivateKeyTypes,
    certificates: Sequence[x509.Certificate],
    entries: Sequence[pkcs12.PKCS12Certificate],
    encryption: KeySerializationEncryption,
) -> bytes:
    if not isinstance(key, _KeyTypes):
        raise Unsupported("PKCS#12 can't hold a key of this kind here.")
    if not certificates:
        return pkcs12.serialize_key_and_certificates(None, key, None, None, encryption)
    own = next((index for index, each in enumerate(certificates) if belongs_to(each, key)), None)
    if own is None:
        raise Unsupported("The private key belongs to none of the certificates; PKCS#12 wants a pair.")
    others = [entry for index, entry in enumerate(entries) if index != own]
    name = entries[own].friendly_name
    return pkcs12.serialize_key_and_certificates(name, key, certificates[own], others, encryption)


def _encoded(name: str | None) -> bytes | None:
    return name.encode() if name and can_be_named(name) else None


def can_be_named(name: str) -> bool:
    """RFC 7292, 4.2: friendlyName is a BMPString, which has no room for characters beyond U+FFFF."""
    return all(ord(character) <= 0xFFFF for character in name)


def _encryption(password: bytes, *, legacy: bool) -> KeySerializationEncryption:
    builder = PrivateFormat.PKCS12.encryption_builder()
    if legacy:
        builder = builder.kdf_rounds(LEGACY_KDF_ROUNDS).hmac_hash(hashes.SHA1())  # noqa: S303 - the very point of it
        builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
    else:
        builder = builder.kdf_rounds(KDF_ROUNDS).hmac_hash(hashes.SHA256())
        builder = builder.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
    return builder.build(password)
