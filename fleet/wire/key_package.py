"""A private key on its way to its owner, sealed for one recipient (RFC 7030, 4.4.2).

    EnvelopedData                 for the recipient's RSA or EC key (RFC 5652, 6; RFC 5753)
      SignedData                  by the generator of the key
        AsymmetricKeyPackage      the PKCS#8 (RFC 5958)

Only the writing half is here; any CMS reader opens it, for instance `openssl cms -decrypt`.
"""

import hashlib
import os
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire import der
from fleet.wire.errors import Unsupported
from fleet.wire.spki import spki_of

_OCTETS = {"aes256-CBC": 32, "aes128-CBC": 16}
CIPHERS = {"2.16.840.1.101.3.4.1.42": "aes256-CBC", "2.16.840.1.101.3.4.1.2": "aes128-CBC"}
"""OIDs of the content ciphers that can be asked for, the one we prefer first."""

_CIPHER_OIDS = {name: oid for oid, name in CIPHERS.items()}
_KEY_PACKAGE = der.encode_oid("2.16.840.1.101.2.1.2.78.5")
_SIGNED_DATA = der.encode_oid("1.2.840.113549.1.7.2")
_ENVELOPED_DATA = der.encode_oid("1.2.840.113549.1.7.3")
_CONTENT_TYPE = der.encode_oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = der.encode_oid("1.2.840.113549.1.9.4")
_SHA256 = der.sequence(der.encode_oid("2.16.840.1.101.3.4.2.1"))
_ECDSA_SHA256 = der.sequence(der.encode_oid("1.2.840.10045.4.3.2"))
_MGF1 = der.sequence(der.encode_oid("1.2.840.113549.1.1.8"), _SHA256)
_OAEP_SHA256 = der.sequence(
    der.encode_oid("1.2.840.113549.1.1.7"),
    der.sequence(der.encode_element(der.CONTEXT_0, _SHA256), der.encode_element(der.CONTEXT_1, _MGF1)),
)
_ECDH_SHA256_KDF = der.encode_oid("1.3.132.1.11.1")  # dhSinglePass-stdDH-sha256kdf-scheme (RFC 5753, 7.1.4)
_AES256_WRAP = der.sequence(der.encode_oid("2.16.840.1.101.3.4.1.45"))
_CONTEXT_0_PRIMITIVE = 0x80
_CONTEXT_2 = 0xA2
_WRAP_KEY_OCTETS = 32


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a key is sealed for: the key that opens it, and the identifier under which the recipient knows that."""

    public_key: CertificatePublicKeyTypes
    identifier: bytes


@dataclass(frozen=True, slots=True)
class Sealer:
    """Who made the key and says so."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)


def can_receive(public_key: CertificatePublicKeyTypes) -> bool:
    """Whether a key can be sealed for `public_key`: RSA, or EC on a NIST curve. Others sign only."""
    return isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)


def seal_key(pkcs8: bytes, recipient: Recipient, sealer: Sealer, cipher: str = "aes256-CBC") -> bytes:
    """DER of a ContentInfo that holds `pkcs8` for `recipient` alone, signed by `sealer`.

    Raises: Unsupported: the recipient's key cannot receive, or the cipher is none of CIPHERS.
    """
    if cipher not in _OCTETS:
        raise Unsupported("The content cipher asked for is not known here.")
    content_key, iv = os.urandom(_OCTETS[cipher]), os.urandom(16)
    padder = padding.PKCS7(128).padder()
    padded = padder.update(_signed(pkcs8, sealer)) + padder.finalize()
    encryptor = Cipher(algorithms.AES(content_key), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(padded) + encryptor.finalize()
    algorithm = der.sequence(der.encode_oid(_CIPHER_OIDS[cipher]), der.encode_element(der.OCTET_STRING, iv))
    content = der.sequence(_SIGNED_DATA, algorithm, der.encode_element(_CONTEXT_0_PRIMITIVE, sealed))
    # RFC 5652, 6.1: version 2, since the recipient is named by a key identifier.
    recipients = der.encode_element(der.SET, _recipient_info(content_key, recipient))
    return _content_info(_ENVELOPED_DATA, der.sequence(_integer(2), recipients, content))


def _content_info(oid: bytes, content: bytes) -> bytes:
    return der.sequence(oid, der.encode_element(der.CONTEXT_0, content))


def _integer(number: int) -> bytes:
    return der.encode_element(der.INTEGER, bytes((number,)))


def _recipient_info(content_key: bytes, recipient: Recipient) -> bytes:
    match recipient.public_key:
        case rsa.RSAPublicKey() as key:
            return _key_transport(content_key, key, recipient.identifier)
        case ec.EllipticCurvePublicKey() as key:
            return _key_agreement(content_key, key, recipient.identifier)
        case _:
            raise Unsupported("A key of this kind signs only: nothing can be sealed for it.")


def _key_transport(content_key: bytes, key: rsa.RSAPublicKey, identifier: bytes) -> bytes:
    """RFC 5652, 6.2.1, with RSAES-OAEP (RFC 3560)."""
    oaep = rsa_padding.OAEP(mgf=rsa_padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    return der.sequence(
        _integer(2),
        der.encode_element(_CONTEXT_0_PRIMITIVE, identifier),
        _OAEP_SHA256,
        der.encode_element(der.OCTET_STRING, key.encrypt(content_key, oaep)),
    )


def _key_agreement(content_key: bytes, key: ec.EllipticCurvePublicKey, identifier: bytes) -> bytes:
    """RFC 5652, 6.2.2, with an ephemeral key on the recipient's curve (RFC 5753, 3.1)."""
    ephemeral = ec.generate_private_key(key.curve)
    # RFC 5753, 7.2: ECC-CMS-SharedInfo
    bits = der.encode_element(der.OCTET_STRING, (_WRAP_KEY_OCTETS * 8).to_bytes(4))
    shared_info = der.sequence(_AES256_WRAP, der.encode_element(_CONTEXT_2, bits))
    kdf = X963KDF(hashes.SHA256(), _WRAP_KEY_OCTETS, shared_info)
    wrapped = aes_key_wrap(kdf.derive(ephemeral.exchange(ec.ECDH(), key)), content_key)
    spki = spki_of(ephemeral.public_key())
    originator = der.only_element(spki, der.SEQUENCE).content  # [1] IMPLICIT replaces the SEQUENCE tag
    for_recipient = der.sequence(
        der.encode_element(der.CONTEXT_0, der.encode_element(der.OCTET_STRING, identifier)),
        der.encode_element(der.OCTET_STRING, wrapped),
    )
    return der.encode_element(
        der.CONTEXT_1,
        _integer(3)
        + der.encode_element(der.CONTEXT_0, der.encode_element(der.CONTEXT_1, originator))
        + der.sequence(_ECDH_SHA256_KDF, _AES256_WRAP)
        + der.sequence(for_recipient),
    )


def _signed(pkcs8: bytes, sealer: Sealer) -> bytes:
    """DER of a SignedData over an AsymmetricKeyPackage, without a ContentInfo around it (RFC 5652, 5.1)."""
    package = der.sequence(pkcs8)
    digest = der.encode_element(der.OCTET_STRING, hashlib.sha256(package).digest())
    # X.690, 11.6
    attributes = b"".join(sorted((_attribute(_CONTENT_TYPE, _KEY_PACKAGE), _attribute(_MESSAGE_DIGEST, digest))))
    # RFC 5652, 5.4: signed as a SET, sent as [0] IMPLICIT.
    signature = sealer.private_key.sign(der.encode_element(der.SET, attributes), ec.ECDSA(hashes.SHA256()))
    certificate = sealer.certificate
    serial = certificate.serial_number
    serial_number = der.encode_element(der.INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1, signed=True))
    signer = der.sequence(
        _integer(1),
        der.sequence(certificate.issuer.public_bytes(), serial_number),
        _SHA256,
        der.encode_element(der.CONTEXT_0, attributes),
        _ECDSA_SHA256,
        der.encode_element(der.OCTET_STRING, signature),
    )
    return der.sequence(
        _integer(3),
        der.encode_element(der.SET, _SHA256),
        _content_info(_KEY_PACKAGE, der.encode_element(der.OCTET_STRING, package)),
        der.encode_element(der.CONTEXT_0, certificate.public_bytes(Encoding.DER)),
        der.encode_element(der.SET, signer),
    )


def _attribute(oid: bytes, value: bytes) -> bytes:
    return der.sequence(oid, der.encode_element(der.SET, value))
