"""Chains from an issued certificate to an anchor: how long, over which certificates, and what a CA must be."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.est_client import certificate_checks
from fleet.est_client.certificate_checks import (
    CHAIN_LENGTH_MAX,
    check_certificate,
    current_roots,
    find_chain,
    has_issued,
    is_root,
)
from fleet.est_client.errors import EstBadAnswer

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
CA = x509.BasicConstraints(True, None)


@dataclass(frozen=True)
class Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def name_of(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])


def issue(
    subject: x509.Name | str,
    issuer: Pair | None = None,
    *extensions: x509.ExtensionType,
    key: ec.EllipticCurvePrivateKey | None = None,
    begin: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
) -> Pair:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = name_of(subject) if isinstance(subject, str) else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


ROOT = issue("root", None, CA)


def chain_below_root(length: int) -> list[Pair]:
    pairs = [ROOT]
    for number in range(length):
        pairs.append(issue(f"ca {number}", pairs[-1], CA))
    return pairs[1:]


def certificates(pairs: Sequence[Pair]) -> list[x509.Certificate]:
    return [pair.certificate for pair in pairs]


def check(pair: Pair, **given: Any) -> tuple[x509.Certificate, ...]:
    facts: dict[str, Any] = {
        "spki_der": pair.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "device_id": "cam-7",
        "intermediates": [],
        "anchors": [ROOT.certificate],
        "now": NOW,
    }
    return check_certificate(pair.certificate, **(facts | given))


@pytest.mark.parametrize("length", range(CHAIN_LENGTH_MAX + 1))
def test_a_chain_of_any_allowed_length_in_any_order(length: int) -> None:
    between = chain_below_root(length)
    leaf = issue("cam-7", (between or [ROOT])[-1])
    expected = tuple(certificates(between[::-1]))
    for given in (between, between[::-1]):
        found = find_chain(leaf.certificate, certificates([*given, ROOT]), [ROOT.certificate], NOW)
        assert found == (expected, length < CHAIN_LENGTH_MAX)


def test_each_certificate_is_used_once() -> None:
    """Two CAs that certified each other are a circle, not a chain."""
    one, two = issue("one", None, CA), issue("two", None, CA)
    one_by_two, two_by_one = issue("one", two, CA, key=one.key), issue("two", one, CA, key=two.key)
    leaf = issue("cam-7", one)
    chain, anchored = find_chain(leaf.certificate, certificates([one_by_two, two_by_one]), [ROOT.certificate], NOW)
    assert (len(chain), anchored) == (2, False)


def test_the_work_grows_with_the_square_of_the_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like-named CAs with one key, some at each level: each signature is checked once at most."""
    like_named, above = 3, issue("level 5", None, CA)
    bundle: list[x509.Certificate] = []
    for level in range(4, -1, -1):
        each = [issue(f"level {level}", above, CA)]
        each += [issue(f"level {level}", above, CA, key=each[0].key) for _ in range(like_named - 1)]
        bundle, above = [*bundle, *certificates(each)], each[0]
    verified: Counter[tuple[x509.Certificate, x509.Certificate]] = Counter()

    def counted(issuer: x509.Certificate, certificate: x509.Certificate, now: datetime) -> bool:
        verified[issuer, certificate] += 1
        return has_issued(issuer, certificate, now)

    monkeypatch.setattr(certificate_checks, "has_issued", counted)
    find_chain(issue("cam-7", above).certificate, bundle, [ROOT.certificate], NOW)
    assert max(verified.values()) == 1


def test_a_new_root_that_the_old_one_certified_leads_to_the_old_one() -> None:
    """RFC 4210, 4.4: NewWithOld. The new root itself, in the same bundle, leads nowhere."""
    new = issue("new root", None, CA)
    new_with_old = issue("new root", ROOT, CA, key=new.key)
    leaf = issue("cam-7", new)
    bundle = certificates([new, new_with_old])
    assert check(leaf, intermediates=bundle) == (new_with_old.certificate,)
    assert [is_root(each) for each in bundle] == [True, False]


@pytest.mark.parametrize(
    ("extensions", "given", "fine"),
    [
        ((CA,), {}, True),
        ((), {}, False),
        ((x509.BasicConstraints(False, None),), {}, False),
        ((CA,), {"begin": NOW - 2 * DAY, "end": NOW}, False),
        ((CA,), {"begin": NOW - 2 * DAY, "end": NOW + timedelta(seconds=1)}, True),
    ],
)
def test_an_issuer_is_a_ca_that_has_not_expired(
    extensions: tuple[x509.ExtensionType, ...], given: dict[str, Any], *, fine: bool
) -> None:
    issuer = issue("issuer", ROOT, *extensions, **given)
    leaf = issue("cam-7", issuer)
    assert has_issued(issuer.certificate, leaf.certificate, NOW) is fine
    if fine:
        assert check(leaf, intermediates=[issuer.certificate]) == (issuer.certificate,)
    else:
        with pytest.raises(EstBadAnswer, match="chain"):
            check(leaf, intermediates=[issuer.certificate])


def test_a_name_is_no_signature() -> None:
    twin = issue("root", None, CA)
    leaf = issue("cam-7", twin)
    assert not has_issued(ROOT.certificate, leaf.certificate, NOW)
    assert not has_issued(issue("other", None, CA, key=twin.key).certificate, leaf.certificate, NOW)
    assert has_issued(twin.certificate, leaf.certificate, NOW)


def test_a_certificate_without_extensions_may_be_used_by_a_client() -> None:
    assert check(issue("cam-7", ROOT)) == ()
    assert check(issue("cam-7", ROOT, x509.BasicConstraints(False, None))) == ()
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    assert check(issue("cam-7", ROOT, both)) == ()


@pytest.mark.parametrize("names", [(), ("cam-8",), ("cam-7", "cam-7"), ("cam-7", "cam-8"), ("CAM-7",)])
def test_the_one_common_name_is_the_device_id(names: tuple[str, ...]) -> None:
    with pytest.raises(EstBadAnswer, match="common name"):
        check(issue(name_of(*names), ROOT))


def test_a_field_that_cannot_be_decoded_is_a_bad_answer() -> None:
    broken = x509.UnrecognizedExtension(ExtendedKeyUsageOID.CLIENT_AUTH, b"")
    usage = x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\x30\x03\x02\x01\x05")
    assert check(issue("cam-7", ROOT, broken)) == ()  # an extension that is not ours to judge
    with pytest.raises(EstBadAnswer, match="cannot be decoded"):
        check(issue("cam-7", ROOT, usage))


def test_the_last_second_of_a_certificate() -> None:
    leaf = issue("cam-7", ROOT, end=NOW + timedelta(seconds=1))
    assert check(leaf) == ()
    with pytest.raises(EstBadAnswer, match="expired"):
        check(leaf, now=NOW + timedelta(seconds=1))


def test_a_certificate_that_is_never_valid() -> None:
    """By a clock that is not set nothing has expired: a lifetime of nothing is refused all the same."""
    instant = issue("cam-7", ROOT, begin=NOW, end=NOW)
    with pytest.raises(EstBadAnswer, match="expired"):
        check(instant, now=NOW - DAY)


def test_of_roots_that_were_rolled_over_the_newest_is_current() -> None:
    old, other = issue("root", None, CA, begin=NOW - 3 * DAY), issue("another", None, CA)
    new = issue("root", None, CA)
    link, issuing = issue("root", old, CA, key=new.key), issue("issuing", new, CA)
    bundle = certificates([old, new, link, other, issuing])
    assert current_roots(bundle) == (new.certificate, other.certificate)
    assert current_roots(bundle[::-1]) == (other.certificate, new.certificate)
    assert current_roots([]) == ()
