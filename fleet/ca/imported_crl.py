"""A CRL that a CA signs elsewhere, such as an offline root's: what the registry takes of it."""

from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.key_identifiers import extension_in, identifier_of
from fleet.domain.crl import Crl, CrlHead, CrlReason, Revocation
from fleet.domain.distribution import ca_name, full_crl_path, plain_crl_path
from fleet.domain.errors import Invalid

NUMBER_MAX = (1 << 63) - 1  # the registry's; RFC 5280, 5.2.3 allows 20 octets
SERIAL_BITS_MAX = 160
_REASONS = {reason.text: reason for reason in CrlReason if reason is not CrlReason.REMOVE_FROM_CRL}


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Its CRL number; 0 without one."""
    found = extension_in(crl, x509.CRLNumber)
    return found.crl_number if found is not None else 0


def crls_of(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> list[Crl]:
    """`crl`, which `ca` has signed, at the paths of a full CRL. Raises: Invalid (`bad-chain`): it has no nextUpdate."""
    if crl.next_update_utc is None:
        raise Invalid("bad-chain", "The CRL is refused: it has no nextUpdate.", "RFC 5280, 5.1.2.5 requires one.")
    identifier, der = identifier_of(ca), crl.public_bytes(Encoding.DER)
    number, entries = min(number_of(crl), NUMBER_MAX), len(crl)
    times = crl.last_update_utc, crl.next_update_utc
    paths = full_crl_path(ca_name(identifier)), plain_crl_path(ca_name(identifier))
    return [Crl(CrlHead(path, identifier, number, 0, *times, entries), der) for path in paths]


def revocations_of(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> Iterator[tuple[Revocation, bytes]]:
    """What `crl`, which `ca` has signed, lists. When a certificate ends is not in it: at the latest with the CA's."""
    for entry in crl:
        if 0 < entry.serial_number.bit_length() <= SERIAL_BITS_MAX:
            times = ca.not_valid_after_utc, entry.revocation_date_utc
            yield Revocation(f"{entry.serial_number:x}", *times, _reason(entry)), identifier_of(ca)


def _reason(entry: x509.RevokedCertificate) -> CrlReason:
    try:
        given = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except (ValueError, x509.ExtensionNotFound):
        return CrlReason.UNSPECIFIED
    return _REASONS.get(given, CrlReason.UNSPECIFIED)
