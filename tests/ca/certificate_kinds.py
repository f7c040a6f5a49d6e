"""One certificate of every profile and every kind of key, for judges that are not ours."""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.authority import (
    create_issuing,
    create_operators,
    create_root,
    issue_server_certificate,
    renewed_server_certificate,
)
from fleet.ca.distribution import Publication
from fleet.ca.issuer import OPERATORS, LocalIssuer
from fleet.domain.credential import CredentialKind
from fleet.domain.enrollment import IssuePermit
from fleet.domain.model_rules import EXTENDED_KEY_USAGES, ProfileRules

KEYS: dict[str, CertificateIssuerPrivateKeyTypes] = {
    "EC-P256": ec.generate_private_key(ec.SECP256R1()),
    "EC-P384": ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048+": rsa.generate_private_key(65537, 3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate(),
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate(),
}
"""By the names of fleet.domain.device.KEY_TYPES."""

PROFILES = {
    "usual": ProfileRules(),
    "no SAN": ProfileRules(hardware_module_name=False),
    "DNS": ProfileRules(hardware_module_name=False, dns_name="{id}.{model}.example.com"),
    "https": ProfileRules(hardware_module_name=False, uris=("https://example.com/{model}/{id}",)),
    "urn": ProfileRules(hardware_module_name=False, uris=("urn:example:{model}:{id}",)),
    "spiffe": ProfileRules(hardware_module_name=False, uris=("spiffe://example.com/{model}/{id}",)),
    "person": ProfileRules(
        extended_key_usages=("clientAuth", "eapOverLAN"),
        hardware_module_name=False,
        email="{id}@example.com",
        upn="{id}@{model}.corp.example",
    ),
    "service": ProfileRules(hardware_module_name=False, dns_name="{id}.partners.example.com", service=True),
    "everything": ProfileRules(
        extended_key_usages=tuple(EXTENDED_KEY_USAGES),
        organisation="Müller & Söhne",
        dns_name="{id}.example.com",
        uris=("https://example.com/a/{id}", "https://192.0.2.7:8443/b/{id}?model={model}#it"),
    ),
}


def permit_for(
    key: CertificateIssuerPrivateKeyTypes, now: datetime, profile: ProfileRules = PROFILES["usual"]
) -> IssuePermit:
    """For a device cam-7 of model cam with hardware serial SN1, 90 days."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return IssuePermit(
        kind=CredentialKind.DEVICE,
        holder="cam-7",
        hardware_serial="SN1",
        spki_der=spki,
        key_sha256=hashlib.sha256(spki).digest(),
        not_before=now,
        not_after=now + timedelta(days=90),
        grant="token t1",
        model="cam",
        profile=profile,
    )


def every_kind(now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    """(what it is, the certificate) of everything that this product signs."""
    root = create_root("Acme", now)
    issuing = create_issuing("Acme", *root, now)
    people = create_operators("Acme", now)
    yield from (("root", root[0]), ("issuing CA", issuing[0]), ("operators' CA", people[0]))
    hosts = ("est.example.com", "192.0.2.7", "2001:db8::7", "*.devices.example.com")
    yield "server", issue_server_certificate(*issuing, hosts, now)[0]
    issuer, operators = LocalIssuer(*issuing), LocalIssuer(*people, OPERATORS)
    for key_name, key in KEYS.items():
        for profile_name, profile in PROFILES.items():
            der = issuer.issue(permit_for(key, now, profile), now).der
            yield f"device, {profile_name}, {key_name}", x509.load_der_x509_certificate(der)
        by_hand = replace(permit_for(key, now), hardware_serial="", model="")
        station = issuer.issue(replace(by_hand, kind=CredentialKind.STATION, holder="line-1"), now)
        operator = operators.issue(replace(by_hand, kind=CredentialKind.OPERATOR, holder="bob"), now)
        yield f"station, {key_name}", x509.load_der_x509_certificate(station.der)
        yield f"operator, {key_name}", x509.load_der_x509_certificate(operator.der)


def every_published_kind(now: datetime) -> Iterator[tuple[str, x509.Certificate]]:
    """Likewise, of a CA that publishes CRLs and an OCSP responder."""
    below_root = Publication("http://pki.example.com", ocsp=False)
    issuing = create_issuing("Acme", *create_root("Acme", now), now, publication=below_root)
    yield "issuing CA", issuing[0]
    server_key = KEYS["EC-P256"]
    assert isinstance(server_key, ec.EllipticCurvePrivateKey)
    for shards in (1, 128):
        publication = Publication("http://pki.example.com", shards)
        issuer = LocalIssuer(*issuing, publication=publication)
        for profile_name, profile in PROFILES.items():
            der = issuer.issue(permit_for(server_key, now, profile), now).der
            yield f"device, {profile_name}, {shards}", x509.load_der_x509_certificate(der)
        hosts = ("est.example.com", "192.0.2.7")
        yield f"server, {shards}", renewed_server_certificate(issuing, hosts, server_key, now, publication)
