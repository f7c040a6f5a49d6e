"""Issuer with its private key in this process: signs what was permitted, and nothing else."""

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID
from msgspec import structs

from fleet.ca import lints
from fleet.ca.assembly import ExpectedAssembly
from fleet.ca.authority import Certified
from fleet.ca.distribution import DistributionPoints, Publication
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import generate_key
from fleet.ca.profiles import (
    END_ENTITY,
    KEY_IDENTIFIER_SIZE,
    PROFILES,
    SIGNS_ONLY,
    key_identifier,
    new_serial,
    validity,
)
from fleet.ca.tbs import Template, extension, raw_extension, sealed
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.enrollment import IssuePermit, permit_by_operator
from fleet.domain.errors import Invalid, Refused
from fleet.domain.model_rules import ProfileRules
from fleet.wire.der import OCTET_STRING, encode_element, encode_oid
from fleet.wire.spki import spki_of

_ALGORITHM = ec.ECDSA(hashes.SHA256())
_SUBJECT_KEY_IDENTIFIER = raw_extension(
    encode_oid(ExtensionOID.SUBJECT_KEY_IDENTIFIER.dotted_string),
    encode_element(OCTET_STRING, bytes(KEY_IDENTIFIER_SIZE)),
    critical=False,
)[:-KEY_IDENTIFIER_SIZE]
"""Up to the identifier itself."""
_SAN = encode_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string)

FLEET = frozenset({CredentialKind.DEVICE, CredentialKind.STATION, CredentialKind.CLAIM})
"""Kinds of holder that the fleet's issuing CA certifies."""
OPERATORS = frozenset({CredentialKind.OPERATOR})
"""Kinds of holder that the operators' CA certifies: the two CAs have none in common."""


def own_key() -> Refused:
    """Of a request for a certificate with a key of the fleet's own, which nobody else can hold."""
    return Refused("key-in-use", "This key belongs to a CA or the server of the fleet.", "Make a new key.")


class LocalIssuer:
    """Issues under `certificate` with its P-256 `private_key`, to holders of `kinds` only; implements
    `fleet.domain.ports.Issuer`. Its certificates name what `publication` says, where their profile does.

    Raises: Invalid (`bad-issuer`): certificate and key do not belong together, or may not sign certificates.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        private_key: ec.EllipticCurvePrivateKey,
        kinds: Collection[CredentialKind] = FLEET,
        publication: Publication | None = None,
    ) -> None:
        if certificate.public_key() != private_key.public_key():
            raise Invalid("bad-issuer", "The issuing certificate and the issuing key do not belong together.")
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise Invalid("bad-issuer", "The issuing key is not P-256.")
        self.certificate = certificate
        self._key = private_key
        self._spki = spki_of(certificate.public_key())
        self._kinds = frozenset(kinds)
        self._name = certificate.subject.public_bytes()
        self._validity = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        self._common = _common_extensions(certificate)
        self._publication = publication
        identifier = identifier_of(certificate)
        self._points = DistributionPoints(identifier, publication) if publication is not None else None
        self._expected = ExpectedAssembly(certificate, publication)
        self._templates: dict[tuple[str, ...], Template] = {}

    def issue(self, permit: IssuePermit, now: datetime) -> Credential:
        """A new certificate, in state ISSUED, checked against its profile before it is returned.

        Raises: Refused: `wrong-issuer`, `issuer-expired`, `bad-hardware-serial`, `name-impossible`. LintFailed: our own
        fault; the certificate is discarded.
        """
        if permit.spki_der == self._spki:
            raise own_key()
        if permit.kind not in self._kinds:
            raise Refused("wrong-issuer", f"This CA signs nothing for {permit.kind} {permit.holder}.")
        profile = PROFILES[permit.kind]
        start, end = validity(permit, self._validity)
        serial = new_serial(now)
        subject = profile.subject(permit)
        extensions = _SUBJECT_KEY_IDENTIFIER + key_identifier(permit.key_sha256)
        alt_names = profile.alt_names(permit)
        if alt_names is not None:
            extensions += raw_extension(_SAN, alt_names, critical=False)
        if self._points is not None:
            extensions += self._points.of(serial, cdp=permit.profile.cdp, aia=permit.profile.aia)
        tbs = self._template(profile.extended_key_usages(permit)).fill(
            serial=serial, not_before=start, not_after=end, subject=subject, spki=permit.spki_der, extensions=extensions
        )
        der = sealed(tbs, self._key.sign(tbs, _ALGORITHM))
        if not self._expected.matches(der, permit):
            lints.check(x509.load_der_x509_certificate(der), permit, self.certificate, self._publication)
        return Credential(
            fingerprint=hashlib.sha256(der).digest(),
            serial=f"{serial:x}",
            kind=permit.kind,
            holder=permit.holder,
            key_sha256=permit.key_sha256,
            not_before=start,
            not_after=end,
            state=CredentialState.ISSUED,
            issued_at=now,
            der=der,
            grant=permit.grant,
        )

    def _template(self, usages: tuple[str, ...]) -> Template:
        """The template for these extended key usages; there are few sets of them."""
        template = self._templates.get(usages)
        if template is None:
            purposes = x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in usages])
            extensions = self._common + extension(purposes, critical=False)
            template = self._templates[usages] = Template(self._name, extensions)
        return template


def trial_leaf(issuing: Certified, model: str, profile: ProfileRules, now: datetime) -> x509.Certificate:
    """A certificate of a device of `model` below `issuing`, of a key that nobody has: it leaves no trace.

    Raises: as LocalIssuer and its `issue`.
    """
    # Not the key of the CA, for which the issuer refuses a certificate.
    spki = spki_of(generate_key().public_key())
    permit = permit_by_operator(CredentialKind.DEVICE, "trial-1", spki, now + timedelta(days=1), now, model=model)
    permit = structs.replace(permit, profile=profile, hardware_serial="1")
    return x509.load_der_x509_certificate(LocalIssuer(*issuing).issue(permit, now).der)


def _common_extensions(issuer: x509.Certificate) -> bytes:
    """DER of the extensions that all certificates of `issuer` share."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound as missing:
        raise Invalid("bad-issuer", f"The issuing certificate lacks {missing.oid._name}.") from None
    if not constraints.ca or not usage.key_cert_sign:
        raise Invalid("bad-issuer", "The issuing certificate may not sign certificates.")
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    # SIGNS_ONLY for every key type: TLS with forward secrecy needs nothing else, RSA included.
    usages = extension(END_ENTITY, critical=True) + extension(SIGNS_ONLY, critical=True)
    return usages + extension(authority, critical=False)
