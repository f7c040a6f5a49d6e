"""CRL of a root CA that is kept offline: of the CAs that it has signed, by hand, for as long as a year."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fleet.ca.authority import CLOCK_SKEW, Certified, identifier_of

DAYS_MAX = 731


def next_root_crl(
    root: Certified,
    before: x509.CertificateRevocationList | None,
    revoked: Sequence[x509.Certificate],
    days: int,
    now: datetime,
) -> x509.CertificateRevocationList:
    """What `before` lists, and `revoked`, until `days` from `now`. Its number is higher than any before, also after the
    restore of a backup: it is the time.
    """
    certificate, key = root
    number = max(int(now.timestamp()), number_of(before) + 1 if before is not None else 0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.AuthorityKeyIdentifier(identifier_of(certificate), None, None), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    known = {each.serial_number: each for each in before or ()}
    for each in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(now)
        known.setdefault(each.serial_number, entry.build())
    for listed in known.values():
        builder = builder.add_revoked_certificate(listed)
    return builder.sign(key, hashes.SHA256())


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Its CRL number; 0 without one."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0
