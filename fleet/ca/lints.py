"""What must hold for every certificate that we issued, checked on the finished bytes before they leave.

The rules are stated here once more, apart from the code that builds: a mistake would have to be made twice.
The signature itself is not verified again: it costs three times what signing does, the issuer proves once at its start
that its key and its certificate belong together, and a client checks every one.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit

BACKDATING_MAX = timedelta(minutes=5)

_CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
_EXTENDED_KEY_USAGES = {
    CredentialKind.DEVICE: [_CLIENT_AUTH],
    CredentialKind.STATION: [_CLIENT_AUTH, "1.3.6.1.5.5.7.3.28"],
    CredentialKind.OPERATOR: [_CLIENT_AUTH],
    CredentialKind.CLAIM: [_CLIENT_AUTH],
}


class LintFailed(Exception):
    """A certificate that must not leave. Ours is the fault, so this is no answer to a client.

    The message names the rule that was broken and the holder.
    """


def key_is_the_permitted_one(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    # Loading the key proves as well that an EC point lies on its curve.
    spki = c.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return spki == permit.spki_der and hashlib.sha256(spki).digest() == permit.key_sha256


def serial_is_20_positive_octets(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    # RFC 5280, 4.1.2.2: positive, at most 20 octets. Ours always use all of them.
    return 153 <= c.serial_number.bit_length() <= 159


def issuer_is_ours(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return c.issuer == issuer.subject and c.version is x509.Version.v3


def signature_is_strong(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return c.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256


def validity_is_permitted(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    start, end = c.not_valid_before_utc, c.not_valid_after_utc
    slack = BACKDATING_MAX + timedelta(seconds=1)  # whole seconds are rounded down
    return (
        issuer.not_valid_before_utc <= start < end <= issuer.not_valid_after_utc
        and permit.not_before - slack <= start <= permit.not_before
        and end <= permit.not_after
    )


def subject_is_the_holder(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    want = [(NameOID.COMMON_NAME, permit.holder)]
    if permit.hardware_serial:
        want.append((NameOID.SERIAL_NUMBER, permit.hardware_serial))
    # RFC 5280, 4.1.2.4; a relative name of several attributes would read differently in different programs.
    return all(len(rdn) == 1 for rdn in c.subject.rdns) and [(a.oid, a.value) for a in c.subject] == want


def extensions_are_exact(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    """Nothing is missing, nothing has been added, nothing is critical that should not be."""
    found = {(e.oid, e.critical) for e in c.extensions}
    want = {
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.EXTENDED_KEY_USAGE, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
    }
    if permit.hardware_serial:
        want.add((ExtensionOID.SUBJECT_ALTERNATIVE_NAME, False))
    return found == want


def is_no_authority(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    usage = c.extensions.get_extension_for_class(x509.KeyUsage).value
    return (
        not c.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        and usage.digital_signature
        and not (usage.key_cert_sign or usage.crl_sign or usage.key_agreement or usage.key_encipherment)
        and not (usage.content_commitment or usage.data_encipherment)
    )


def is_for_clients_only(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    usage = c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return [oid.dotted_string for oid in usage] == _EXTENDED_KEY_USAGES[permit.kind]


def key_identifiers_agree(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    own = c.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    above = c.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    issuers = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return own == permit.key_sha256[:20] and above == x509.AuthorityKeyIdentifier(issuers, None, None)


def alt_names_are_the_hardware_serial(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    if not permit.hardware_serial:
        return True  # `extensions_are_exact` has seen that there is no SAN
    names = list(c.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    serial = permit.hardware_serial.encode("ascii")
    return (
        len(names) == 1
        and isinstance(names[0], x509.OtherName)
        and names[0].type_id.dotted_string == "1.3.6.1.5.5.7.8.4"
        and names[0].value.endswith(bytes((0x04, len(serial))) + serial)
    )


Lint = Callable[[x509.Certificate, IssuePermit, x509.Certificate], bool]

LINTS: tuple[Lint, ...] = (
    key_is_the_permitted_one,
    serial_is_20_positive_octets,
    issuer_is_ours,
    signature_is_strong,
    validity_is_permitted,
    subject_is_the_holder,
    extensions_are_exact,
    is_no_authority,
    is_for_clients_only,
    key_identifiers_agree,
    alt_names_are_the_hardware_serial,
)


def check(certificate: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> None:
    """Hold `certificate`, parsed from its finished bytes, against `permit` and `issuer`.

    Raises: LintFailed naming the first rule that does not hold.
    """
    for lint in LINTS:
        if not lint(certificate, permit, issuer):
            raise LintFailed(f"The certificate for {permit.kind} {permit.holder} breaks the rule {lint.__name__}.")
