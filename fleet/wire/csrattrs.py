"""CSR attributes (RFC 7030, 4.5.2) and RFC 9908's template: encoder for servers, decoder for clients.

    CsrAttrs ::= SEQUENCE SIZE (0..MAX) OF AttrOrOID

Clients older than RFC 9908 read the single attributes; newer ones read the template and leave the rest alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet.wire import der
from fleet.wire.certificate_fields import EXTENDED_KEY_USAGE
from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.key_types import BY_NAME, EC_PUBLIC_KEY, KEY_TYPES, RSA

SIZE_MAX = 16 * 1024
ATTRIBUTES_MAX = 64

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105  an identifier
SHA256 = "2.16.840.1.101.3.4.2.1"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
TEMPLATE = "1.2.840.113549.1.9.16.2.61"
EXTENSION_REQUEST_TEMPLATE = "1.2.840.113549.1.9.16.2.62"
COMMON_NAME = "2.5.4.3"
ORGANISATION = "2.5.4.10"

_NULL = b"\x05\x00"
_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class CsrAttributes:
    """What a CSR should hold."""

    key_types: tuple[str, ...] = ()
    """Names of fleet.wire.key_types, the preferred one first."""
    extended_key_usages: tuple[str, ...] = ()
    """Dotted OIDs."""
    organisation: str = ""
    """O of the subject; "" for none."""
    binding: bool = False
    """Whether the challenge password must bind the request to its TLS connection (RFC 7030, 3.5)."""


def encode_csrattrs(wanted: CsrAttributes, *, ends_in_oid: bool = False) -> bytes:
    """DER of `wanted`: each attribute by itself, and all together as one template (RFC 9908, 3.4).

    With `ends_in_oid`, without the template, attributes before identifiers, of which there is one at least: libest's
    example client reads attributes without end that are not followed by an identifier.
    """
    if ends_in_oid:
        return _for_libest(wanted)
    parts = [der.encode_oid(CHALLENGE_PASSWORD)] if wanted.binding else []
    parts += [_key_attribute(key_type) for key_type in wanted.key_types]
    if wanted.extended_key_usages:
        parts.append(_attribute(EXTENSION_REQUEST, _usage_extensions(wanted.extended_key_usages)))
    parts.append(_attribute(TEMPLATE, _template(wanted)))
    return der.sequence(*parts)


def _for_libest(wanted: CsrAttributes) -> bytes:
    keys = [_key_attribute(key_type) for key_type in wanted.key_types]
    attributes = [each for each in keys if each[0] == der.SEQUENCE]
    if wanted.extended_key_usages:
        attributes.insert(0, _attribute(EXTENSION_REQUEST, _usage_extensions(wanted.extended_key_usages)))
    oids = [each for each in keys if each[0] == der.OBJECT_IDENTIFIER]
    if wanted.binding:
        oids.append(der.encode_oid(CHALLENGE_PASSWORD))
    return der.sequence(*attributes, *(oids or [der.encode_oid(SHA256)]))


def _attribute(oid: str, *values: bytes) -> bytes:
    return der.sequence(der.encode_oid(oid), der.encode_element(der.SET, b"".join(sorted(values))))


def _key_attribute(key_type: str) -> bytes:
    """RFC 7030, 4.5.2: a kind of key, and where that is not enough its curve or size."""
    found = BY_NAME[key_type]
    if found.curve:
        return _attribute(found.algorithm, der.encode_oid(found.curve))
    if found is RSA:
        return _attribute(found.algorithm, der.encode_element(der.INTEGER, _RSA_BITS.to_bytes(2)))
    return der.encode_oid(found.algorithm)


def _algorithm(key_type: str) -> bytes:
    found = BY_NAME[key_type]
    parameters = der.encode_oid(found.curve) if found.curve else _NULL if found is RSA else b""
    return der.sequence(der.encode_oid(found.algorithm), parameters)


def _usage_extensions(oids: Iterable[str]) -> bytes:
    usages = der.encode_element(der.OCTET_STRING, der.sequence(*map(der.encode_oid, oids)))
    return der.sequence(der.sequence(der.encode_oid(EXTENDED_KEY_USAGE), usages))


def _template(wanted: CsrAttributes) -> bytes:
    """CertificationRequestInfoTemplate: O as given, a CN for the client to fill in, key type, extensions."""
    names = [der.encode_oid(COMMON_NAME)]
    if wanted.organisation:
        text = der.encode_element(der.UTF8_STRING, wanted.organisation.encode())
        names.insert(0, der.encode_oid(ORGANISATION) + text)
    rdns = (der.encode_element(der.SET, der.sequence(name)) for name in names)
    content = b"\x02\x01\x00" + der.sequence(*rdns)
    if wanted.key_types:
        content += der.encode_element(der.CONTEXT_0, _algorithm(wanted.key_types[0]))
    attributes = b""
    if wanted.extended_key_usages:
        attributes = _attribute(EXTENSION_REQUEST_TEMPLATE, _usage_extensions(wanted.extended_key_usages))
    return der.sequence(content, der.encode_element(der.CONTEXT_1, attributes))


def decode_csrattrs(data: bytes) -> CsrAttributes:
    """The attributes that our clients support; unknown ones are ignored. Raises: TooLarge, Malformed."""
    if len(data) > SIZE_MAX:
        raise TooLarge(f"The CSR attributes are larger than {SIZE_MAX} bytes.")
    key_types: list[str] = []
    usages: tuple[str, ...] = ()
    binding = False
    for number, part in enumerate(der.children(der.only_element(data, der.SEQUENCE))):
        if number == ATTRIBUTES_MAX:
            raise TooLarge(f"The CSR attributes are more than {ATTRIBUTES_MAX}.")
        oid, values = _attr_or_oid(part)
        if oid == CHALLENGE_PASSWORD:
            binding = True
        elif oid == EXTENSION_REQUEST:
            usages = _requested_usages(values)
        else:
            key_types += _key_type(oid, values)
    return CsrAttributes(tuple(dict.fromkeys(key_types)), usages, binding=binding)


def _attr_or_oid(part: der.Element) -> tuple[str, list[der.Element]]:
    if part.tag == der.OBJECT_IDENTIFIER:
        return der.dotted_oid(part.content), []
    if part.tag != der.SEQUENCE:
        raise Malformed("A CSR attribute is neither an identifier nor an attribute.")
    found = list(der.children(part))
    if [each.tag for each in found] != [der.OBJECT_IDENTIFIER, der.SET]:
        raise Malformed("A CSR attribute is not of the form type and values.")
    return der.dotted_oid(found[0].content), list(der.children(found[1]))


def _key_type(oid: str, values: Sequence[der.Element]) -> list[str]:
    curves = {""}  # of keys that have none
    if oid == EC_PUBLIC_KEY:
        curves = {der.dotted_oid(value.content) for value in values if value.tag == der.OBJECT_IDENTIFIER}
    return [each.name for each in KEY_TYPES if each.algorithm == oid and each.curve in curves]


def _requested_usages(values: Sequence[der.Element]) -> tuple[str, ...]:
    for extensions in values:
        for extension in der.children(extensions):
            parts = list(der.children(extension))
            named = len(parts) > 1 and parts[0].tag == der.OBJECT_IDENTIFIER and parts[-1].tag == der.OCTET_STRING
            if named and der.dotted_oid(parts[0].content) == EXTENDED_KEY_USAGE:
                usage = der.only_element(parts[-1].content, der.SEQUENCE)
                return tuple(der.dotted_oid(each.content) for each in der.children(usage))
    return ()
