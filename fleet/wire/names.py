"""Subject and subjectAltName as plain text values, the same for a CSR and for a certificate, so they can be compared.

    subject      (("2.5.4.3", "pump-7"), ("2.5.4.5", "SN0001"))       dotted OID and value, in order
    alt_names    ("DNS:pump-7.example", "HW:1.3.6.1.4.1.4128.1:0a0b")  type and value, in order

| type | value |
| --- | --- |
| DNS, URI, EMAIL | the text |
| IP | an address, in its shortest text |
| HW | hwModuleName (RFC 4108, section 5): the type's dotted OID, a colon, the serial number in hex |
| DIR | a directory name as RFC 4514 writes it |
| RID | a dotted OID |
| OTHER | any other otherName: its dotted OID, a colon, the DER of its value in hex |
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire import der
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.parsing import library_errors

HW_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
SUBJECT_ALT_NAME = "2.5.29.17"

SUBJECT_ATTRIBUTES_MAX = 16  # an IDevID has three or four
ALT_NAMES_MAX = 64  # a device has one or two, a server a handful
VALUE_CHARACTERS_MAX = 512  # the longest URI that makes sense here

_IDENTIFYING = ("2.5.4.3", "2.5.4.5")
"""commonName and serialNumber: a device is known by them, so they must be text."""

Subject = tuple[tuple[str, str], ...]
AltNames = tuple[str, ...]


def names_of_certificate(certificate: x509.Certificate) -> tuple[Subject, AltNames]:
    """Subject and subjectAltName of `certificate`, as a Csr shows its own. Nothing else of it is read.

    Raises: WireError when a name can't be read, holds a control character or is over a cap.
    """
    with library_errors("certificate"):
        fields = certificate_fields(certificate.public_bytes(Encoding.DER))
    return subject_values(fields.subject), alt_name_values(fields.extension(SUBJECT_ALT_NAME))


def subject_values(name: der.Element) -> Subject:
    """(dotted OID, value) of each attribute of a Name, in order.

    A value that is no printable text is "#" and the hex of its DER, as in RFC 4514, 2.4.

    Raises: TooLarge. Malformed: it is badly formed, or the commonName or the serialNumber is no text.
    """
    return attribute_values([attribute for rdn in der.children(name) for attribute in der.children(rdn)])


def attribute_values(attributes: Iterable[der.Element]) -> Subject:
    """As `subject_values`, of the attributes of a Name. Raises: likewise."""
    values = [
        (oid, _text_of_attribute(oid, value))
        for kind, value in map(_pair, attributes)
        for oid in (der.dotted_oid(kind.content),)
    ]
    if len(values) > SUBJECT_ATTRIBUTES_MAX:
        raise TooLarge(f"The subject holds {len(values)} attributes; at most {SUBJECT_ATTRIBUTES_MAX} are taken.")
    return tuple(values)


def _pair(parent: der.Element) -> tuple[der.Element, der.Element]:
    """The OID and what follows it. Raises: Malformed."""
    parts = list(der.children(parent))
    if len(parts) != 2 or parts[0].tag != der.OBJECT_IDENTIFIER:
        raise Malformed("A name is badly formed.")
    return parts[0], parts[1]


def _text_of_attribute(oid: str, value: der.Element) -> str:
    text = der.text_of(value)
    if text is not None and text.isprintable():
        return _within_cap(text)
    if oid in _IDENTIFYING:
        # CVE-2013-4238: a NUL in a name. The same rule keeps out line ends, escapes and marks that turn text around.
        raise Malformed("A name holds a control character or one that can't be printed, or is no text.")
    return _within_cap(f"#{value.whole.hex()}")


def alt_name_values(value: bytes | None) -> AltNames:
    """The subjectAltName of this DER as text in order; () without one. Raises: TooLarge, Malformed."""
    if value is None:
        return ()
    names = list(der.children(der.only_element(value, der.SEQUENCE)))
    if len(names) > ALT_NAMES_MAX:
        raise TooLarge(f"The subjectAltName holds {len(names)} names; at most {ALT_NAMES_MAX} are taken.")
    if not names:
        # RFC 5280, 4.2.1.6: the sequence must contain at least one entry.
        raise Malformed("The subjectAltName holds no name.")
    return tuple(map(alt_name_text, names))


def alt_name_text(name: der.Element) -> str:
    """One GeneralName as "TYPE:value", or as "#" and the hex of its DER: one of another type, or damaged.

    Raises: TooLarge.
    """
    try:
        text = _TEXT_OF[name.tag](name)
    except (KeyError, ValueError, WireError):
        text = ""
    return _within_cap(text if text and text.isprintable() else f"#{name.whole.hex()}")


def _other_text(name: der.Element) -> str:
    kind, tagged = _pair(name)
    oid, value = der.dotted_oid(kind.content), tagged.content
    if oid == HW_MODULE_NAME.dotted_string:
        return _hardware_text(value)
    return f"OTHER:{oid}:{value.hex()}"


def _hardware_text(value: bytes) -> str:
    """RFC 4108, 5: HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }."""
    parts = list(der.children(der.only_element(value, der.SEQUENCE)))
    if [part.tag for part in parts] != [der.OBJECT_IDENTIFIER, der.OCTET_STRING]:
        raise Malformed("The hwModuleName is not a hardware type and a serial number.")
    kind, serial = parts
    return f"HW:{der.dotted_oid(kind.content)}:{serial.content.hex()}"


def _directory_text(name: der.Element) -> str:
    values = subject_values(der.only_element(name.content, der.SEQUENCE))
    return f"DIR:{subject_name(values).rfc4514_string()}"


def _ia5(kind: str) -> Callable[[der.Element], str]:
    """RFC 5280, 4.2.1.6: the text is an IA5String."""
    return lambda name: f"{kind}:{name.content.decode('ascii')}"


_TEXT_OF: dict[int, Callable[[der.Element], str]] = {
    0xA0: _other_text,
    0x81: _ia5("EMAIL"),
    0x82: _ia5("DNS"),
    0xA4: _directory_text,
    0x86: _ia5("URI"),
    0x87: lambda name: f"IP:{ipaddress.ip_address(name.content)}",
    0x88: lambda name: f"RID:{der.dotted_oid(name.content)}",
}
"""By the tag of a GeneralName (RFC 5280, 4.2.1.6)."""


def _within_cap(text: str) -> str:
    if len(text) > VALUE_CHARACTERS_MAX:
        raise TooLarge(f"A name is longer than {VALUE_CHARACTERS_MAX} characters.")
    return text


def subject_name(subject: Sequence[tuple[str, str]]) -> x509.Name:
    """The x509.Name of (dotted OID, value) pairs, one attribute in each RDN.

    Raises: Malformed: an OID or a value is not allowed in a subject.
    """
    with library_errors("subject"):
        return x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in subject])


def alt_name(text: str) -> x509.GeneralName:
    """The general name that `text` ("TYPE:value") spells: the way back from `alt_name_text`, save for DIR and RID.

    Raises: Malformed, TooLarge, Unsupported.
    """
    kind, _, value = text.partition(":")
    with library_errors("subjectAltName"):
        match kind:
            case "DNS":
                return x509.DNSName(value)
            case "IP":
                return x509.IPAddress(ipaddress.ip_address(value))
            case "URI":
                return x509.UniformResourceIdentifier(value)
            case "EMAIL":
                return x509.RFC822Name(value)
            case "HW":
                oid, colon, serial = value.partition(":")
                if not colon:
                    raise Malformed("A hardware name to ask for is not of the form HW:<type OID>:<serial in hex>.")
                content = der.encode_oid(oid) + der.encode_element(der.OCTET_STRING, bytes.fromhex(serial))
                return x509.OtherName(HW_MODULE_NAME, der.sequence(content))
            case "OTHER":
                oid, _, encoded = value.partition(":")
                return x509.OtherName(x509.ObjectIdentifier(oid), bytes.fromhex(encoded))
            case _:
                raise Unsupported("A name to ask for is not of the form DNS:, IP:, URI:, EMAIL:, HW: or OTHER:.")
