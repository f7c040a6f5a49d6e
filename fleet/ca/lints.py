"""Rules that every issued certificate must keep, checked on the finished bytes before the certificate is released.

The rules are stated here once more, independently of the code that builds certificates: a mistake would have to be made
twice. `assembly` applies them by comparing bytes, `check` by parsing. The signature itself is not verified again: that
costs three times as much as signing, the issuer proves at start-up that its key and certificate belong together, and
every client verifies it.
"""

import functools
import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from fleet.ca.distribution import Publication
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.wire.spki import spki_of

BACKDATING_MAX = timedelta(minutes=5)

BACKDATING_SLACK = BACKDATING_MAX + timedelta(seconds=1)  # whole seconds are rounded down

_CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
_SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
_UPN = "1.3.6.1.4.1.311.20.2.3"
_OF_PEOPLE_AND_STATIONS: dict[CredentialKind, tuple[str, ...]] = {
    CredentialKind.STATION: (_CLIENT_AUTH, "1.3.6.1.5.5.7.3.28"),
    CredentialKind.OPERATOR: (_CLIENT_AUTH,),
    CredentialKind.CLAIM: (_CLIENT_AUTH,),
}
# Whatever a profile may come to allow: none of these makes a device a code signer or an OCSP responder. Nor a server:
# only `service` does.
_OF_DEVICES = {
    "clientAuth": _CLIENT_AUTH,
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "ipsecIKE": "1.3.6.1.5.5.7.3.17",
    "eapOverLAN": "1.3.6.1.5.5.7.3.14",
    "documentSigning": "1.3.6.1.5.5.7.3.36",
}
_SIGNING_KEYS = (
    ed25519.Ed25519PublicKey,
    ed448.Ed448PublicKey,
    mldsa.MLDSA44PublicKey,
    mldsa.MLDSA65PublicKey,
    mldsa.MLDSA87PublicKey,
)
HARDWARE_TYPE = bytes.fromhex("06146981dda6deb1b7c1cab8bfa5f2f284d2c793a445")
"""DER of hwType in every hwModuleName, see ca/README.md."""
_POINTS = frozenset({ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS})
_HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_SERIAL_NUMBER = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]{1,64}")
_PLACEHOLDER = re.compile(r"\{id\}|\{model\}")


class LintFailed(Exception):
    """A certificate that must not be released. The fault is ours, so this is never an answer to a client.

    The message names the rule that was broken and the holder.
    """


def is_permitted_key(spki_der: bytes, permit: IssuePermit) -> bool:
    return spki_der == permit.spki_der and hashlib.sha256(spki_der).digest() == permit.key_sha256


def is_strong(key: PublicKeyTypes) -> bool:
    match key:
        case ec.EllipticCurvePublicKey(curve=curve):
            return curve.name in ("secp256r1", "secp384r1", "secp521r1")
        case rsa.RSAPublicKey(key_size=bits):
            numbers = key.public_numbers()
            return 2048 <= bits <= 8192 and numbers.n % 2 == 1 and numbers.e % 2 == 1 and numbers.e >= 65537
        case _:
            return isinstance(key, _SIGNING_KEYS)


def is_permitted_validity(
    validity: tuple[datetime, datetime], permit: IssuePermit, issuer_validity: tuple[datetime, datetime]
) -> bool:
    start, end = validity
    return (
        issuer_validity[0] <= start < end <= issuer_validity[1]
        and permit.not_before - BACKDATING_SLACK <= start <= permit.not_before
        and end <= permit.not_after
    )


def expected_subject(permit: IssuePermit) -> list[tuple[x509.ObjectIdentifier, str]]:
    """The subject's attributes in order, each in an RDN of its own."""
    subject = [(NameOID.COMMON_NAME, permit.holder)]
    if permit.profile.organisation and permit.kind is CredentialKind.DEVICE:
        subject.insert(0, (NameOID.ORGANIZATION_NAME, permit.profile.organisation))
    if permit.hardware_serial:
        subject.append((NameOID.SERIAL_NUMBER, permit.hardware_serial))
    return subject


def is_plain_subject(permit: IssuePermit) -> bool:
    return all(_is_plain_text(oid, value) for oid, value in expected_subject(permit))


def _is_plain_text(oid: x509.ObjectIdentifier, value: str | bytes) -> bool:
    """Whatever the registry has accepted: no control character, no bidirectional mark, nothing too long."""
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 64:
        return False
    if oid == NameOID.COMMON_NAME:
        return _HOLDER.fullmatch(value) is not None
    return oid != NameOID.SERIAL_NUMBER or _SERIAL_NUMBER.fullmatch(value) is not None


def expected_usages(permit: IssuePermit) -> tuple[str, ...]:
    """Dotted OIDs of the extended key usages, in order."""
    if permit.kind is not CredentialKind.DEVICE:
        return _OF_PEOPLE_AND_STATIONS[permit.kind]
    usages = _of_device(permit.profile.extended_key_usages)
    # A server without a name of its own could stand for any.
    return (*usages, _SERVER_AUTH) if permit.profile.service and "{id}" in permit.profile.dns_name else usages


@functools.lru_cache(maxsize=64)
def _of_device(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(oid for name, oid in _OF_DEVICES.items() if name in names)


def expected_alt_names(permit: IssuePermit) -> list[str]:
    """The general names of the SAN in order, each as "TYPE value"; empty when there is no SAN."""
    if permit.kind is not CredentialKind.DEVICE:
        return []
    profile = permit.profile
    names = [f"DNS {profile.dns_name}"] if profile.dns_name else []
    names += [f"URI {uri}" for uri in profile.uris]
    names += [f"{kind} {name}" for kind, name in (("EMAIL", profile.email), ("UPN", profile.upn)) if name]
    if names:
        own = {"{id}": permit.holder, "{model}": permit.model}
        names = [_PLACEHOLDER.sub(lambda found: own[found.group()], template) for template in names]
    if profile.hardware_module_name and permit.hardware_serial:
        names.insert(0, f"HW {permit.hardware_serial}")
    return names


def expected_urls(
    permit: IssuePermit, publication: Publication | None, identifier: bytes, serial: int
) -> tuple[str, tuple[str, str] | None]:
    """URL of the CRL, "" for none; URLs of the OCSP responder and of the CA's certificate, None for none.

    `identifier` is the issuer's subject key identifier.
    """
    if publication is None:
        return "", None
    profile, start, count = permit.profile, publication.url, publication.shards
    crl = f"{start}/crl/{identifier.hex()}"
    crl += f"/{(serial & 0xFFFF) * count >> 16}-of-{count}.crl" if count > 1 else ".crl"
    access = f"{start}/ocsp", f"{start}/ca/{identifier.hex()}.cer"
    return crl if profile.cdp and publication.cdp else "", access if profile.aia and publication.aia else None


def key_is_the_permitted_one(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    # Loading the key proves as well that an EC point lies on its curve.
    return is_permitted_key(spki_of(c.public_key()), permit)


def key_is_strong(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return is_strong(c.public_key())


def serial_is_20_positive_octets(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    # RFC 5280, 4.1.2.2: positive, at most 20 octets. Ours always use all of them.
    return 153 <= c.serial_number.bit_length() <= 159


def issuer_is_ours(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return c.issuer == issuer.subject and c.version is x509.Version.v3


def signature_is_strong(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return c.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256


def validity_is_permitted(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    own, above = ((each.not_valid_before_utc, each.not_valid_after_utc) for each in (c, issuer))
    return is_permitted_validity(own, permit, above)


def subject_is_the_holder(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    # RFC 5280, 4.1.2.4; an RDN of several attributes would read differently in different programs.
    is_flat = all(len(rdn) == 1 for rdn in c.subject.rdns)
    return is_flat and [(a.oid, a.value) for a in c.subject] == expected_subject(permit)


def subject_is_plain_text(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    return all(_is_plain_text(attribute.oid, attribute.value) for attribute in c.subject)


def extensions_are_exact(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    """No extension is missing, none was added, none is critical that should not be."""
    # `points_are_the_cas` judges the two that are left out here.
    found = {(e.oid, e.critical) for e in c.extensions} - {(oid, False) for oid in _POINTS}
    want = {
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.EXTENDED_KEY_USAGE, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
    }
    if expected_alt_names(permit):
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


def allows_clients(permit: IssuePermit) -> bool:
    return _CLIENT_AUTH in expected_usages(permit)


def is_for_clients_only(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    usage = c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    found = sorted(oid.dotted_string for oid in usage)
    return allows_clients(permit) and found == sorted(expected_usages(permit))


def key_identifiers_agree(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    own = c.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    above = c.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    issuers = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return own == permit.key_sha256[:20] and above == x509.AuthorityKeyIdentifier(issuers, None, None)


def alt_names_are_the_profiles(c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate) -> bool:
    want = expected_alt_names(permit)
    if not want:
        return True  # `extensions_are_exact` has found no SAN
    names = c.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [_text(name) for name in names] == want


def _text(name: x509.GeneralName) -> str:
    match name:
        case x509.DNSName():
            return f"DNS {name.value}"
        case x509.UniformResourceIdentifier():
            return f"URI {name.value}"
        case x509.RFC822Name():
            return f"EMAIL {name.value}"
        case x509.OtherName() if name.type_id.dotted_string == _UPN:
            known = name.value[:1] == b"\x0c" and name.value[1:2] == bytes((min(len(name.value) - 2, 0x7F),))
            return f"UPN {name.value[2:].decode('latin-1')}" if known else "?"
        case x509.OtherName() if name.type_id.dotted_string == "1.3.6.1.5.5.7.8.4":
            serial = name.value[len(HARDWARE_TYPE) + 4 :]
            content = HARDWARE_TYPE + bytes((0x04, min(len(serial), 0x7F))) + serial
            known = len(serial) <= 64 and name.value == bytes((0x30, len(content))) + content
            return f"HW {serial.decode('latin-1')}" if known else "?"
        case _:
            return "?"


Lint = Callable[[x509.Certificate, IssuePermit, x509.Certificate], bool]

LINTS: tuple[Lint, ...] = (
    key_is_the_permitted_one,
    key_is_strong,
    serial_is_20_positive_octets,
    issuer_is_ours,
    signature_is_strong,
    validity_is_permitted,
    subject_is_the_holder,
    subject_is_plain_text,
    extensions_are_exact,
    is_no_authority,
    is_for_clients_only,
    key_identifiers_agree,
    alt_names_are_the_profiles,
)


def points_are_the_cas(
    c: x509.Certificate, permit: IssuePermit, issuer: x509.Certificate, publication: Publication | None
) -> bool:
    """The CRL, the OCSP responder and the CA's certificate are named as the CA and the profile say, nothing else is."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    crl, access = expected_urls(permit, publication, identifier, c.serial_number)
    want: dict[x509.ObjectIdentifier, x509.ExtensionType] = {}
    if crl:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl)], None, None, None)
        want[ExtensionOID.CRL_DISTRIBUTION_POINTS] = x509.CRLDistributionPoints([point])
    if access:
        methods = AuthorityInformationAccessOID.OCSP, AuthorityInformationAccessOID.CA_ISSUERS
        want[ExtensionOID.AUTHORITY_INFORMATION_ACCESS] = x509.AuthorityInformationAccess(
            [
                x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
                for method, url in zip(methods, access, strict=True)
            ]
        )
    return {e.oid: e.value for e in c.extensions if e.oid in _POINTS} == want


def check(
    certificate: x509.Certificate,
    permit: IssuePermit,
    issuer: x509.Certificate,
    publication: Publication | None = None,
) -> None:
    """Check `certificate`, parsed from its finished bytes, against `permit`, `issuer` and what that publishes.

    Raises: LintFailed naming the first rule that is broken.
    """
    broken = next((lint.__name__ for lint in LINTS if not lint(certificate, permit, issuer)), "")
    if not broken and not points_are_the_cas(certificate, permit, issuer, publication):
        broken = points_are_the_cas.__name__
    if broken:
        raise LintFailed(f"The certificate for {permit.kind} {permit.holder} breaks the rule {broken}.")
