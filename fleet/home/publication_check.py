"""What certificates of a home name, fetched and verified as a relying party does: CRLs, OCSP answers, CAs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID
from msgspec import Struct
from msgspec.structs import replace

from fleet.ca.chain import has_signed, has_signed_crl
from fleet.ca.distribution import DistributionPoints, Publication
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.ocsp import issuer_ids
from fleet.domain.ca_role import CaRole
from fleet.domain.distribution import ca_name, delta_crl_path, full_crl_path, serial_in
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.http_fetch import TooLarge
from fleet.home.layout import Home, certificates_in, settings_of
from fleet.home.publication import publication_of, publication_of_operators
from fleet.wire.ocsp import SHA1

SERIAL_UNKNOWN = 0x40 << 152  # of no certificate of ours: its time is 1970

Fetch = Callable[[str, bytes | None], bytes]
"""What a URL answers, to a POST of an OCSP request where one is given. Raises: OSError."""


class PublishedUrl(Struct, frozen=True):
    """A URL that certificates name, and the CA that must have signed what is there."""

    kind: str
    """"crl", "delta", "ocsp", "ca"."""
    url: str
    issuer: x509.Certificate
    serial: int
    """Of a certificate that names it; SERIAL_UNKNOWN for one that might."""
    base: str = ""
    """Of a delta CRL, where the full one is."""


class CheckResult(Struct, frozen=True):
    """What is there."""

    published: PublishedUrl
    state: str
    """"ok", "stale", "late", "wrong", "unreachable"."""
    until: datetime | None = None
    """nextUpdate."""
    reason: str = ""
    is_large: bool = False
    """It is larger than what was fetched of it; of a CRL, it may be right all the same."""


class _Rejected(Exception):
    """It is not what a relying party accepts; the message says why."""


class _Expired(Exception):
    """Its nextUpdate has passed."""

    def __init__(self, until: datetime) -> None:
        self.until = until


def urls_of(home: Home, authorities: Authorities, issued: Iterable[PublishedUrl] = ()) -> list[PublishedUrl]:
    """Everything that the server's certificate and the CAs above it name, what a certificate of each CA would name if
    it were issued now, every shard of its CRL, delta CRLs, and `issued`, which certificates in use name.
    """
    found: dict[tuple[str, str, bytes], PublishedUrl] = {}
    for published in (*_of_chains(home, authorities), *_of_settings(home, authorities), *issued):
        found.setdefault((published.kind, published.url, identifier_of(published.issuer)), published)
    return list(found.values())


def _of_chains(home: Home, authorities: Authorities) -> Iterator[PublishedUrl]:
    pool = [ca for each in authorities.all for ca in each.chain]
    served = certificates_in(home.server_chain)
    for certificate in dict.fromkeys((*served, *(ca for a in authorities.all for ca in (a.issuing, *a.above)))):
        issuer = next((ca for ca in (*pool, *served) if ca != certificate and has_signed(ca, certificate)), None)
        if issuer is not None:
            yield from named_in(certificate.extensions, issuer, certificate.serial_number)


def _of_settings(home: Home, authorities: Authorities) -> Iterator[PublishedUrl]:
    settings = settings_of(home)
    for ca in home_cas(home, authorities, {CaRole.ISSUING, CaRole.OPERATORS}):
        is_operators = ca.role is CaRole.OPERATORS
        publication = publication_of_operators(settings) if is_operators else publication_of(settings, ca.tenant)
        if publication is not None:
            yield from _of_publication(ca.certificate, publication)
            if settings.crl_delta:
                name = ca_name(identifier_of(ca.certificate))
                delta, full = publication.url + delta_crl_path(name), publication.url + full_crl_path(name)
                yield PublishedUrl("delta", delta, ca.certificate, SERIAL_UNKNOWN, full)


def _of_publication(issuer: x509.Certificate, publication: Publication) -> Iterator[PublishedUrl]:
    points = DistributionPoints(identifier_of(issuer), publication)
    for shard in range(publication.shards):
        named = points.extensions(serial_in(shard, publication.shards))
        yield from named_in((x509.Extension(each.oid, False, each) for each in named), issuer, SERIAL_UNKNOWN)


def named_in(
    extensions: Iterable[x509.Extension[x509.ExtensionType]], issuer: x509.Certificate, serial: int
) -> Iterator[PublishedUrl]:
    """What a certificate with these extensions names."""
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
        is_large = isinstance(error, TooLarge) and published.kind in ("crl", "delta")
        return CheckResult(published, "unreachable", reason=str(text), is_large=is_large)
    return CheckResult(published, "ok", until)


def lacks_revocations(found: CheckResult, lacking: Mapping[bytes, int]) -> CheckResult:
    """`found`, which is late if it is a CRL of one of the CAs that are `lacking`: their key identifiers, and how many
    revocations wait for longer than they may.
    """
    count = lacking.get(identifier_of(found.published.issuer), 0)
    if not count or found.published.kind not in ("crl", "delta") or found.state != "ok":
        return found
    reason = f"{count} revocation{' has' if count == 1 else 's have'} waited for it longer than crl.max_delay allows"
    return replace(found, state="late", reason=reason)


def _check_crl(published: PublishedUrl, fetch: Fetch, now: datetime) -> datetime | None:
    crl = _signed_crl(published.url, published.issuer, fetch)
    names = _scope_of(crl)
    if names and published.url not in names:
        raise _Rejected("its issuing distribution point names another URL")
    return _must_be_fresh(crl.last_update_utc, crl.next_update_utc, now)


def _check_delta(published: PublishedUrl, fetch: Fetch, now: datetime) -> datetime | None:
    """RFC 5280, 5.2.4 and 6.3.3 (c)."""
    delta = _signed_crl(published.url, published.issuer, fetch)
    base = _signed_crl(published.base, published.issuer, fetch)
    since = [each.value.crl_number for each in delta.extensions if isinstance(each.value, x509.DeltaCRLIndicator)]
    numbers = [each.value.crl_number for each in base.extensions if isinstance(each.value, x509.CRLNumber)]
    if not since:
        raise _Rejected("it is no delta CRL")
    if not numbers or numbers[0] < since[0]:
        raise _Rejected(f"its base is CRL number {since[0]}, and the full CRL is older")
    if _scope_of(delta) != _scope_of(base):
        raise _Rejected("its issuing distribution point is another than that of the full CRL")
    return _must_be_fresh(delta.last_update_utc, delta.next_update_utc, now)


def _signed_crl(url: str, issuer: x509.Certificate, fetch: Fetch) -> x509.CertificateRevocationList:
    crl = x509.load_der_x509_crl(fetch(url, None))
    if not has_signed_crl(issuer, crl):
        raise _Rejected("it is not signed by the CA")
    return crl


def _scope_of(crl: x509.CertificateRevocationList) -> list[str]:
    """URLs in its issuing distribution point; none: it has no such."""
    scopes = (each.value for each in crl.extensions if isinstance(each.value, x509.IssuingDistributionPoint))
    return [str(name.value) for scope in scopes for name in scope.full_name or ()]


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
    "delta": _check_delta,
    "ocsp": _check_ocsp,
    "ca": _check_ca,
}
