"""A delegated OCSP responder, judged by the library, by openssl and by pkilint."""

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from pkilint import loader, pkix
from pkilint.pkix import extension, name
from pkilint.pkix import ocsp as pkilint_ocsp
from pkilint.validation import ValidationFindingSeverity

from fleet.ca.authority import RESPONDER_LIFETIME, Certified, create_issuing, issue_responder_certificate
from fleet.ca.issuer import LocalIssuer
from fleet.ca.keys import generate_key
from fleet.ca.ocsp import RENEW_BEFORE, Responder, issuer_ids
from fleet.domain.enrollment import IssuePermit
from fleet.domain.errors import Invalid
from fleet.wire.ocsp import CertId, Revoked, SingleResponse, Unrevoked, read_request
from tests.waiting import PATIENCE_SECONDS

HOUR = timedelta(hours=1)
STATES: dict[str, Revoked | Unrevoked] = {
    "good": Unrevoked.GOOD,
    "unknown": Unrevoked.UNKNOWN,
    "keyCompromise": Revoked(datetime.fromisoformat("2026-02-28T00:00:00Z"), 1),
    "certificateHold": Revoked(datetime.fromisoformat("2026-02-28T00:00:00Z"), 6),
    "no reason": Revoked(datetime.fromisoformat("2026-02-28T00:00:00Z")),
}


@pytest.fixture
def responder(issuing: Certified, now: datetime) -> Responder:
    key = generate_key()
    return Responder(issuing[0], issue_responder_certificate(*issuing, key.public_key(), now), key)


@pytest.fixture
def device(issuer: LocalIssuer, permit: IssuePermit, now: datetime) -> x509.Certificate:
    return x509.load_der_x509_certificate(issuer.issue(permit, now).der)


def asked(certificate: x509.Certificate, ca: x509.Certificate) -> CertId:
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, ca, hashes.SHA1())  # noqa: S303
    return read_request(builder.build().public_bytes(Encoding.DER)).certificates[0]


def test_the_delegated_certificate(issuing: Certified, now: datetime) -> None:
    key = generate_key()
    made = issue_responder_certificate(*issuing, key.public_key(), now)
    made.verify_directly_issued_by(issuing[0])
    extensions = made.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.not_valid_after_utc == now.replace(microsecond=0) + RESPONDER_LIFETIME
    assert Responder(issuing[0], made, key).renew_at == made.not_valid_after_utc - RENEW_BEFORE
    with pytest.raises(Invalid, match="belong together"):
        issue_responder_certificate(issuing[0], generate_key(), key.public_key(), now)
    with pytest.raises(Invalid, match="has expired"):
        issue_responder_certificate(*issuing, key.public_key(), now + timedelta(days=4000))


def test_a_ca_is_found_by_each_hash_and_knows_what_it_has_issued(
    root: Certified, issuing: Certified, device: x509.Certificate, responder: Responder, now: datetime
) -> None:
    assert asked(device, issuing[0]).issuer in issuer_ids(issuing[0])
    assert len(issuer_ids(issuing[0])) == 4
    assert not issuer_ids(issuing[0]) & issuer_ids(root[0])
    assert responder.has_issued(device.public_bytes(Encoding.DER))
    assert not responder.has_issued(issuing[0].public_bytes(Encoding.DER))
    assert not responder.has_issued(b"\x30\x00")
    namesake = create_issuing("Acme", *root, now)  # of the same name, with another key
    other = Responder(
        namesake[0], issue_responder_certificate(*namesake, generate_key().public_key(), now), namesake[1]
    )
    assert not other.has_issued(device.public_bytes(Encoding.DER))


def test_answers_verify_and_say_what_they_are_to(
    issuing: Certified, device: x509.Certificate, responder: Responder, now: datetime
) -> None:
    certificate = asked(device, issuing[0])
    for status in STATES.values():
        single = SingleResponse(certificate, status, now, now + HOUR)
        found = ocsp.load_der_ocsp_response(responder.sign([single], now, b"n" * 32))
        [delegated] = found.certificates
        public = delegated.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(found.signature, found.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
        delegated.verify_directly_issued_by(issuing[0])
        assert found.serial_number == device.serial_number
        assert found.produced_at_utc == now.replace(microsecond=0)
        assert found.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32


def test_openssl_takes_the_answers(
    root: Certified, issuing: Certified, device: x509.Certificate, responder: Responder, now: datetime, tmp_path: Path
) -> None:
    certificate = asked(device, issuing[0])
    files = {"root": root[0], "issuing": issuing[0], "device": device}
    for stem, each in files.items():
        (tmp_path / f"{stem}.pem").write_bytes(each.public_bytes(Encoding.PEM))
    for text, status in STATES.items():
        answer = responder.sign([SingleResponse(certificate, status, now, now + HOUR)], now, b"n" * 32)
        (tmp_path / "answer").write_bytes(answer)
        signed_by = ("-CAfile", "root.pem", "-issuer", "issuing.pem", "-cert", "device.pem", "-no_nonce")
        when = ("-attime", str(int(now.timestamp())), "-validity_period", "2000000000")
        done = subprocess.run(
            ["openssl", "ocsp", "-respin", "answer", *signed_by, *when],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert "Response verify OK" in done.stderr, done.stderr
        first, *rest = done.stdout.splitlines()
        assert first == f"device.pem: {text if text in ('good', 'unknown') else 'revoked'}"
        assert ("Reason" in done.stdout) == (text in ("keyCompromise", "certificateHold")), rest


def test_pkilint_finds_no_error(
    issuing: Certified, device: x509.Certificate, responder: Responder, now: datetime
) -> None:
    judge = pkilint_ocsp.create_pkix_ocsp_response_validator_container(
        [
            pkilint_ocsp.create_response_decoder(),
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [],
    )
    severe = (ValidationFindingSeverity.ERROR, ValidationFindingSeverity.FATAL)
    certificate = asked(device, issuing[0])
    judged = 0
    for status in STATES.values():
        for nonce in (None, b"n", b"n" * 32, b"n" * 128):
            answer = responder.sign([SingleResponse(certificate, status, now, now + HOUR)] * 2, now, nonce)
            document = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(answer, "answer")
            found = [f for result in judge.validate(document.root) for f in result.finding_descriptions]
            assert [f for f in found if f.finding.severity in severe] == []
            judged += 1
    print(f"\npkilint: {judged} OCSP answers, 0 errors")
    assert judged == 20
