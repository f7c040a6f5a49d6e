"""What a certificate must be before this device makes it its own: each rule alone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from device_agent.store.device_key import certificate_info
from fleet.est_client.certificate_checks import check_certificate, has_issued, is_root
from fleet.est_client.errors import EstBadAnswer
from tests.device_agent.fleet_parts import Authority
from tests.unknown_curve import with_unknown_curve

NOW = datetime.now(UTC)


def spki_der(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check(authority: Authority, certificate: x509.Certificate, **given: Any) -> tuple[x509.Certificate, ...]:
    facts: dict[str, Any] = {
        "spki_der": spki_der(certificate.public_key()),
        "device_id": "cam-7",
        "intermediates": [authority.root, authority.issuing],
        "anchors": [authority.root],
        "now": NOW,
    }
    return check_certificate(certificate, **(facts | given))


def test_a_good_one_and_its_chain(authority: Authority) -> None:
    certificate, _ = authority.issue("cam-7")
    assert check(authority, certificate) == (authority.issuing,)


def test_an_issuing_anchor_needs_no_chain(authority: Authority) -> None:
    certificate, _ = authority.issue("cam-7")
    assert check(authority, certificate, anchors=[authority.issuing], intermediates=[]) == ()


@pytest.mark.parametrize(
    ("issue", "given", "message"),
    [
        ({}, {"spki_der": spki_der(ec.generate_private_key(ec.SECP256R1()).public_key())}, "another key"),
        ({}, {"device_id": "cam-8"}, "common name"),
        ({}, {"intermediates": []}, "chain"),
        ({}, {"anchors": []}, "chain"),
        ({"usage": ExtendedKeyUsageOID.SERVER_AUTH}, {}, "TLS clients"),
        ({"ca": True}, {}, "CA's"),
        ({"begin": NOW - timedelta(days=1), "end": NOW - timedelta(seconds=1)}, {}, "expired"),
        ({}, {"now": NOW + timedelta(days=2)}, "expired"),
    ],
)
def test_each_rule(authority: Authority, issue: dict[str, Any], given: dict[str, Any], message: str) -> None:
    certificate, _ = authority.issue("cam-7", **issue)
    with pytest.raises(EstBadAnswer, match=message):
        check(authority, certificate, **given)


def test_a_stranger_with_the_same_names(authority: Authority, tmp_path: Path) -> None:
    twin = Authority(tmp_path, "test")
    certificate, _ = twin.issue("cam-7")
    with pytest.raises(EstBadAnswer, match="chain"):
        check(authority, certificate)


def test_a_leaf_is_no_issuer(authority: Authority, tmp_path: Path) -> None:
    leaf, key = authority.issue("cam-7")
    evil = Authority(tmp_path, "evil")
    evil.issuing, evil.issuing_key = leaf, key
    certificate, _ = evil.issue("cam-7")
    with pytest.raises(EstBadAnswer, match="chain"):
        check(authority, certificate, intermediates=[authority.issuing, leaf])


def test_a_clock_that_is_behind_condemns_nothing(authority: Authority) -> None:
    certificate, _ = authority.issue("cam-7")
    for now in (datetime(1970, 1, 1, tzinfo=UTC), NOW - timedelta(hours=1)):
        assert check(authority, certificate, now=now) == (authority.issuing,)


def test_the_facts(authority: Authority) -> None:
    certificate, _ = authority.issue("cam-7")
    info = certificate_info(certificate, "cam-7", NOW)
    assert int(info.serial, 16) == certificate.serial_number
    assert info.not_after == certificate.not_valid_after_utc
    assert info.obtained_at == NOW


def test_a_key_on_an_unknown_curve_signs_nothing_and_is_nobodys(authority: Authority) -> None:
    certificate, _ = authority.issue("cam-7")
    odd = with_unknown_curve(authority.root)
    assert not is_root(odd)
    assert not has_issued(odd, authority.issuing, NOW)
    assert check(authority, certificate, intermediates=[odd, authority.issuing]) == (authority.issuing,)
    with pytest.raises(EstBadAnswer, match="cannot be decoded"):
        check_certificate(
            with_unknown_curve(certificate),
            spki_der=b"",
            device_id="cam-7",
            intermediates=[],
            anchors=[authority.root],
            now=NOW,
        )
