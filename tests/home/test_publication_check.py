"""What `fleet ca check` says of what it fetches: right, stale, wrong, unreachable."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fleet.ca.authority import Certified, create_issuing, create_root, issue_responder_certificate
from fleet.ca.crl import LocalCrlSigner
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import generate_key
from fleet.domain.crl import CrlForm
from fleet.home.publication_check import (
    SERIAL_UNKNOWN,
    CheckResult,
    PublishedUrl,
    _issuer_hashes,
    check_url,
    lacks_revocations,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROOT = create_root("Acme", NOW)
CA = create_issuing("Acme", *ROOT, NOW)
OTHER = create_issuing("Acme", *ROOT, NOW)  # of the same name
URL = "http://pki.example.com/x"


def found(kind: str, data: bytes | OSError, *, serial: int = SERIAL_UNKNOWN) -> CheckResult:
    def fetch(url: str, body: bytes | None) -> bytes:
        assert url == URL
        assert (body is not None) == (kind == "ocsp")
        if isinstance(data, OSError):
            raise data
        return data

    return check_url(PublishedUrl(kind, URL, CA[0], serial), fetch, NOW)


def crl(signer: Certified = CA, *, days: int = 7, at: datetime = NOW, url: str = "") -> bytes:
    if not url:
        form = CrlForm(1, at - timedelta(minutes=5), at + days * DAY)
        return LocalCrlSigner(*signer).sign(form, [])
    scope = x509.IssuingDistributionPoint([x509.UniformResourceIdentifier(url)], None, False, False, None, False, False)
    builder = x509.CertificateRevocationListBuilder().issuer_name(signer[0].subject).last_update(at)
    builder = builder.next_update(at + DAY).add_extension(scope, critical=True)
    return builder.sign(signer[1], hashes.SHA256()).public_bytes(Encoding.DER)


def answer(
    issuer: Certified = CA,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    at: datetime = NOW,
    delegated: bool = True,
    serial: int = SERIAL_UNKNOWN,
    signer: Certified | None = None,
) -> bytes:
    key = generate_key()
    responder = issue_responder_certificate(issuer[0], issuer[1], key.public_key(), NOW)
    if signer is not None:
        responder, key = signer
    revoked = at if status is ocsp.OCSPCertStatus.REVOKED else None
    name, issuer_key = _issuer_hashes(CA[0])
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        name,
        issuer_key,
        serial,
        hashes.SHA1(),  # noqa: S303  RFC 5019
        status,
        at - DAY,
        at + DAY,
        revoked,
        None,
    )
    if delegated:
        builder = builder.certificates([responder])
    made = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


Given = Callable[[], bytes | OSError]
CASES: dict[str, tuple[str, Given, str, str]] = {
    "crl": ("crl", crl, "ok", ""),
    "crl of this URL": ("crl", lambda: crl(url=URL), "ok", ""),
    "crl of another URL": ("crl", lambda: crl(url=URL + "y"), "wrong", "names another URL"),
    "crl, stale": ("crl", lambda: crl(days=1, at=NOW - 2 * DAY), "stale", "its nextUpdate was 2026-04-30"),
    "crl, ahead": ("crl", lambda: crl(at=NOW + 9 * DAY), "wrong", "lies ahead"),
    "crl of another key": ("crl", lambda: crl(OTHER), "wrong", "not signed by the CA"),
    "crl, none": ("crl", lambda: b"<html>", "wrong", "cannot be read"),
    "crl, away": ("crl", lambda: OSError(None, "HTTP 404"), "unreachable", "HTTP 404"),
    "ca": ("ca", lambda: CA[0].public_bytes(Encoding.DER), "ok", ""),
    "ca of another key": ("ca", lambda: OTHER[0].public_bytes(Encoding.DER), "wrong", "another CA"),
    "ca in PEM": ("ca", lambda: CA[0].public_bytes(Encoding.PEM), "wrong", "cannot be read"),
    "ocsp": ("ocsp", answer, "ok", ""),
    "ocsp, unknown": ("ocsp", lambda: answer(status=ocsp.OCSPCertStatus.UNKNOWN), "ok", ""),
    "ocsp, stale": ("ocsp", lambda: answer(at=NOW - 3 * DAY), "stale", "its nextUpdate was"),
    "ocsp by the CA": ("ocsp", lambda: answer(signer=CA, delegated=False), "ok", ""),
    "ocsp by another": ("ocsp", lambda: answer(OTHER), "wrong", "not delegated"),
    "ocsp by a CA below": ("ocsp", lambda: answer(signer=OTHER), "wrong", "cannot be read"),
    "ocsp, forged": ("ocsp", lambda: answer()[:-400] + b"x" + answer()[-399:], "wrong", ""),
    "ocsp of another": ("ocsp", lambda: answer(serial=7), "wrong", "another certificate"),
    "ocsp, busy": (
        "ocsp",
        lambda: ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
            Encoding.DER
        ),
        "wrong",
        "try_later",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_is_judged_as_a_relying_party_does(case: str) -> None:
    kind, make, state, reason = CASES[case]
    result = found(kind, make())
    assert (result.state, reason in result.reason) == (state, True), result.reason


def delta(number: int, base: int, *, url: str = URL, signer: Certified = CA, days: int = 7) -> bytes:
    return LocalCrlSigner(*signer).sign(CrlForm(number, NOW - DAY, NOW + (days - 1) * DAY, url, base), [])


@pytest.mark.parametrize(
    ("of_delta", "of_base", "reason"),
    [
        (delta(9, 5), delta(7, 0), ""),
        (delta(9, 5), delta(5, 0), ""),
        (delta(9, 5), delta(4, 0), "the full CRL is older"),
        (delta(9, 0), delta(7, 0), "it is no delta CRL"),
        (delta(9, 5, url=URL + "y"), delta(7, 0), "another than that of the full CRL"),
        (delta(9, 5, signer=OTHER), delta(7, 0), "not signed by the CA"),
        (delta(9, 5), delta(7, 0, signer=OTHER), "not signed by the CA"),
        (delta(9, 5, days=1), delta(7, 0), "its nextUpdate was"),
        (b"<html>", delta(7, 0), "cannot be read"),
    ],
)
def test_a_delta_crl_belongs_to_its_base(of_delta: bytes, of_base: bytes, reason: str) -> None:
    files = {URL + "/delta": of_delta, URL: of_base}
    published = PublishedUrl("delta", URL + "/delta", CA[0], SERIAL_UNKNOWN, URL)
    result = check_url(published, lambda url, _: files[url], NOW)
    assert (result.reason, result.state) == ("", "ok") if not reason else reason in result.reason


def test_a_certificate_that_is_in_use_has_to_be_good() -> None:
    assert found("ocsp", answer(serial=9), serial=9).state == "ok"
    for status in (ocsp.OCSPCertStatus.UNKNOWN, ocsp.OCSPCertStatus.REVOKED):
        result = found("ocsp", answer(serial=9, status=status), serial=9)
        assert result.reason == f"it says that certificate 9 is {status.name.lower()}"


@pytest.mark.parametrize(("kind", "make"), [("crl", crl), ("ocsp", answer), ("ca", CASES["ca"][1])])
def test_what_is_cut_anywhere_is_wrong(kind: str, make: Callable[[], bytes]) -> None:
    data = make()
    for cut in range(0, len(data), 3):
        assert found(kind, data[:cut]).state == "wrong"


def test_a_crl_that_lacks_revocations_too_long_is_late() -> None:
    issuer = identifier_of(CA[0])
    for kind, state in (("crl", "late"), ("delta", "late"), ("ca", "ok"), ("ocsp", "ok")):
        whole = CheckResult(PublishedUrl(kind, URL, CA[0], 1), "ok")
        result = lacks_revocations(whole, {issuer: 2})
        assert (result.state, "2 revocations have waited" in result.reason) == (state, state == "late")
        assert lacks_revocations(whole, {b"another": 2}) == whole
    stale = CheckResult(PublishedUrl("crl", URL, CA[0], 1), "stale")
    assert lacks_revocations(stale, {issuer: 2}) == stale
