"""CSRs that no honest client sends, each built byte by byte and, where its structure allows, truly signed.

Every text in them holds "evil": where it comes up in a certificate or a log, something of the CSR was copied.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, padding, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.wire import der
from fleet.wire.der import SEQUENCE, SET, encode_element, encode_oid

NAME = "cam-1"
"""The device that every CSR names, save where the name is the very thing that is wrong."""
EVIL = "evil"

BIT_STRING, INTEGER, BOOLEAN, NULL = 0x03, 0x02, 0x01, b"\x05\x00"
UTF8, PRINTABLE, TELETEX, IA5, UNIVERSAL, BMP = 0x0C, 0x13, 0x14, 0x16, 0x1C, 0x1E
ECDSA_SHA256, ECDSA_SHA1 = "1.2.840.10045.4.3.2", "1.2.840.10045.4.1"
RSA_SHA256, RSA_MD5 = "1.2.840.113549.1.1.11", "1.2.840.113549.1.1.4"
EC_KEY, RSA_KEY = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"
CN, O, OU, DN_SERIAL, EMAIL = "2.5.4.3", "2.5.4.10", "2.5.4.11", "2.5.4.5", "1.2.840.113549.1.9.1"  # noqa: E741
EXTENSION_REQUEST, CHALLENGE = "1.2.840.113549.1.9.14", "1.2.840.113549.1.9.7"
SAN, EKU, KEY_USAGE, BASIC = "2.5.29.17", "2.5.29.37", "2.5.29.15", "2.5.29.19"

Key = ec.EllipticCurvePrivateKey
Refusal = tuple[int, str]


@dataclass(frozen=True)
class Case:
    what: str
    build: Callable[[Key], bytes]
    """The CSR for a key of the case's own."""
    expected: Refusal | None
    """Status and code; None when it is taken, and nothing of it copied."""
    armour: Callable[[bytes], bytes] = base64.b64encode
    """What becomes of it in the body."""


# Parts


def sequence(*parts: bytes) -> bytes:
    return encode_element(SEQUENCE, b"".join(parts))


def set_of(*parts: bytes) -> bytes:
    return encode_element(SET, b"".join(sorted(parts)))  # X.690, 11.6


def text(tag: int, value: str) -> bytes:
    codec = {BMP: "utf-16-be", UNIVERSAL: "utf-32-be", TELETEX: "latin-1"}.get(tag, "utf-8")
    return encode_element(tag, value.encode(codec))


def rdn(oid: str, value: str, tag: int = UTF8) -> bytes:
    return set_of(sequence(encode_oid(oid), text(tag, value)))


def subject(*rdns: bytes) -> bytes:
    return sequence(*rdns)


PLAIN = subject(rdn(CN, NAME))


def spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ec_spki(parameters: bytes, point: bytes) -> bytes:
    return sequence(sequence(encode_oid(EC_KEY), parameters), encode_element(BIT_STRING, b"\0" + point))


def rsa_spki(modulus: bytes, exponent: bytes = b"\x01\x00\x01") -> bytes:
    """Both as the content of an INTEGER."""
    numbers = sequence(encode_element(INTEGER, modulus), encode_element(INTEGER, exponent))
    return sequence(sequence(encode_oid(RSA_KEY), NULL), encode_element(BIT_STRING, b"\0" + numbers))


def attribute(oid: str, *values: bytes) -> bytes:
    return sequence(encode_oid(oid), set_of(*values))


def extension(oid: str, value: bytes, *, critical: bytes = b"") -> bytes:
    return sequence(encode_oid(oid), critical, encode_element(der.OCTET_STRING, value))


CRITICAL = b"\x01\x01\xff"


def requested(*extensions: bytes) -> bytes:
    return attribute(EXTENSION_REQUEST, sequence(*extensions))


def san(*names: bytes) -> bytes:
    return extension(SAN, sequence(*names))


def info(
    key: Key,
    *attributes: bytes,
    name: bytes = PLAIN,
    key_info: bytes | None = None,
    version: bytes = b"\x02\x01\x00",
    tail: bytes = b"",
) -> bytes:
    """A CertificationRequestInfo."""
    content = encode_element(der.CONTEXT_0, b"".join(sorted(attributes)))  # X.690, 11.6
    return sequence(version, name, key_info or spki(key.public_key()), content, tail)


def signed(key: Key, body: bytes, algorithm: str = ECDSA_SHA256, hash_: hashes.HashAlgorithm | None = None) -> bytes:
    """`body` with a true signature, whatever `body` is."""
    signature = key.sign(body, ec.ECDSA(hash_ or hashes.SHA256()))
    return sequence(body, sequence(encode_oid(algorithm)), encode_element(BIT_STRING, b"\0" + signature))


def rsa_signed(key: rsa.RSAPrivateKey, algorithm: str, hash_: hashes.HashAlgorithm) -> bytes:
    content = encode_element(der.CONTEXT_0, b"")
    body = sequence(b"\x02\x01\x00", PLAIN, spki(key.public_key()), content)
    signature = key.sign(body, padding.PKCS1v15(), hash_)
    return sequence(body, sequence(encode_oid(algorithm), NULL), encode_element(BIT_STRING, b"\0" + signature))


def with_attributes(*attributes: bytes) -> Callable[[Key], bytes]:
    return lambda key: signed(key, info(key, *attributes))


def with_extensions(*extensions: bytes) -> Callable[[Key], bytes]:
    return with_attributes(requested(*extensions))


def named(*rdns: bytes) -> Callable[[Key], bytes]:
    return lambda key: signed(key, info(key, name=subject(*rdns)))


def keyed(key_info: bytes) -> Callable[[Key], bytes]:
    """With another public key than the one that signs: it must be refused before the signature is looked at."""
    return lambda key: signed(key, info(key, key_info=key_info))


def plain(key: Key) -> bytes:
    return signed(key, info(key))


# Names that are asked for

GENERAL_NAMES = {
    "otherName (UPN)": encode_element(
        0xA0, encode_oid("1.3.6.1.4.1.311.20.2.3") + encode_element(0xA0, text(UTF8, "evil@example.com"))
    ),
    "otherName (hwModuleName)": encode_element(
        0xA0,
        encode_oid("1.3.6.1.5.5.7.8.4")
        + encode_element(0xA0, sequence(encode_oid("1.3.6.1.4.1.1"), encode_element(der.OCTET_STRING, b"evil"))),
    ),
    "rfc822Name": encode_element(0x81, b"evil@example.com"),
    "dNSName": encode_element(0x82, b"evil.example.com"),
    "dNSName *": encode_element(0x82, b"*.evil"),
    "directoryName": encode_element(0xA4, subject(rdn(CN, "evil"), rdn(O, "evil"))),
    "URI": encode_element(0x86, b"spiffe://evil/admin"),
    "iPAddress 4": encode_element(0x87, b"evil"),
    "iPAddress 6": encode_element(0x87, b"evilevilevilevil"),
    "registeredID": encode_element(0x88, encode_oid("1.3.6.1.4.1.99999.1")[2:]),
}
ODD_NAMES = {
    "x400Address": encode_element(0xA3, sequence()),
    "ediPartyName": encode_element(0xA5, encode_element(0xA1, text(UTF8, "evil"))),
    "iPAddress of 3 octets": encode_element(0x87, b"evi"),
    "a tag that is none": encode_element(0x89, b"evil"),
    "NUL": encode_element(0x82, b"evil.example.com\0.example.org"),
    "line end": encode_element(0x82, b"evil\r\nX: y"),
    "no ASCII": encode_element(0x82, "evil.exämple.com".encode()),
    "hwModuleName of nothing": encode_element(0xA0, encode_oid("1.3.6.1.5.5.7.8.4") + encode_element(0xA0, sequence())),
}

USAGES = {
    "serverAuth": "1.3.6.1.5.5.7.3.1",
    "codeSigning": "1.3.6.1.5.5.7.3.3",
    "OCSPSigning": "1.3.6.1.5.5.7.3.9",
    "cmcRA": "1.3.6.1.5.5.7.3.28",
    "any": "2.5.29.37.0",
    "unheard of": "1.3.6.1.4.1.99999.7",
}

EXTENSIONS = {
    "CA:TRUE": extension(BASIC, sequence(CRITICAL), critical=CRITICAL),
    "CA:TRUE, pathlen 9": extension(BASIC, sequence(CRITICAL, b"\x02\x01\x09"), critical=CRITICAL),
    "keyCertSign": extension(KEY_USAGE, b"\x03\x02\x01\x06", critical=CRITICAL),
    "every key usage": extension(KEY_USAGE, b"\x03\x03\x07\xff\x80"),
    "unknown": extension("1.3.6.1.4.1.99999.2", b"evil"),
    "unknown, critical": extension("1.3.6.1.4.1.99999.2", b"evil", critical=CRITICAL),
    "an SKI of its own": extension("2.5.29.14", encode_element(der.OCTET_STRING, b"evil" * 5)),
    "an AKI of its own": extension("2.5.29.35", sequence(encode_element(0x80, b"evil" * 5))),
    "policies": extension("2.5.29.32", sequence(sequence(encode_oid("2.5.29.32.0")))),
    "name constraints": extension(
        "2.5.29.30", sequence(encode_element(0xA0, sequence(encode_element(0x82, b"evil")))), critical=CRITICAL
    ),
    "Microsoft's template": extension("1.3.6.1.4.1.311.20.2", text(BMP, "evil")),
    "OCSP no check": extension("1.3.6.1.5.5.7.48.1.5", NULL),
}


UNREAD_ATTRIBUTE = "1.3.6.1.4.1.99999.3"


def unread() -> Iterator[Case]:
    """Wrong in form where nothing is read, in ways that devices and libraries write it."""
    yield Case("no attributes field", lambda key: signed(key, _without_attributes(key)), None)
    yield Case("NULL behind ecdsa-with-SHA256", lambda key: _with_algorithm(key, ECDSA_SHA256, NULL), None)
    yield Case("cA FALSE in full", with_extensions(extension(BASIC, sequence(b"\1\1\0"))), None)
    yield Case("an underscore in a PrintableString", named(rdn(O, "e_vil", PRINTABLE), rdn(CN, NAME, PRINTABLE)), None)
    yield Case("O with a line end", named(rdn(O, "evil\r\nX: y"), rdn(CN, NAME)), None)
    yield Case(
        "O in UTF-8 that is none",
        named(set_of(sequence(encode_oid(O), encode_element(UTF8, b"\xff"))), rdn(CN, NAME)),
        None,
    )
    yield Case("TRUE as 1", with_extensions(extension(BASIC, sequence(b"\1\1\1"))), None)
    yield Case("critical as 1", with_extensions(extension("1.3.6.1.4.1.99999.2", b"", critical=b"\1\1\1")), None)
    evil = text(UTF8, "evil")
    yield Case("an unread attribute twice", with_attributes(*[attribute(UNREAD_ATTRIBUTE, evil)] * 2), None)
    yield Case("an unread attribute without values", with_attributes(attribute(UNREAD_ATTRIBUTE)), None)
    yield Case("an unread attribute with two values", with_attributes(attribute(UNREAD_ATTRIBUTE, evil, NULL)), None)
    for oid, what in ((KEY_USAGE, "keyUsage"), (BASIC, "basicConstraints")):
        yield Case(f"an extension of no octets, {what}", with_extensions(extension(oid, b"")), None)
        yield Case(f"an extension of other ASN.1, {what}", with_extensions(extension(oid, evil)), None)
        yield Case(f"an unread extension twice, {what}", with_extensions(*[extension(oid, b"")] * 2), None)


def _without_attributes(key: Key) -> bytes:
    whole = der.only_element(info(key), der.SEQUENCE)
    return sequence(*(child.whole for child in list(der.children(whole))[:-1]))


def _with_algorithm(key: Key, oid: str, parameters: bytes) -> bytes:
    body, _, signature = der.children(der.only_element(plain(key), der.SEQUENCE))
    return sequence(body.whole, sequence(encode_oid(oid), parameters), signature.whole)


def taken() -> Iterator[Case]:
    """Right in form, whatever they ask for."""
    yield Case("plain", plain, None)
    for what, name in GENERAL_NAMES.items():
        yield Case(f"SAN {what}", with_extensions(san(name)), None)
    for what, name in ODD_NAMES.items():
        yield Case(f"SAN {what}", with_extensions(san(name)), None)
    yield Case("SAN of every type", with_extensions(san(*GENERAL_NAMES.values())), None)
    yield Case("64 names", with_extensions(san(*[GENERAL_NAMES["dNSName"]] * 64)), None)
    for what, oid in USAGES.items():
        yield Case(f"EKU {what}", with_extensions(extension(EKU, sequence(encode_oid(oid)))), None)
    for what, asked in EXTENSIONS.items():
        yield Case(what, with_extensions(asked), None)
    yield Case(
        "all extensions at once", with_extensions(*list(EXTENSIONS.values())[::2], san(GENERAL_NAMES["URI"])), None
    )
    yield Case("subject with more", named(rdn(O, "evil"), rdn(OU, "evil"), rdn(CN, NAME), rdn(DN_SERIAL, "evil")), None)
    yield Case("e-mail address in the subject", named(rdn(CN, NAME), rdn(EMAIL, "evil@example.com", IA5)), None)
    yield Case("an unknown attribute", with_attributes(attribute("1.3.6.1.4.1.99999.3", text(UTF8, "evil"))), None)
    yield Case("unstructuredName", with_attributes(attribute("1.2.840.113549.1.9.2", text(UTF8, "evil"))), None)
    for what, tag in {
        "UTF8String": UTF8,
        "PrintableString": PRINTABLE,
        "BMPString": BMP,
        "TeletexString": TELETEX,
    }.items():
        yield Case(f"CN as {what}", named(rdn(CN, NAME, tag)), None)
    for what, tag in CHALLENGES.items():
        yield Case(f"an empty challenge, {what}", with_attributes(attribute(CHALLENGE, text(tag, ""))), None)
    yield Case("wrapped", plain, None, base64.encodebytes)


CHALLENGES = {
    "UTF8String": UTF8,
    "PrintableString": PRINTABLE,
    "TeletexString": TELETEX,
    "IA5String": IA5,
    "BMPString": BMP,
}

MALFORMED, TOO_LARGE, UNSUPPORTED = (400, "malformed"), (413, "too-large"), (400, "unsupported")
WEAK, BAD_SIGNATURE, NO_NAME = (400, "weak-key"), (400, "bad-signature"), (400, "no-common-name")


def refused_names() -> Iterator[Case]:
    yield Case("65 names", with_extensions(san(*[GENERAL_NAMES["dNSName"]] * 65)), TOO_LARGE)
    yield Case("10,000 names", with_extensions(san(*[encode_element(0x82, b"e.vil")] * 10_000)), TOO_LARGE)
    yield Case("no subject", named(), NO_NAME)
    yield Case("no CN", named(rdn(O, "evil")), NO_NAME)
    yield Case("two CNs", named(rdn(CN, NAME), rdn(CN, "evil")), NO_NAME)
    two = set_of(sequence(encode_oid(CN), text(UTF8, NAME)), sequence(encode_oid(O), text(UTF8, "evil")))
    yield Case("a multi-valued RDN", named(two), UNSUPPORTED)
    yield Case(
        "two CNs in one RDN",
        named(set_of(*(sequence(encode_oid(CN), text(UTF8, each)) for each in (NAME, "evil")))),
        UNSUPPORTED,
    )
    for what, value in {
        "NUL": "cam-1\0evil",
        "line end": "cam-1\r\nevil",
        "escape": "cam-1\x1b[2Jevil",
        "right-to-left mark": "cam-1\u202eevil",
        "no-width space": "cam-1\u200b",
    }.items():
        yield Case(f"CN with {what}", named(rdn(CN, value)), MALFORMED)
    yield Case(
        "CN in UTF-8 that is none", named(set_of(sequence(encode_oid(CN), encode_element(UTF8, b"\xff")))), MALFORMED
    )
    for what, value in {
        "a topic wildcard": "cam-1/#",
        "a path": "../etc",
        "a space": "cam-1 ",
        "65": "x" * 65,
    }.items():
        yield Case(f"CN with {what}", named(rdn(CN, value)), (400, "bad-device-id"))
    yield Case("CN of another device", named(rdn(CN, "cam-2")), (403, "not-your-identity"))
    yield Case("17 attributes in the subject", named(rdn(CN, NAME), *[rdn(OU, "evil")] * 16), TOO_LARGE)


P256, P192 = "1.2.840.10045.3.1.7", "1.2.840.10045.3.1.1"
P192_POINT = bytes.fromhex(  # its generator (SEC 2, 2.5.1 of version 1)
    "04188da80eb03090f67cbf20eb43a18800f4ff0afd82ff101207192b95ffc8da78631011ed6b24cdd573f977a11e794811"
)


def refused_keys() -> Iterator[Case]:
    generator = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    point = generator.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    squeezed = generator.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    explicit = sequence(
        b"\x02\x01\x01",
        sequence(encode_oid("1.2.840.10045.1.1"), encode_element(INTEGER, b"\0" + b"\xff" * 32)),
        sequence(encode_element(der.OCTET_STRING, b"\1" * 32), encode_element(der.OCTET_STRING, b"\2" * 32)),
        encode_element(der.OCTET_STRING, point),
        encode_element(INTEGER, b"\1" * 32),
    )
    yield Case("P-192", keyed(ec_spki(encode_oid(P192), P192_POINT)), WEAK)
    yield Case("P-224", keyed(spki(ec.generate_private_key(ec.SECP224R1()).public_key())), WEAK)
    yield Case("secp256k1", keyed(spki(ec.generate_private_key(ec.SECP256K1()).public_key())), UNSUPPORTED)
    yield Case("an unknown curve", keyed(ec_spki(encode_oid("1.3.6.1.4.1.99999.9"), point)), UNSUPPORTED)
    yield Case("an explicit curve", keyed(ec_spki(explicit, point)), UNSUPPORTED)
    yield Case("an implicit curve", keyed(ec_spki(NULL, point)), UNSUPPORTED)
    yield Case("no curve", keyed(ec_spki(b"", point)), MALFORMED)
    yield Case("a point off the curve", keyed(ec_spki(encode_oid(P256), point[:-1] + b"\0")), MALFORMED)
    yield Case("the point at infinity", keyed(ec_spki(encode_oid(P256), b"\0")), MALFORMED)
    yield Case("a compressed point", keyed(ec_spki(encode_oid(P256), squeezed)), UNSUPPORTED)
    yield Case("no point", keyed(ec_spki(encode_oid(P256), b"")), MALFORMED)
    yield Case("RSA 1024", keyed(spki(rsa.generate_private_key(65537, 1024).public_key())), WEAK)  # noqa: S505
    yield Case("RSA 16384", keyed(rsa_spki(b"\0" + b"\xff" * 2048)), UNSUPPORTED)
    yield Case("RSA, e = 3", keyed(spki(rsa.generate_private_key(3, 2048).public_key())), WEAK)
    yield Case("RSA, e = 1", keyed(rsa_spki(b"\0" + b"\xff" * 256, b"\1")), MALFORMED)
    yield Case("RSA, even e", keyed(rsa_spki(b"\0" + b"\xff" * 256, b"\1\0\0\0")), MALFORMED)
    yield Case("RSA, huge e", keyed(rsa_spki(b"\0" + b"\xff" * 256, b"\x7f" * 200)), WEAK)
    yield Case("RSA, negative e", keyed(rsa_spki(b"\0" + b"\xff" * 256, b"\xff")), MALFORMED)
    yield Case("RSA, negative modulus", keyed(rsa_spki(b"\xff" * 256)), MALFORMED)
    yield Case("RSA, modulus 0", keyed(rsa_spki(b"\0")), MALFORMED)
    yield Case("RSA, even modulus", keyed(rsa_spki(b"\0" + b"\xff" * 255 + b"\xfe")), WEAK)
    yield Case("RSA, modulus with a small factor", keyed(rsa_spki(b"\0" + b"\xff" * 256)), WEAK)
    pss = sequence(sequence(encode_oid("1.2.840.113549.1.1.10")), _rsa_key_bits())
    yield Case("an RSA key for RSASSA-PSS alone", keyed(pss), UNSUPPORTED)
    yield Case("DSA", keyed(spki(dsa.generate_private_key(2048).public_key())), WEAK)
    yield Case("X25519", keyed(spki(x25519.X25519PrivateKey.generate().public_key())), UNSUPPORTED)
    yield Case(
        "an unknown kind of key", keyed(sequence(sequence(encode_oid("1.3.6.1.4.1.99999.8")), b"\3\1\0")), UNSUPPORTED
    )
    yield Case("an empty key", keyed(sequence()), MALFORMED)
    yield Case("a kind that the model does not list", lambda key: by_ed448(), (400, "key-not-allowed"))


def _rsa_key_bits() -> bytes:
    key = spki(rsa.generate_private_key(65537, 2048).public_key())
    return list(der.children(der.only_element(key, der.SEQUENCE)))[1].whole


def by_ed448() -> bytes:
    key = ed448.Ed448PrivateKey.generate()
    body = sequence(b"\x02\x01\x00", PLAIN, spki(key.public_key()), encode_element(der.CONTEXT_0, b""))
    return sequence(body, sequence(encode_oid("1.3.101.113")), encode_element(BIT_STRING, b"\0" + key.sign(body)))


def refused_signatures() -> Iterator[Case]:
    other = ec.generate_private_key(ec.SECP256R1())
    old = rsa.generate_private_key(65537, 2048)
    yield Case("signed by another", lambda key: signed(other, info(key)), BAD_SIGNATURE)
    yield Case("a flipped bit", lambda key: plain(key)[:-1] + bytes((plain(key)[-1] ^ 1,)), BAD_SIGNATURE)
    yield Case(
        "a signature of zeros",
        lambda key: sequence(info(key), ALGORITHM, b"\3\x09\0" + sequence(b"\2\1\0" * 2)),
        BAD_SIGNATURE,
    )
    yield Case("an empty signature", lambda key: sequence(info(key), ALGORITHM, b"\3\1\0"), BAD_SIGNATURE)
    yield Case(
        "a signature of half bits",
        lambda key: (
            plain(key)
            .replace(b"\x03\x49\0", b"\x03\x49\7")
            .replace(b"\x03\x48\0", b"\x03\x48\7")
            .replace(b"\x03\x47\0", b"\x03\x47\7")
            .replace(b"\x03\x46\0", b"\x03\x46\7")
        ),
        MALFORMED,
    )
    yield Case("no signature", lambda key: sequence(info(key), ALGORITHM), MALFORMED)
    yield Case("EC key, RSA algorithm", lambda key: signed(key, info(key), RSA_SHA256), BAD_SIGNATURE)
    yield Case("an unknown algorithm", lambda key: signed(key, info(key), "1.3.6.1.4.1.99999.5"), UNSUPPORTED)
    yield Case("SHA-1", lambda key: signed(key, info(key), ECDSA_SHA1, hashes.SHA1()), UNSUPPORTED)  # noqa: S303
    yield Case("RSA with MD5", lambda key: rsa_signed(old, RSA_MD5, hashes.MD5()), UNSUPPORTED)  # noqa: S303


ALGORITHM = sequence(encode_oid(ECDSA_SHA256))


def refused_encodings() -> Iterator[Case]:
    yield Case("nothing", lambda key: b"", MALFORMED)
    yield Case("no ASN.1", lambda key: b"evil", MALFORMED)
    yield Case("a byte behind it", lambda key: plain(key) + b"\0", MALFORMED)
    yield Case("a second CSR behind it", lambda key: plain(key) * 2, MALFORMED)
    yield Case("an element behind the info's last", lambda key: signed(key, info(key, tail=NULL)), MALFORMED)
    yield Case("cut off", lambda key: plain(key)[:-1], MALFORMED)
    yield Case("indefinite length", lambda key: b"\x30\x80" + next(_contents(plain(key))) + b"\0\0", MALFORMED)
    yield Case(
        "indefinite length inside",
        lambda key: signed(key, b"\x30\x80" + next(_contents(info(key))) + b"\0\0"),
        MALFORMED,
    )
    yield Case("a length of too many octets", lambda key: _long_form(plain(key)), MALFORMED)
    yield Case("a length of too many octets inside", lambda key: signed(key, _long_form(info(key))), MALFORMED)
    yield Case(
        "a length of too many octets in the key",
        lambda key: signed(key, info(key, key_info=_long_form(spki(key.public_key())))),
        MALFORMED,
    )
    yield Case("a length of too many octets in the subject", named(_long_form(rdn(CN, NAME))), MALFORMED)
    yield Case(
        "a string in pieces", named(set_of(sequence(encode_oid(CN), encode_element(0x2C, text(UTF8, NAME))))), MALFORMED
    )
    yield Case("version 2", lambda key: signed(key, info(key, version=b"\2\1\1")), UNSUPPORTED)
    yield Case("a negative version", lambda key: signed(key, info(key, version=b"\2\1\xff")), MALFORMED)
    yield Case("a version of two octets", lambda key: signed(key, info(key, version=b"\2\2\0\0")), MALFORMED)
    yield Case(
        "an integer of 8 KB",
        lambda key: signed(key, info(key, version=encode_element(INTEGER, b"\x7f" * 8192))),
        MALFORMED,
    )
    yield Case(
        "an integer of 20 KB",
        lambda key: signed(key, info(key, version=encode_element(INTEGER, b"\x7f" * 20_000))),
        TOO_LARGE,
    )
    yield Case(
        "an integer of 1 MB",
        lambda key: signed(key, info(key, version=encode_element(INTEGER, b"\x7f" * (1 << 20)))),
        TOO_LARGE,
    )
    yield Case("1,000 levels", lambda key: _nested(1000), MALFORMED)
    yield from refused_armor()


def refused_armor() -> Iterator[Case]:
    """What is around the DER, or is no CSR within it."""
    yield Case(
        "a certificate", lambda key: sequence(sequence(b"\xa0\3\2\1\2", b"\2\1\1"), ALGORITHM, b"\3\1\0"), MALFORMED
    )
    yield Case("DER itself", plain, MALFORMED, lambda data: data)
    yield Case(
        "PEM headers",
        plain,
        MALFORMED,
        lambda data: (
            b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE REQUEST-----\n"
        ),
    )
    yield Case(
        "base64 with another alphabet", lambda key: plain(key) + b"\xff\xff\xff", MALFORMED, base64.urlsafe_b64encode
    )
    yield Case(
        "base64 with NUL",
        plain,
        MALFORMED,
        lambda data: base64.b64encode(data)[:40] + b"\0" + base64.b64encode(data)[40:],
    )
    yield Case(
        "base64 cut off", plain, MALFORMED, lambda data: base64.b64encode(data + b"12"[: 2 - len(data) % 3])[:-1] + b"!"
    )
    yield Case("white space alone", plain, MALFORMED, lambda data: b" \r\n\t ")


def refused_attributes() -> Iterator[Case]:
    one = san(GENERAL_NAMES["dNSName"])
    yield Case("extensionRequest twice", with_attributes(requested(one), requested(EXTENSIONS["CA:TRUE"])), MALFORMED)
    yield Case("an extension twice", with_extensions(one, san(GENERAL_NAMES["URI"])), MALFORMED)
    yield Case(
        "extensions in two values",
        with_attributes(attribute(EXTENSION_REQUEST, sequence(one), sequence(EXTENSIONS["CA:TRUE"]))),
        MALFORMED,
    )
    yield Case(
        "17 attributes",
        with_attributes(*(attribute(f"1.3.6.1.4.1.99999.{n}", text(UTF8, "evil")) for n in range(17))),
        TOO_LARGE,
    )
    for what, tag in CHALLENGES.items():
        yield Case(
            f"a wrong challenge, {what}",
            with_attributes(attribute(CHALLENGE, text(tag, "evil"))),
            (400, "not-this-connection"),
        )
    yield Case("a challenge of 256", with_attributes(attribute(CHALLENGE, text(UTF8, "evil" * 64))), TOO_LARGE)
    yield Case("a challenge that is a number", with_attributes(attribute(CHALLENGE, b"\2\1\1")), UNSUPPORTED)
    yield Case(
        "a challenge that is no text", with_attributes(attribute(CHALLENGE, encode_element(UTF8, b"\xff"))), MALFORMED
    )
    yield Case(
        "two challenges", with_attributes(attribute(CHALLENGE, text(UTF8, "evil"), text(UTF8, "evil"))), MALFORMED
    )
    for oid, what in ((SAN, "SAN"), (EKU, "EKU")):
        yield Case(f"an extension of no octets, {what}", with_extensions(extension(oid, b"")), MALFORMED)
        yield Case(
            f"an extension of other ASN.1, {what}", with_extensions(extension(oid, text(UTF8, "evil"))), MALFORMED
        )
    yield Case("a SAN with no name", with_extensions(san()), MALFORMED)


def corpus() -> list[Case]:
    cases = [
        *taken(),
        *unread(),
        *refused_names(),
        *refused_keys(),
        *refused_signatures(),
        *refused_encodings(),
        *refused_attributes(),
    ]
    assert len({case.what for case in cases}) == len(cases)
    return cases


def _contents(element: bytes) -> Iterator[bytes]:
    yield der.read_element(element, 0, len(element)).content


def _long_form(element: bytes) -> bytes:
    """With one octet more than its length needs."""
    read = der.read_element(element, 0, len(element))
    octets = len(read.content).to_bytes(4)
    return element[:1] + bytes((0x84,)) + octets + read.content


def _nested(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = sequence(data)
    return data


# Every place in the tree


def mutations(key: Key) -> Iterator[tuple[str, bytes]]:
    """(what, CSR): each place of a CSR's tree emptied, filled with an empty SET or SEQUENCE, left out or doubled.

    What lies within the signed part is signed again, so that nothing but its form can be wrong.
    """
    names = san(*list(GENERAL_NAMES.values())[:6])
    usage = extension(EKU, sequence(encode_oid(USAGES["serverAuth"])))
    attributes = (requested(names, usage, EXTENSIONS["CA:TRUE"]), attribute("1.3.6.1.4.1.99999.3", text(UTF8, "evil")))
    name = subject(rdn(O, "evil"), rdn(CN, NAME))
    whole = info(key, *attributes, name=name)
    yield "as it is", signed(key, whole)
    for path, changed in _changed(whole):
        yield f"info{path}", signed(key, changed)
    for path, changed in _changed(plain(key)):
        yield f"request{path}", changed


def _changed(element: bytes) -> Iterator[tuple[str, bytes]]:
    whole = der.read_element(element, 0, len(element))
    for what, instead in {
        "emptied": element[:1] + b"\0",
        "SEQUENCE": b"\x30\0",
        "SET": b"\x31\0",
        "NULL": NULL,
        "[0]": b"\xa0\0",
        "left out": b"",
        "doubled": element * 2,
    }.items():
        if instead != element:
            yield f" {what}", instead
    parts = _parts(whole)
    for at, part in enumerate(parts):
        for path, changed in _changed(part):
            content = b"".join((*parts[:at], changed, *parts[at + 1 :]))
            prefix = b"\0" if whole.tag == BIT_STRING else b""
            yield f".{at}{path}", encode_element(whole.tag, prefix + content)


def _parts(element: der.Element) -> Sequence[bytes]:
    """The elements inside, also of strings that hold ASN.1."""
    content, start = element.content, element.start
    if element.tag == BIT_STRING and content[:2] == b"\0\x30":
        start += 1
    elif not (element.tag & 0x20 or (element.tag == der.OCTET_STRING and content[:1] == b"\x30")):
        return ()
    inner = der.Element(element.data, element.tag, element.begin, start, element.stop, element.end)
    return [child.whole for child in der.children(inner)]
