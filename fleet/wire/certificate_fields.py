"""Fields of a certificate (RFC 5280, 4.1) read from its DER, each by itself.

The library reads all extensions or none, and raises for forms that TLS engines accept: a decision that needs one field
must not depend on the others.
"""

from dataclasses import dataclass

from fleet.wire import der
from fleet.wire.errors import Malformed

BASIC_CONSTRAINTS = "2.5.29.19"
KEY_USAGE = "2.5.29.15"
EXTENDED_KEY_USAGE = "2.5.29.37"

KEY_USAGES = (
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)

_EXTENSIONS = 0xA3
_ECDSA = "1.2.840.10045.4."


@dataclass(frozen=True, slots=True)
class CertificateFields:
    """What is read of a certificate; the extensions one by one, when they are asked for."""

    serial_number: int
    issuer: der.Element
    subject: der.Element
    spki: der.Element
    signature_algorithm: der.Element
    _extensions: der.Element | None

    def extension(self, oid: str) -> bytes | None:
        """The value of the extension `oid`. Raises: Malformed, TooLarge: the list is damaged, or holds it twice."""
        return extension_value(self._extensions, oid)

    @property
    def basic_constraints(self) -> tuple[bool, int | None] | None:
        """cA, and the path length; None without the extension. Any TRUE of BER is one. Raises: Malformed, TooLarge."""
        parts = self._parts(BASIC_CONSTRAINTS)
        if parts is None:
            return None
        if [part.tag for part in parts] not in ([], [der.BOOLEAN], [der.INTEGER], [der.BOOLEAN, der.INTEGER]):
            raise Malformed("The basic constraints are badly formed.")
        is_ca = any(part.tag == der.BOOLEAN and any(part.content) for part in parts)
        lengths = [int.from_bytes(part.content, signed=True) for part in parts if part.tag == der.INTEGER]
        return is_ca, lengths[0] if lengths else None

    @property
    def key_usage(self) -> tuple[str, ...] | None:
        """Those of KEY_USAGES that it holds; None without the extension. Raises: Malformed, TooLarge."""
        value = self.extension(KEY_USAGE)
        if value is None:
            return None
        bits = der.only_element(value, der.BIT_STRING).content[1:]
        return tuple(
            name for at, name in enumerate(KEY_USAGES) if at // 8 < len(bits) and bits[at // 8] & 0x80 >> at % 8
        )

    @property
    def extended_key_usage(self) -> tuple[str, ...] | None:
        """Dotted OIDs; None without the extension. Raises: Malformed, TooLarge."""
        return extended_key_usages(self._extensions)

    def _parts(self, oid: str) -> list[der.Element] | None:
        value = self.extension(oid)
        return None if value is None else list(der.children(der.only_element(value, der.SEQUENCE)))


def certificate_fields(data: bytes) -> CertificateFields:
    """The fields of the certificate in `data`, DER. Raises: Malformed, TooLarge."""
    parts = list(der.children(der.only_element(data, der.SEQUENCE)))
    if [part.tag for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Malformed("The data is no certificate.")
    # version [0], serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, and later extensions [3]
    fields = [field for field in der.children(parts[0]) if field.tag != der.CONTEXT_0]
    if len(fields) < 6 or (fields[0].tag, fields[4].tag) != (der.INTEGER, der.SEQUENCE):
        raise Malformed("The data is no certificate.")
    lists = [each for field in fields[6:] if field.tag == _EXTENSIONS for each in der.children(field)]
    serial_number = int.from_bytes(fields[0].content, signed=True)
    return CertificateFields(serial_number, fields[2], fields[4], fields[5], parts[1], lists[0] if lists else None)


def extension_value(extensions: der.Element | None, oid: str) -> bytes | None:
    """The value of the extension `oid` of Extensions, if it is there; what the others hold is left unread.

    Raises: Malformed: it is listed twice, or the list is badly formed. TooLarge.
    """
    values = []
    for extension in der.children(extensions) if extensions is not None else ():
        parts = list(der.children(extension))
        if not 2 <= len(parts) <= 3 or (parts[0].tag, parts[-1].tag) != (der.OBJECT_IDENTIFIER, der.OCTET_STRING):
            raise Malformed("An extension is badly formed.")
        if der.dotted_oid(parts[0].content) == oid:
            values.append(parts[-1].content)
    if len(values) > 1:
        raise Malformed("An extension is listed twice.")
    return values[0] if values else None


def extended_key_usages(extensions: der.Element | None) -> tuple[str, ...] | None:
    """Dotted OIDs of the extended key usage, in order; None without it. Raises: Malformed, TooLarge."""
    value = extension_value(extensions, EXTENDED_KEY_USAGE)
    if value is None:
        return None
    usages = list(der.children(der.only_element(value, der.SEQUENCE)))
    if not usages or any(usage.tag != der.OBJECT_IDENTIFIER for usage in usages):
        raise Malformed("The extended key usage is badly formed.")
    return tuple(der.dotted_oid(usage.content) for usage in usages)


def why_unsupported(data: bytes) -> str:
    """Why the library cannot load the certificate in `data`, if it is well formed otherwise; else ""."""
    try:
        parts = list(der.children(certificate_fields(data).signature_algorithm))
        has_parameters = len(parts) > 1 and der.dotted_oid(parts[0].content).startswith(_ECDSA)
    except Malformed:
        return ""
    return "its signature algorithm, ECDSA, has parameters, which RFC 5758, 3.2 forbids" if has_parameters else ""
