from datetime import datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ca.authority import Certified, create_issuing, create_root, issue_server_certificate
from fleet.ca.chain import checked_chain
from fleet.domain.errors import Invalid
from tests.unknown_curve import with_unknown_curve


def test_root_and_issuing_are_authorities_and_nothing_else(root: Certified, issuing: Certified) -> None:
    for (certificate, _), path_length in ((root, None), (issuing, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, path_length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature
        assert len(certificate.extensions) == 4


def test_each_names_the_key_above_it(root: Certified, issuing: Certified, now: datetime) -> None:
    server = issue_server_certificate(*issuing, ("localhost",), now)
    for (below, _), (above, _) in ((root, root), (issuing, root), (server, issuing)):
        below.verify_directly_issued_by(above)
        authority = below.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert (
            authority.key_identifier == above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        )


def test_nothing_outlives_what_signed_it(now: datetime) -> None:
    root = create_root("Old", now - timedelta(days=19 * 365))
    issuing = create_issuing("Old", *root, now)
    server = issue_server_certificate(*issuing, ("localhost",), now, lifetime=timedelta(days=3650))
    assert server[0].not_valid_after_utc == issuing[0].not_valid_after_utc == root[0].not_valid_after_utc
    with pytest.raises(Invalid) as refused:
        create_issuing("Old", *root, now + timedelta(days=2 * 365))
    assert refused.value.code == "issuer-expired"


def test_a_clock_that_is_hours_late_accepts_them(root: Certified, issuing: Certified, now: datetime) -> None:
    server, _ = issue_server_certificate(*issuing, ("fleet.example",), now)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([root[0]]))
        .time(now - timedelta(hours=23))
        .build_server_verifier(x509.DNSName("fleet.example"))
    )
    assert verifier.verify(server, [issuing[0]]) == [server, issuing[0], root[0]]


def test_a_server_answers_to_its_hosts_and_is_no_client(issuing: Certified, now: datetime) -> None:
    hosts = ("localhost", "127.0.0.1", "::1", "*.fleet.example", "localhost")
    server, key = issue_server_certificate(*issuing, hosts, now)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "*.fleet.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert server.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "localhost"
    assert server.public_key() == key.public_key()


def test_a_host_too_long_for_a_common_name_still_stands_in_the_san(issuing: Certified, now: datetime) -> None:
    host = ".".join(["a" * 40, "b" * 40, "example"])
    server, _ = issue_server_certificate(*issuing, (host,), now)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [host]


@pytest.mark.parametrize(
    "host", ["", "https://x", "x:8443", "a b", "-a", "a..b", "a\0b", "*", "a.*.b", "ü.example", "x" * 64, "x/y", "a\n"]
)
def test_whatever_is_no_host_is_refused(issuing: Certified, now: datetime, host: str) -> None:
    with pytest.raises(Invalid) as refused:
        issue_server_certificate(*issuing, (host,), now)
    assert refused.value.code == "bad-host"


@pytest.mark.parametrize("hosts", [(), tuple(f"h{n}" for n in range(101))])
def test_the_number_of_hosts_is_bounded(issuing: Certified, now: datetime, hosts: tuple[str, ...]) -> None:
    with pytest.raises(Invalid):
        issue_server_certificate(*issuing, hosts, now)


@pytest.mark.parametrize("name", ["x" * 60, "a\0b", "line\nline"])
def test_a_name_that_cannot_stand_in_a_subject_is_refused(now: datetime, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        create_root(name, now)
    assert refused.value.code == "bad-name"


def test_a_chain_beside_a_ca_whose_curve_is_unknown(root: Certified, issuing: Certified, now: datetime) -> None:
    given = [with_unknown_curve(root[0]), root[0], issuing[0]]
    assert checked_chain(given, issuing[1].public_key(), [], now) == (issuing[0], root[0])
    with pytest.raises(Invalid):
        checked_chain([given[0], issuing[0]], issuing[1].public_key(), [], now)
