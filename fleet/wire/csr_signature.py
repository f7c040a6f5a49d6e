"""Verification of a CSR's signature: what its algorithm identifier means for the key that it holds.

Parameters behind an algorithm that has none are left unread: Java and some devices write NULL after ECDSA.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from fleet.wire import der
from fleet.wire.errors import BadSignature, Malformed, Unsupported
from fleet.wire.key_types import KEY_TYPES
from fleet.wire.parsing import library_errors
from fleet.wire.spki import RSASSA_PSS

_SHA3 = "2.16.840.1.101.3.4.3"
_ECDSA: dict[str, ec.ECDSA] = {
    "1.2.840.10045.4.3.1": ec.ECDSA(hashes.SHA224()),
    "1.2.840.10045.4.3.2": ec.ECDSA(hashes.SHA256()),
    "1.2.840.10045.4.3.3": ec.ECDSA(hashes.SHA384()),
    "1.2.840.10045.4.3.4": ec.ECDSA(hashes.SHA512()),
    f"{_SHA3}.9": ec.ECDSA(hashes.SHA3_224()),
    f"{_SHA3}.10": ec.ECDSA(hashes.SHA3_256()),
    f"{_SHA3}.11": ec.ECDSA(hashes.SHA3_384()),
    f"{_SHA3}.12": ec.ECDSA(hashes.SHA3_512()),
}
_RSA: dict[str, hashes.HashAlgorithm] = {
    "1.2.840.113549.1.1.14": hashes.SHA224(),
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
    f"{_SHA3}.13": hashes.SHA3_224(),
    f"{_SHA3}.14": hashes.SHA3_256(),
    f"{_SHA3}.15": hashes.SHA3_384(),
    f"{_SHA3}.16": hashes.SHA3_512(),
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.4": hashes.SHA224(),
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_WEAK = frozenset(
    {
        "1.2.840.10045.4.1",  # ecdsa-with-SHA1
        "1.2.840.113549.1.1.4",  # md5WithRSAEncryption
        "1.2.840.113549.1.1.5",  # sha1WithRSAEncryption
        "1.3.14.3.2.26",  # SHA-1
        "1.2.840.113549.2.5",  # MD5
    }
)
_CURVES = frozenset(each.name for each in KEY_TYPES if each.curve)
_OWN_HASH = {each.algorithm: each.name for each in KEY_TYPES if each.is_plain}
_SALT_SIZE_MAX = 512  # of an RSA-4096 signature


def verify_signature(
    key: PublicKeyTypes, key_type: str, algorithm: der.Element, signature: bytes, signed: bytes
) -> None:
    """Raises: BadSignature; Unsupported: an unknown or weak algorithm; Malformed."""
    kind, parameters = _algorithm(algorithm)
    with library_errors("signature"):
        try:
            if key_type in _CURVES and kind in _ECDSA:
                key.verify(signature, signed, _ECDSA[kind])  # type: ignore[union-attr,call-arg,arg-type]
            elif isinstance(key, rsa.RSAPublicKey) and kind in _RSA:
                key.verify(signature, signed, padding.PKCS1v15(), _RSA[kind])
            elif isinstance(key, rsa.RSAPublicKey) and kind == RSASSA_PSS:
                key.verify(signature, signed, *_pss(parameters))
            elif _OWN_HASH.get(kind) == key_type:
                key.verify(signature, signed)  # type: ignore[union-attr,call-arg]
            else:
                _refuse(kind)
        except InvalidSignature:
            raise BadSignature("The certificate request's own signature does not verify.") from None


def _refuse(kind: str) -> None:
    if kind in _WEAK:
        raise Unsupported("The request is signed with MD5 or SHA-1; use SHA-256.")
    if kind in _ECDSA or kind in _RSA or kind in _OWN_HASH or kind == RSASSA_PSS:
        raise BadSignature("The certificate request is signed by an algorithm that is not of its key.")
    raise Unsupported(f"The request is signed by an algorithm that is not supported: {kind}.")


def _algorithm(identifier: der.Element) -> tuple[str, der.Element | None]:
    """OID and parameters of an AlgorithmIdentifier (RFC 5280, 4.1.1.2)."""
    parts = list(der.children(identifier))
    if not 1 <= len(parts) <= 2 or parts[0].tag != der.OBJECT_IDENTIFIER:
        raise Malformed("An algorithm identifier is badly formed.")
    return der.dotted_oid(parts[0].content), parts[1] if len(parts) == 2 else None


def _pss(parameters: der.Element | None) -> tuple[padding.PSS, hashes.HashAlgorithm]:
    """RFC 4055, 3.1: [0] hash, [1] MGF1 with its hash, [2] length of the salt; without them SHA-1."""
    fields = {field.tag: der.only_element(field.content, field.data[field.start]) for field in _fields(parameters)}
    if not {der.CONTEXT_0, der.CONTEXT_1} <= fields.keys():
        raise Unsupported("The request is signed with MD5 or SHA-1; use SHA-256.")
    hash_, mask = _hash(fields[der.CONTEXT_0]), _algorithm(fields[der.CONTEXT_1])[1]
    if mask is None:
        raise Malformed("The parameters of RSASSA-PSS are badly formed.")
    salt = int.from_bytes(fields[_SALT].content) if _SALT in fields else 20
    if salt > _SALT_SIZE_MAX:
        raise Malformed("The salt of an RSASSA-PSS signature cannot be that long.")
    return padding.PSS(padding.MGF1(_hash(mask)), salt), hash_


_SALT = 0xA2


def _fields(parameters: der.Element | None) -> list[der.Element]:
    fields = list(der.children(parameters)) if parameters is not None and parameters.tag == der.SEQUENCE else []
    if any(field.start == field.stop for field in fields):
        raise Malformed("The parameters of RSASSA-PSS are badly formed.")
    return fields


def _hash(identifier: der.Element) -> hashes.HashAlgorithm:
    kind = _algorithm(identifier)[0]
    if kind not in _HASHES:
        _refuse(kind)
    return _HASHES[kind]
