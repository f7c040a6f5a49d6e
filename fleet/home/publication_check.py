"""What certificates of a home name, fetched and verified as a relying party does: CRLs, OCSP answers, CAs."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from fleet.ca.chain import has_signed, has_signed_crl
from fleet.ca.distribution import DistributionPoints, Publication
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.ocsp import issuer_ids
from fleet.domain.ca_role import CaRole
from fleet.domain.distribution import serial_in
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home, certificates_in, settings_of
from fleet.home.publication import publication_of, publication_of_operators
from fleet.wire.ocsp import SHA1

FETCH_SECONDS_MAX = 10.0
FILE_SIZE_MAX = 64 * 1024 * 1024  # a CRL of a million certificates has 40 MB
SERIAL_UNKNOWN = 0x40 << 152  # of no certificate of ours: its time is 1970

Fetch = Callable[[str, bytes | None], bytes]
"""What a URL answers, to a POST of an OCSP request where one is given. Raises: OSError."""


@dataclass(frozen=True, slots=True)
class PublishedUrl:
    """A URL that certificates name, and the CA that must have signed what is there."""

    kind: str
    """"crl", "ocsp", "ca"."""
    url: str
    issuer: x509.Certificate
    serial: int
    """Of a certificate that names it; SERIAL_UNKNOWN for one that might."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What is there."""

    published: PublishedUrl
    state: str
    """"ok", "stale", "wrong", "unreachable"."""
    until: datetime | None = None
    """nextUpdate."""
    reason: str = ""


class _Rejected(Exception):
    """It is not what a relying party accepts; the message says why."""


class _Expired(Exception):
    """Its nextUpdate has passed."""

    def __init__(self, until: datetime) -> None:
        self.until = until


def urls_of(home: Home, authorities: Authorities) -> list[PublishedUrl]:
    """Everything that the server's certificate and the CAs above it name, and what a certificate of each CA would name
    if it were issued now: every shard of its CRL.
    """
    found: dict[tuple[str, str, bytes], PublishedUrl] = {}
    for published in (*_of_chains(home, authorities), *_of_settings(home, authorities)):
        found.setdefault((published.kind, published.url, identifier_of(published.issuer)), published)
    return list(found.values())


def _of_chains(home: Home, authorities: Authorities) -> Iterator[PublishedUrl]:
    pool = [ca for each in authorities.all for ca in each.chain]
    served = certificates_in(home.server_chain)
    for certificate in dict.fromkeys((*served, *(ca for a in authorities.all for ca in (a.issuing, *a.above)))):
        issuer = next((ca for ca in (*pool, *served) if ca != certificate and has_signed(ca, certificate)), None)
        if issuer is not None:
            yield from _named(certificate.extensions, issuer, certificate.serial_number)


def _of_settings(home: Home, authorities: Authorities) -> Iterator[PublishedUrl]:
    settings = settings_of(home)
    for ca in home_cas(home, authorities, {CaRole.ISSUING, CaRole.OPERATORS}):
        is_operators = ca.role is CaRole.OPERATORS
        publication = publication_of_operators(settings) if is_operators else publication_of(settings, ca.tenant)
        if publication is not None:
            yield from _of_publication(ca.certificate, publication)


def _of_publication(issuer: x509.Certificate, publication: Publication) -> Iterator[PublishedUrl]:
    points = DistributionPoints(identifier_of(issuer), publication)
    for shard in range(publication.shards):
        named = points.extensions(serial_in(shard, publication.shards))
        yield from _named((x509.Extension(each.oid, False, each) for each in named), issuer, SERIAL_UNKNOWN)


def _named(
    extensions: Iterable[x509.Extension[x509.ExtensionType]], issuer: x509.Certificate, serial: int
) -> Iterator[PublishedUrl]:
    for extension in extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            for point in extension.value:
                yield from (
                    PublishedUrl("crl", name.value, issuer, serial) for name in point.full_name or () if _is_http(name)
                )
        elif isinstance(extension.value, x509.AuthorityInformationAccess):
            for access in extension.value:
                kind = _METHODS.get(access.access_method)
                if kind is not None and _is_http(access.access_location):
                    yield PublishedUrl(kind, access.access_location.value, issuer, serial)


_METHODS = {AuthorityInformationAccessOID.OCSP: "ocsp", AuthorityInformationAccessOID.CA_ISSUERS: "ca"}


def _is_http(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.UniformResourceIdentifier) and name.value.startswith(("http://", "https://"))


def check_url(published: PublishedUrl, fetch: Fetch, now: datetime) -> CheckResult:
    """Fetch and verify what is at `published`."""
    try:
        until = _CHECKS[published.kind](published, fetch, now)
    except _Expired as expired:
        return CheckResult(published, "stale", expired.until, f"its nextUpdate was {expired.until:%Y-%m-%d %H:%M}Z")
    except _Rejected as rejected:
        return CheckResult(published, "wrong", reason=str(rejected))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return CheckResult(published, "wrong", reason="it cannot be read")
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        text = getattr(reason, "strerror", None) or reason  # without the number of the error
        return CheckResult(published, "unreachable", reason=str(text))
    return CheckResult(published, "ok", until)


def _check_crl(published: PublishedUrl, fetch: Fetch, now: datetime) -> datetime | None:
    crl = x509.load_der_x509_crl(fetch(published.url, None))
    if not has_signed_crl(published.issuer, crl):
        raise _Rejected("it is not signed by the CA")
    for extension in crl.extensions:
        if isinstance(extension.value, x509.IssuingDistributionPoint):
            names = [name.value for name in extension.value.full_name or ()]
            if names and published.url not in names:
                raise _Rejected("its issuing distribution point names another URL")
    return _must_be_fresh(crl.last_update_utc, crl.next_update_utc, now)


def _must_be_fresh(since: datetime, until: datetime | None, now: datetime) -> datetime | None:
    if now < since:
        raise _Rejected(f"its thisUpdate lies ahead: {since:%Y-%m-%d %H:%M}Z")
    if until is not None and until <= now:
        raise _Expired(until)
    return until


def _check_ca(published: PublishedUrl, fetch: Fetch, now: datetime) -> datetime | None:
    certificate = x509.load_der_x509_certificate(fetch(published.url, None))
    if certificate.subject != published.issuer.subject or certificate.public_key() != published.issuer.public_key():
        raise _Rejected("it is another CA's certificate")
    if now >= certificate.not_valid_after_utc:
        raise _Expired(certificate.not_valid_after_utc)
    return certificate.not_valid_after_utc


def _check_ocsp(published: PublishedUrl, fetch: Fetch, now: datetime) -> datetime | None:
    builder = ocsp.OCSPRequestBuilder()
    name, key = _issuer_hashes(published.issuer)
    request = builder.add_certificate_by_hash(name, key, published.serial, hashes.SHA1()).build()  # noqa: S303  RFC 5019
    response = ocsp.load_der_ocsp_response(fetch(published.url, request.public_bytes(Encoding.DER)))
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise _Rejected(f"it answers {response.response_status.name.lower()}")
    single = next(response.responses)
    if (single.serial_number, single.issuer_key_hash) != (published.serial, key):
        raise _Rejected("it answers for another certificate")
    if published.serial != SERIAL_UNKNOWN and single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise _Rejected(f"it says that certificate {published.serial:x} is {single.certificate_status.name.lower()}")
    signer = next(iter(response.certificates), published.issuer)
    if signer != published.issuer and not _is_delegated(signer, published.issuer, now):
        raise _Rejected("its signer is not delegated by the CA")
    if not _has_signed_response(signer, response):
        raise _Rejected("its signature does not verify")
    return _must_be_fresh(single.this_update_utc, single.next_update_utc, now)


def _issuer_hashes(issuer: x509.Certificate) -> tuple[bytes, bytes]:
    """Of its name and its key, SHA-1: what every responder knows (RFC 5019, 2.1.1)."""
    return next((name, key) for algorithm, name, key in issuer_ids(issuer) if algorithm == SHA1)


def _is_delegated(signer: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    """RFC 6960, 4.2.2.2."""
    usages = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    is_valid = signer.not_valid_before_utc <= now < signer.not_valid_after_utc
    return is_valid and ExtendedKeyUsageOID.OCSP_SIGNING in usages and has_signed(issuer, signer)


def _has_signed_response(signer: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    key, digest = signer.public_key(), response.signature_hash_algorithm
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), digest)
        else:
            return False
    except InvalidSignature:
        return False
    return True


_CHECKS: dict[str, Callable[[PublishedUrl, Fetch, datetime], datetime | None]] = {
    "crl": _check_crl,
    "ocsp": _check_ocsp,
    "ca": _check_ca,
}


def fetch_over_http(url: str, body: bytes | None) -> bytes:
    """As a Fetch. At most FETCH_SECONDS_MAX for a step, and FILE_SIZE_MAX bytes."""
    headers = {"Content-Type": "application/ocsp-request"} if body is not None else {}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310  http and https alone get here
    try:
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS_MAX) as answer:  # noqa: S310
            data: bytes = answer.read(FILE_SIZE_MAX + 1)
    except urllib.error.HTTPError as error:
        raise OSError(None, f"HTTP {error.code}") from error
    if len(data) > FILE_SIZE_MAX:
        raise OSError(None, f"it is larger than {FILE_SIZE_MAX} bytes")
    return data
