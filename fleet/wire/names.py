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
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509

from fleet.wire import der
from fleet.wire.errors import Malformed, TooLarge, Unsupported
from fleet.wire.parsing import library_errors

HW_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")

SUBJECT_ATTRIBUTES_MAX = 16  # an IDevID has three or four
ALT_NAMES_MAX = 64  # a device has one or two, a server a handful
VALUE_CHARACTERS_MAX = 512  # the longest URI that makes sense here

Subject = tuple[tuple[str, str], ...]
AltNames = tuple[str, ...]


def names_of_certificate(certificate: x509.Certificate) -> tuple[Subject, AltNames]:
    """Subject and subjectAltName of `certificate`, as a Csr shows its own.

    Raises: WireError when a name can't be read, holds a control character or is over a cap.
    """
    with library_errors("certificate"):
        subject = certificate.subject
        extensions = certificate.extensions
    return subject_values(subject), alt_name_values(extensions)


def subject_values(name: x509.Name) -> Subject:
    """(dotted OID, value) of each attribute, in order; a value that is a bit string as "#" and hex.

    Raises: TooLarge, Malformed.
    """
    values = []
    for rdn in name.rdns:
        for attribute in rdn:
            value = attribute.value
            text = value if isinstance(value, str) else f"#{value.hex()}"
            values.append((attribute.oid.dotted_string, _shown_safely(text)))
    if len(values) > SUBJECT_ATTRIBUTES_MAX:
        raise TooLarge(f"The subject holds {len(values)} attributes; at most {SUBJECT_ATTRIBUTES_MAX} are taken.")
    return tuple(values)


def alt_name_values(extensions: x509.Extensions) -> AltNames:
    """The subjectAltName of `extensions` as text in order; () without one. Raises: TooLarge, Malformed, Unsupported."""
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = list(extension.value)
            if len(names) > ALT_NAMES_MAX:
                raise TooLarge(f"The subjectAltName holds {len(names)} names; at most {ALT_NAMES_MAX} are taken.")
            if not names:
                # RFC 5280, 4.2.1.6: the sequence must contain at least one entry.
                raise Malformed("The subjectAltName holds no name.")
            return tuple(map(alt_name_text, names))
    return ()


def alt_name_text(name: x509.GeneralName) -> str:
    """One general name as "TYPE:value".

    Raises: Malformed, TooLarge, Unsupported.
    """
    text_of = _TEXT_OF.get(type(name))
    if text_of is None:
        raise Unsupported("The subjectAltName holds a type of name that is not taken here.")
    text = text_of(name)
    if type(name) in _IA5 and not text.isascii():
        raise Malformed("A DNS name, URI or e-mail address in the subjectAltName is not ASCII; use its xn-- form.")
    return _shown_safely(text)


def _other_text(name: x509.OtherName) -> str:
    if name.type_id == HW_MODULE_NAME:
        return _hardware_text(name.value)
    return f"OTHER:{name.type_id.dotted_string}:{name.value.hex()}"


def _hardware_text(value: bytes) -> str:
    """RFC 4108, 5: HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }."""
    parts = list(der.children(der.only_element(value, der.SEQUENCE)))
    if [part.tag for part in parts] != [der.OBJECT_IDENTIFIER, der.OCTET_STRING]:
        raise Malformed("The hwModuleName is not a hardware type and a serial number.")
    kind, serial = parts
    return f"HW:{der.dotted_oid(kind.content)}:{serial.content.hex()}"


_IA5 = frozenset({x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name})
"""RFC 5280, 4.2.1.6: their text is an IA5String. The library reads UTF-8 there."""

# By type, not by `match`: these classes are abstract bases, whose isinstance costs ten times a look into a dict.
_TEXT_OF: dict[type[x509.GeneralName], Callable[[Any], str]] = {
    x509.DNSName: lambda name: f"DNS:{name.value}",
    x509.IPAddress: lambda name: f"IP:{name.value}",
    x509.OtherName: _other_text,
    x509.UniformResourceIdentifier: lambda name: f"URI:{name.value}",
    x509.RFC822Name: lambda name: f"EMAIL:{name.value}",
    x509.DirectoryName: lambda name: f"DIR:{name.value.rfc4514_string()}",
    x509.RegisteredID: lambda name: f"RID:{name.value.dotted_string}",
}


def _shown_safely(text: str) -> str:
    # CVE-2013-4238: a NUL in a name. The same rule keeps out line ends, escapes and marks that turn text around.
    if not text.isprintable():
        raise Malformed("A name holds a control character or one that can't be printed.")
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
