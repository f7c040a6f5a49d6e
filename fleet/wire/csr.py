"""Certificate signing request (RFC 2986): decoder to a verified, frozen value, and encoder for clients.

Order matters in `decode_csr`: size, then structure, then the kind of key, and only then the costly signature.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID

from fleet.wire import der
from fleet.wire.errors import BadSignature, Malformed, TooLarge, Unsupported, WeakKey
from fleet.wire.names import AltNames, Subject, alt_name, alt_name_values, names_of_certificate, subject_name
from fleet.wire.names import subject_values as _subject_values
from fleet.wire.parsing import library_errors
from fleet.wire.rsa_modulus import modulus_weakness
from fleet.wire.spki import encode_spki

__all__ = ["CSR_SIZE_MAX", "Csr", "build_csr", "decode_csr", "key_type_of", "names_of_certificate"]

CSR_SIZE_MAX = 16 * 1024  # an ML-DSA-87 request takes 7.5 KB, an RSA-8192 one 2.5 KB, names included
ATTRIBUTES_MAX = 16
KEY_IDENTIFIER_SIZE_MAX = 64
CHALLENGE_SIZE_MAX = 255  # RFC 2985, pkcs-9-ub-challengePassword

RSA_BITS_MIN = 2048
RSA_BITS_MAX = 8192  # verifying with longer ones costs the server more than the client
RSA_EXPONENT_MIN = 65537
RSA_EXPONENT_MAX = (1 << 64) - 1  # the same reason

_CURVES = {"secp256r1": "EC-P256", "secp384r1": "EC-P384", "secp521r1": "EC-P521"}
_CURVE_BITS_MIN = 256
_ML_DSA = {
    mldsa.MLDSA44PublicKey: "ML-DSA-44",
    mldsa.MLDSA65PublicKey: "ML-DSA-65",
    mldsa.MLDSA87PublicKey: "ML-DSA-87",
}
_WEAK_HASHES = ("md5", "sha1")

_DECRYPT_KEY = "1.2.840.113549.1.9.16.2.37"
_ASYMMETRIC_DECRYPT_KEY = "1.2.840.113549.1.9.16.2.54"
_SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"

_UTF8_STRING, _PRINTABLE_STRING, _T61_STRING, _IA5_STRING, _BMP_STRING = 12, 19, 20, 22, 30
_CHALLENGE_CODECS = {
    _UTF8_STRING: "utf-8",
    _PRINTABLE_STRING: "ascii",
    _T61_STRING: "latin-1",
    _IA5_STRING: "ascii",
    _BMP_STRING: "utf-16-be",
}


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
    """"EC-P256", "EC-P384", "EC-P521", "RSA-2048+", "Ed25519", "Ed448", "ML-DSA-44", "ML-DSA-65" or "ML-DSA-87"."""
    spki_der: bytes = field(repr=False)
    """The SubjectPublicKeyInfo, canonical: the same key gives the same bytes in a request and in a certificate."""
    key_sha256: bytes
    """SHA-256 of `spki_der`, 32 bytes."""
    challenge_password: str | None = field(default=None, repr=False)
    """RFC 7030, 3.5 carries the channel binding here. Never shown or logged."""
    sealing: KeySealing | None = None
    extended_key_usages: tuple[str, ...] | None = None
    """Dotted OIDs of the requested extension, in order; None without one."""


def decode_csr(data: bytes) -> Csr:
    """The request in `data`: DER, exact to the byte, its signature verified (RFC 2986).

    Raises: TooLarge, Malformed, WeakKey, Unsupported, BadSignature.
    """
    if len(data) > CSR_SIZE_MAX:
        raise TooLarge(f"The certificate request is larger than {CSR_SIZE_MAX} bytes.")
    with library_errors("certificate request"):
        request = x509.load_der_x509_csr(data)
        attributes = list(request.attributes)
        public_key = request.public_key()
        subject = request.subject
        extensions = request.extensions
    key_type = key_type_of(public_key)
    spki_der = encode_spki(public_key)
    if spki_der not in data:
        # RFC 5480, 2.1.1: explicit curve parameters are forbidden; the library reads them where it knows the curve.
        raise Unsupported("The public key has explicit curve parameters or a compressed point; use a named curve.")
    _check_shape(subject, attributes)
    names = _subject_values(subject), alt_name_values(extensions)
    challenge = _challenge_password(attributes)
    _verify(request, public_key)
    return Csr(
        der=data,
        subject=names[0],
        alt_names=names[1],
        key_type=key_type,
        spki_der=spki_der,
        key_sha256=hashlib.sha256(spki_der).digest(),
        challenge_password=challenge,
        sealing=_sealing(attributes),
        extended_key_usages=_extended_key_usages(extensions),
    )


def key_type_of(public_key: PublicKeyTypes) -> str:
    """The kind of `public_key`, by the names that Csr.key_type uses. Raises: WeakKey, Unsupported."""
    match public_key:
        case ec.EllipticCurvePublicKey(curve=curve):
            if curve.name in _CURVES:
                return _CURVES[curve.name]
            if curve.key_size < _CURVE_BITS_MIN:
                raise WeakKey(f"An EC key on curve {curve.name} is too short; use P-256.")
            raise Unsupported(f"EC keys on curve {curve.name} are not taken; use P-256.")
        case rsa.RSAPublicKey(key_size=bits):
            if bits < RSA_BITS_MIN:
                raise WeakKey(f"An RSA key of {bits} bits is too short; use {RSA_BITS_MIN} or more.")
            if bits > RSA_BITS_MAX:
                raise Unsupported(f"An RSA key of {bits} bits is too long; use at most {RSA_BITS_MAX}.")
            numbers = public_key.public_numbers()
            exponent = numbers.e
            if not RSA_EXPONENT_MIN <= exponent <= RSA_EXPONENT_MAX or exponent % 2 == 0:
                raise WeakKey("The RSA key's public exponent is out of bounds; use 65537.")
            if (weakness := modulus_weakness(numbers.n)) is not None:
                raise WeakKey(f"The RSA key can be broken: {weakness}. Make a new one with another generator.")
            return "RSA-2048+"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
        case dsa.DSAPublicKey():
            raise WeakKey("DSA keys are not accepted; use an EC key on P-256.")
        case _:
            name = next((name for kind, name in _ML_DSA.items() if isinstance(public_key, kind)), None)
            if name is None:
                raise Unsupported("Keys of this kind can't sign and are not taken; use an EC key on P-256.")
            return name


def _extended_key_usages(extensions: x509.Extensions) -> tuple[str, ...] | None:
    for extension in extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            return tuple(usage.dotted_string for usage in extension.value)
    return None


def _check_shape(subject: x509.Name, attributes: list[x509.Attribute]) -> None:
    """Refuses shapes that the library accepts and later checks would have to reason about."""
    for rdn in subject.rdns:
        if len(rdn) != 1:
            # Two values in one RDN would compare equal to two RDNs once flattened.
            raise Unsupported("The subject has an RDN with several attributes; give each attribute its own RDN.")
    if len(attributes) > ATTRIBUTES_MAX:
        raise TooLarge(f"The request holds {len(attributes)} attributes; at most {ATTRIBUTES_MAX} are taken.")
    if len(attributes) > 1 and len({attribute.oid for attribute in attributes}) != len(attributes):
        raise Malformed("The request holds the same attribute twice.")


def _challenge_password(attributes: list[x509.Attribute]) -> str | None:
    for attribute in attributes:
        if attribute.oid != AttributeOID.CHALLENGE_PASSWORD:
            continue
        if len(attribute.value) > CHALLENGE_SIZE_MAX:
            raise TooLarge(f"The challenge password is longer than {CHALLENGE_SIZE_MAX} bytes.")
        codec = _CHALLENGE_CODECS.get(attribute._type)
        if codec is None:
            raise Unsupported("The challenge password is not a string.")
        try:
            return attribute.value.decode(codec)
        except UnicodeDecodeError:
            # Not chained: the decoding error repeats the bytes.
            raise Malformed("The challenge password is not valid text.") from None
    return None


def _sealing(attributes: list[x509.Attribute]) -> KeySealing | None:
    if not attributes:
        return None
    found = {attribute.oid.dotted_string: attribute for attribute in attributes}
    named = [oid for oid in (_DECRYPT_KEY, _ASYMMETRIC_DECRYPT_KEY) if oid in found]
    if not named:
        return None
    if len(named) > 1:
        raise Malformed("The request names two keys to seal a new key for; one is taken.")
    identifier = found[named[0]]
    if identifier._type != der.OCTET_STRING or not 1 <= len(identifier.value) <= KEY_IDENTIFIER_SIZE_MAX:
        raise Malformed("The key to seal a new key for is not named by a short octet string.")
    ciphers = None
    if _SMIME_CAPABILITIES in found:
        capabilities = der.sequence(found[_SMIME_CAPABILITIES].value)
        # RFC 8551, 2.5.2: a SEQUENCE OF SEQUENCE { capabilityID, parameters OPTIONAL }
        parts = [next(der.children(each), None) for each in der.children(der.only_element(capabilities, der.SEQUENCE))]
        if any(part is None or part.tag != der.OBJECT_IDENTIFIER for part in parts):
            raise Malformed("The SMIMECapabilities are badly formed.")
        ciphers = tuple(der.dotted_oid(part.content) for part in parts if part is not None)
    return KeySealing(identifier.value, named[0] == _ASYMMETRIC_DECRYPT_KEY, ciphers)


def _verify(request: x509.CertificateSigningRequest, public_key: PublicKeyTypes) -> None:
    with library_errors("certificate request"):
        algorithm = request.signature_algorithm_parameters
        hash_algorithm = request.signature_hash_algorithm
        if hash_algorithm is not None and hash_algorithm.name in _WEAK_HASHES:
            raise Unsupported("The request is signed with MD5 or SHA-1; use SHA-256.")
        if isinstance(algorithm, ec.ECDSA) and isinstance(public_key, ec.EllipticCurvePublicKey):
            # A sixth of the whole cost cheaper than `is_signature_valid`, which reads the key a second time.
            try:
                public_key.verify(request.signature, request.tbs_certrequest_bytes, algorithm)
            except InvalidSignature:
                valid = False
            else:
                valid = True
        else:
            valid = request.is_signature_valid
    if not valid:
        raise BadSignature("The certificate request's own signature does not verify.")


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


def _hash_for(private_key: CertificateIssuerPrivateKeyTypes) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """The hash that matches the key's strength; None for the kinds that bring their own."""
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        if private_key.key_size > 384:
            return hashes.SHA512()
        return hashes.SHA384() if private_key.key_size > 256 else hashes.SHA256()
    return hashes.SHA256() if isinstance(private_key, rsa.RSAPrivateKey) else None
