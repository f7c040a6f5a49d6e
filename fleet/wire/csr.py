"""Certificate signing request (RFC 2986): decoder to a verified, frozen value, and encoder for clients.

Order matters in `decode_csr`: size, then structure, then the kind of key, and only then the costly signature.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from fleet.wire import der
from fleet.wire.certificate_fields import extended_key_usages, extension_value
from fleet.wire.csr_signature import verify_signature
from fleet.wire.csrattrs import CHALLENGE_PASSWORD, EXTENSION_REQUEST
from fleet.wire.errors import Malformed, TooLarge, Unsupported
from fleet.wire.key_types import RSA_ENCRYPTION
from fleet.wire.keys import SigningHash, curve_hash, key_type_of
from fleet.wire.names import (
    SUBJECT_ALT_NAME,
    AltNames,
    Subject,
    alt_name,
    alt_name_values,
    attribute_values,
    subject_name,
)
from fleet.wire.parsing import library_errors
from fleet.wire.spki import canonical_spki, is_for_pss, load_spki

CSR_SIZE_MAX = 16 * 1024  # an ML-DSA-87 request takes 7.5 KB, an RSA-8192 one 2.5 KB, names included
ATTRIBUTES_MAX = 16
KEY_IDENTIFIER_SIZE_MAX = 64
CHALLENGE_SIZE_MAX = 255  # RFC 2985, pkcs-9-ub-challengePassword

_MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
_DECRYPT_KEY = "1.2.840.113549.1.9.16.2.37"
_ASYMMETRIC_DECRYPT_KEY = "1.2.840.113549.1.9.16.2.54"
_SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"

_RSA_ENCRYPTION = der.encode_oid(RSA_ENCRYPTION)
_READ_ATTRIBUTES = frozenset(
    {
        CHALLENGE_PASSWORD,
        EXTENSION_REQUEST,
        _MICROSOFT_EXTENSION_REQUEST,
        _DECRYPT_KEY,
        _ASYMMETRIC_DECRYPT_KEY,
        _SMIME_CAPABILITIES,
    }
)

_CHALLENGE_TAGS = (der.UTF8_STRING, der.PRINTABLE_STRING, der.TELETEX_STRING, der.IA5_STRING, der.BMP_STRING)


@dataclass(frozen=True, slots=True)
class KeySealing:
    """How a server-generated key is to be encrypted for the requester (RFC 7030, 4.4.1)."""

    identifier: bytes
    """Identifier of the key that decrypts it."""
    is_asymmetric: bool
    ciphers: tuple[str, ...] | None
    """Dotted OIDs of the SMIMECapabilities; None when there are none."""


@dataclass(frozen=True, slots=True)
class Csr:
    """Contents of a request. One exists only after its own signature has been verified."""

    der: bytes = field(repr=False)  # may hold the challenge password
    subject: Subject
    """(dotted OID, value) of each attribute, in order."""
    alt_names: AltNames
    """"TYPE:value" of each general name, in order; () when the extension is absent. The shapes are in wire.names."""
    key_type: str
    """The name of one of fleet.wire.key_types."""
    spki_der: bytes = field(repr=False)
    """The SubjectPublicKeyInfo, canonical: the same key gives the same bytes in a request and in a certificate."""
    key_sha256: bytes
    """SHA-256 of `spki_der`, 32 bytes."""
    challenge_password: str | None = field(default=None, repr=False)
    """RFC 7030, 3.5 carries the channel binding here. Never shown or logged."""
    sealing: KeySealing | None = None
    extended_key_usages: tuple[str, ...] | None = None
    """Dotted OIDs of the requested extension, in order; None without one."""


class _Parts(NamedTuple):
    """RFC 2986, 4.1 and 4.2."""

    signed: bytes
    """DER of the CertificationRequestInfo."""
    subject: der.Element
    spki: der.Element
    attributes: der.Element | None
    algorithm: der.Element
    signature: bytes


def decode_csr(data: bytes) -> Csr:
    """The request in `data`: DER, exact to the byte, its signature verified (RFC 2986).

    Read are the subject, the key, the signature, subjectAltName, extendedKeyUsage, challengePassword and what names the
    key to seal a new one for. Whatever else is in it is signed, and left unread.

    Raises: TooLarge, Malformed, WeakKey, Unsupported, BadSignature.
    """
    if len(data) > CSR_SIZE_MAX:
        raise TooLarge(f"The certificate request is larger than {CSR_SIZE_MAX} bytes.")
    parts = _parts_of(data)
    public_key, spki_der = _key_of(parts.spki)
    key_type = key_type_of(public_key)
    subject = _subject_of(parts.subject)
    attributes = _attributes_of(parts.attributes)
    extensions = _extensions_of(attributes)
    alt_names = alt_name_values(extension_value(extensions, SUBJECT_ALT_NAME))
    challenge = _challenge_password(attributes)
    verify_signature(public_key, key_type, parts.algorithm, parts.signature, parts.signed)
    return Csr(
        der=data,
        subject=subject,
        alt_names=alt_names,
        key_type=key_type,
        spki_der=spki_der,
        key_sha256=hashlib.sha256(spki_der).digest(),
        challenge_password=challenge,
        sealing=_sealing(attributes),
        extended_key_usages=extended_key_usages(extensions),
    )


def _parts_of(data: bytes) -> _Parts:
    whole = list(der.children(der.only_element(data, der.SEQUENCE)))
    if [part.tag for part in whole] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Malformed("The certificate request is not a signed CertificationRequestInfo.")
    info, algorithm, signature = whole
    fields = list(der.children(info))
    tags = [each.tag for each in fields]
    if tags[:3] != [der.INTEGER, der.SEQUENCE, der.SEQUENCE] or tags[3:] not in ([], [der.CONTEXT_0]):
        raise Malformed("The CertificationRequestInfo is not version, subject, public key and attributes.")
    version, subject, spki, *attributes = fields
    if version.content != b"\0":
        if len(version.content) == 1 and version.content < b"\x80":
            raise Unsupported("The certificate request is of another version than 1.")
        raise Malformed("The version of the certificate request is badly formed.")
    if signature.content[:1] != b"\0":
        raise Malformed("The signature of the certificate request is not a whole number of octets.")
    return _Parts(info.whole, subject, spki, attributes[0] if attributes else None, algorithm, signature.content[1:])


def _key_of(spki: der.Element) -> tuple[PublicKeyTypes, bytes]:
    """The public key, and its SubjectPublicKeyInfo as a certificate will hold it."""
    with library_errors("public key"):
        key = load_spki(spki.whole)
        canonical = canonical_spki(spki.whole, key)
    if canonical == spki.whole or _is_rsa_encryption(spki):
        return key, canonical
    if is_for_pss(spki):
        raise Unsupported("The key is for RSASSA-PSS alone (id-RSASSA-PSS); use rsaEncryption or an EC key on P-256.")
    # RFC 5480, 2.1.1: explicit curve parameters are forbidden; the library reads them where it knows the curve.
    raise Unsupported("The public key has explicit curve parameters or a compressed point; use a named curve.")


def _is_rsa_encryption(spki: der.Element) -> bool:
    """Its parameters are NULL, or left out by some: the key is the same."""
    algorithm = next(der.children(spki))
    return next(der.children(algorithm)).whole == _RSA_ENCRYPTION


def _subject_of(name: der.Element) -> Subject:
    attributes: list[der.Element] = []
    for rdn in der.children(name):
        single = list(der.children(rdn))
        if len(single) != 1:
            # Two values in one RDN would compare equal to two RDNs once flattened.
            raise Unsupported(
                "The subject has an RDN without or with several attributes; give each attribute its own RDN."
            )
        attributes += single
    return attribute_values(attributes)


def _attributes_of(attributes: der.Element | None) -> dict[str, der.Element]:
    """The value of each attribute that is read, by its dotted OID."""
    found: dict[str, der.Element] = {}
    all_of_them = list(der.children(attributes)) if attributes is not None else []
    if len(all_of_them) > ATTRIBUTES_MAX:
        raise TooLarge(f"The request holds {len(all_of_them)} attributes; at most {ATTRIBUTES_MAX} are taken.")
    for attribute in all_of_them:
        kind = next(der.children(attribute), None)
        if kind is None or kind.tag != der.OBJECT_IDENTIFIER:
            raise Malformed("An attribute of the request is badly formed.")
        oid = der.dotted_oid(kind.content)
        if oid not in _READ_ATTRIBUTES:
            continue
        if oid in found:
            raise Malformed("The request holds the same attribute twice.")
        values = [value for each in list(der.children(attribute))[1:] for value in der.children(each)]
        if len(values) != 1:
            raise Malformed("An attribute of the request has no value or several.")
        found[oid] = values[0]
    return found


def _extensions_of(attributes: dict[str, der.Element]) -> der.Element | None:
    asked = [attributes[oid] for oid in (EXTENSION_REQUEST, _MICROSOFT_EXTENSION_REQUEST) if oid in attributes]
    if len(asked) > 1:
        raise Malformed("The request asks for extensions twice.")
    return asked[0] if asked else None


def _challenge_password(attributes: dict[str, der.Element]) -> str | None:
    value = attributes.get(CHALLENGE_PASSWORD)
    if value is None:
        return None
    if len(value.content) > CHALLENGE_SIZE_MAX:
        raise TooLarge(f"The challenge password is longer than {CHALLENGE_SIZE_MAX} bytes.")
    if value.tag not in _CHALLENGE_TAGS:
        raise Unsupported("The challenge password is not a string.")
    text = der.text_of(value)
    if text is None:
        raise Malformed("The challenge password is not valid text.")
    return text


def _sealing(attributes: dict[str, der.Element]) -> KeySealing | None:
    named = [oid for oid in (_DECRYPT_KEY, _ASYMMETRIC_DECRYPT_KEY) if oid in attributes]
    if not named:
        return None
    if len(named) > 1:
        raise Malformed("The request names two keys to seal a new key for; one is taken.")
    identifier = attributes[named[0]]
    if identifier.tag != der.OCTET_STRING or not 1 <= len(identifier.content) <= KEY_IDENTIFIER_SIZE_MAX:
        raise Malformed("The key to seal a new key for is not named by a short octet string.")
    ciphers = None
    if _SMIME_CAPABILITIES in attributes:
        capabilities = der.only_element(attributes[_SMIME_CAPABILITIES].whole, der.SEQUENCE)
        # RFC 8551, 2.5.2: a SEQUENCE OF SEQUENCE { capabilityID, parameters OPTIONAL }
        parts = [next(der.children(each), None) for each in der.children(capabilities)]
        if any(part is None or part.tag != der.OBJECT_IDENTIFIER for part in parts):
            raise Malformed("The SMIMECapabilities are badly formed.")
        ciphers = tuple(der.dotted_oid(part.content) for part in parts if part is not None)
    return KeySealing(identifier.content, named[0] == _ASYMMETRIC_DECRYPT_KEY, ciphers)


def build_csr(
    private_key: CertificateIssuerPrivateKeyTypes,
    subject: Sequence[tuple[str, str]],
    alt_names: Sequence[str],
    challenge_password: str | None = None,
) -> bytes:
    """DER of a request for `subject` and `alt_names` (the shapes of Csr), signed with `private_key`.

    Raises: Malformed, TooLarge, Unsupported when a name can't be written.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(subject))
    if alt_names:
        names = x509.SubjectAlternativeName([alt_name(text) for text in alt_names])
        # RFC 5280, 4.2.1.6: critical when there is no subject to go by.
        builder = builder.add_extension(names, critical=not subject)
    if challenge_password is not None:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge_password.encode())
    with library_errors("certificate request"):
        return builder.sign(private_key, _hash_for(private_key)).public_bytes(Encoding.DER)


def _hash_for(private_key: CertificateIssuerPrivateKeyTypes) -> SigningHash | None:
    """The hash that matches the key's strength; None for the kinds that bring their own."""
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        return curve_hash(private_key)
    return hashes.SHA256() if isinstance(private_key, rsa.RSAPrivateKey) else None
