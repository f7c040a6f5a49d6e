"""Which certificates a distrust covers: by the certificate of every key type, and of any CA."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.device import KEY_TYPES
from fleet.domain.distrust import KEY_MARKS, Distrust, must_be_trusted, refusing, rule_of, rule_text
from fleet.domain.errors import Refused
from fleet.domain.renewal import INSTANT, Window, suggested_window
from tests.ca.certificate_kinds import every_kind
from tests.storage.samples import NOW, credential

SECOND = timedelta(seconds=1)
RULE = Distrust("0" * 12, NOW, NOW, model="cam")
ISSUED = replace(credential("cam-1"), issued_at=NOW - SECOND)


def test_every_term_must_hold() -> None:
    rule = replace(RULE, issuer_key_id=b"k" * 20, key_type="Ed25519", issued_from=NOW - SECOND)
    der = b"-" + rule.issuer_mark + b"-" + KEY_MARKS["Ed25519"] + b"-"
    held = replace(ISSUED, der=der)
    assert rule.covers("cam", held)
    assert not rule.covers("pump", held)
    for other in (
        replace(held, der=der.replace(b"k" * 20, b"k" * 19 + b"l")),
        replace(held, der=der.replace(KEY_MARKS["Ed25519"], KEY_MARKS["EC-P256"])),
        replace(held, issued_at=NOW),
        replace(held, issued_at=NOW - SECOND - timedelta(microseconds=1)),
        replace(held, kind=CredentialKind.STATION),
    ):
        assert not rule.covers("cam", other)
    assert Distrust("0" * 12, NOW, NOW).covers("pump", ISSUED)


def test_a_rule_refuses_unless_it_only_asks_to_renew_and_a_renewal_if_it_says_so() -> None:
    none, asks = replace(RULE, may_renew=False), replace(RULE, refuses=False)
    assert refusing([asks, RULE], "cam", ISSUED) is RULE
    assert refusing([asks], "cam", ISSUED) is None
    assert refusing([RULE, asks], "cam", ISSUED, renews=True) is None
    assert refusing([RULE, none], "cam", ISSUED, renews=True) is none
    for rule, renews in ((RULE, False), (none, True)):
        with pytest.raises(Refused) as caught:
            must_be_trusted([rule], "cam", ISSUED, renews=renews)
        assert caught.value.code == "certificate-distrusted"
    must_be_trusted([], "cam", ISSUED)


def test_the_marks_are_those_of_the_key_types_that_models_allow() -> None:
    assert {name: mark.hex() for name, mark in KEY_MARKS.items()} == {
        "EC-P256": "301306072a8648ce3d020106082a8648ce3d03010703",
        "EC-P384": "301006072a8648ce3d020106052b8104002203",
        "RSA-2048+": "300d06092a864886f70d010101050003",
        "Ed25519": "300506032b6570032100",
        "ML-DSA-44": "300b06096086480165030403110382052100",
        "ML-DSA-65": "300b0609608648016503040312038207a100",
    }


def test_a_rule_of_an_older_version_is_read_again() -> None:
    text = rule_text(replace(RULE, issuer_key_id=b"k" * 20))
    assert '"authority":' in text
    assert rule_of(RULE.id, text).issuer_key_id == b"k" * 20


@pytest.fixture(scope="module")
def certificates() -> dict[str, bytes]:
    usual = "device, usual, "
    made = [(name, each) for name, each in every_kind(datetime.now(UTC)) if name.startswith(usual)]
    return {name.removeprefix(usual): each.public_bytes(Encoding.DER) for name, each in made}


def test_a_certificate_has_the_mark_of_its_own_key_and_no_other(certificates: dict[str, bytes]) -> None:
    assert set(certificates) == set(KEY_TYPES)
    for name, der in certificates.items():
        held = replace(ISSUED, der=der)
        found = [each for each in KEY_TYPES if replace(RULE, key_type=each).covers("cam", held)]
        assert found == [name]


def test_a_certificate_has_the_mark_of_the_ca_that_signed_it(certificates: dict[str, bytes]) -> None:
    for der in certificates.values():
        extensions = x509.load_der_x509_certificate(der).extensions
        key_id = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert key_id is not None
        held = replace(ISSUED, der=der)
        assert replace(RULE, issuer_key_id=key_id).covers("cam", held)
        assert not replace(RULE, issuer_key_id=own).covers("cam", held)


def test_its_event_says_what_it_is_cut_anywhere() -> None:
    rule = replace(
        RULE,
        id="91ab0c2d77de",
        issuer_key_id=bytes(range(20)),
        key_type="RSA-2048+",
        issued_from=NOW - timedelta(days=1),
        refuses=False,
        may_renew=False,
        spread=timedelta(hours=1),
        matched=7,
    )
    text = rule_text(replace(rule, created_by="operator bob", reason="secret reasons"))
    assert "bob" not in text
    assert "reasons" not in text
    assert rule_of(rule.id, text) == rule
    for size in range(len(text)):
        with pytest.raises(ValueError):
            rule_of(rule.id, text[:size])
    for id_, given in (
        ("0" * 12, text),
        (rule.id, text.replace("RSA-2048+", "RSA-1024")),
        (rule.id, text.replace('"matched"', '"noticed"')),
        (rule.id, "\ud800"),
        (rule.id, "[]"),
    ):
        with pytest.raises(ValueError):
            rule_of(id_, given)


def test_renewal_is_suggested_from_now_on() -> None:
    held: Credential = credential("cam-1")
    usual = suggested_window(held, None)
    rule = replace(RULE, spread=timedelta(hours=1))
    assert suggested_window(held, None, [rule]) == Window(NOW, NOW + timedelta(hours=1))
    assert suggested_window(held, None, [replace(RULE, spread=timedelta(0))]) == Window(NOW, NOW + INSTANT)
    late = replace(rule, created_at=usual.start + SECOND)
    assert suggested_window(held, None, [late]) == usual
