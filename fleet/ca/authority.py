"""CA and server certificates of a fleet: root, issuing CA, operators' CA, server.

root CA (kept offline if you like)  ->  issuing CA (signs devices and stations)
                                    ->  and the server's certificate
operators' CA, self-signed         ->  people and programs that use the admin API
"""

import functools
import ipaddress
import re
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from fleet.ca.distribution import DistributionPoints, Publication
from fleet.ca.key_identifiers import extension_in, identifier_of, spki_sha256
from fleet.ca.keys import generate_key
from fleet.ca.profiles import END_ENTITY, SIGNS_CERTIFICATES, SIGNS_ONLY, key_identifier, new_serial
from fleet.domain.backdating import BACKDATED_CA
from fleet.domain.errors import Invalid

ROOT_LIFETIME = timedelta(days=20 * 365)
ISSUING_LIFETIME = timedelta(days=10 * 365)
OPERATORS_LIFETIME = timedelta(days=10 * 365)
SERVER_LIFETIME = timedelta(days=397)
RESPONDER_LIFETIME = timedelta(days=14)
"""Of a certificate that signs OCSP answers: nobody can revoke it (id-pkix-ocsp-nocheck), so it is short."""

COMMON_NAME_SIZE_MAX = 64  # X.520 ub-common-name
HOSTS_MAX = 100

_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)

Certified = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def create_root(name: str, now: datetime) -> Certified:
    """A self-signed root for the fleet called `name`, and its new key. Raises: Invalid (`bad-name`).

    Without a path length: after a rollover, certificates that link roots stand between it and an issuing CA, and Go,
    GnuTLS and Mbed TLS count them although they are self-issued (RFC 5280, 6.1.4 l). An issuing CA has path length 0.
    """
    return _self_signed(common_name(f"{name} Root CA"), now, ROOT_LIFETIME, path_length=None)


class NewRoot(Struct, frozen=True):
    """Successor of a root CA with its cross-certificates (RFC 4210, 4.4; RFC 7030, 4.1.3)."""

    certified: Certified
    """New with new: the new root itself."""
    new_with_old: x509.Certificate
    """For clients that trust the old root: a path to what the new one signs."""
    old_with_new: x509.Certificate
    """For clients that trust the new root: a path to what the old one signed."""


class ImportedRoot(Struct, frozen=True):
    """Successor of a root CA whose key is kept elsewhere, with as many of its cross-certificates as there are."""

    certificate: x509.Certificate
    new_with_old: x509.Certificate | None
    old_with_new: x509.Certificate | None


def succeed_root(old: x509.Certificate, old_key: ec.EllipticCurvePrivateKey, now: datetime) -> NewRoot:
    """A new key for the root `old`, under the same name: so the certificates that link them are self-issued.

    Raises: Invalid (`issuer-expired`).
    """
    new, key = _self_signed(old.subject, now, ROOT_LIFETIME, path_length=None)
    return NewRoot((new, key), *link_roots((old, old_key), (new, key), now))


def link_roots(old: Certified, new: Certified, now: datetime) -> tuple[x509.Certificate, x509.Certificate]:
    """NewWithOld and OldWithNew of two roots of one name. Raises: Invalid (`issuer-expired`)."""
    until = _within(old[0], now, ROOT_LIFETIME)
    between = functools.partial(
        _sign,
        validity=(max(until[0], new[0].not_valid_before_utc), until[1]),
        extensions=_authority_extensions(path_length=None),
    )
    parties = _Party.of(old[0]), _Party.of(new[0])
    return between(parties[1], parties[0], old[1]), between(parties[0], parties[1], new[1])


def create_issuing(
    name: str,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    generation: int = 1,
    publication: Publication | None = None,
) -> Certified:
    """An issuing CA for the fleet called `name`, signed by `root`, and its new key. Path length 0. It names where
    `root` publishes.

    From the second `generation` on, its name holds that number: CAs with keys of their own have names of their own.

    Raises: Invalid (`bad-name`).
    """
    key = generate_key()
    return certify_issuing(
        issuing_name(name, generation), key.public_key(), (root, root_key), ISSUING_LIFETIME, now, publication
    ), key


def issuing_name(fleet: str, generation: int, name: str = "") -> x509.Name:
    """`name`, or that of the `generation`th issuing CA of the fleet called `fleet`. Raises: Invalid (`bad-name`)."""
    return common_name(name or f"{fleet} Issuing CA" + (f" {generation}" if generation > 1 else ""))


def cross_certify(
    issuing: x509.Certificate, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """The issuing CA once more, signed by the former root `root`: for clients that trust that root alone.

    Raises: Invalid (`issuer-expired`).
    """
    return _issuing_below((root, root_key), _Party.of(issuing), ISSUING_LIFETIME, now)


def certify_root(
    other: x509.Certificate, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """The root `other`, of any name and kind of key, signed by `root`: for clients that trust `root` alone.

    Raises: Invalid (`issuer-expired`).
    """
    start, end = _within(root, now, ROOT_LIFETIME)
    return _sign(
        _Party.of(other),
        _Party.of(root),
        root_key,
        validity=(start, min(end, other.not_valid_after_utc)),
        extensions=_authority_extensions(
            other.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        ),
    )


def certify_issuing(
    name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    root: Certified,
    lifetime: timedelta,
    now: datetime,
    publication: Publication | None = None,
) -> x509.Certificate:
    """An issuing CA whose key is elsewhere, signed by `root`, path length 0; it names where `root` publishes.

    Raises: Invalid (`issuer-expired`).
    """
    return _issuing_below(root, _Party.new(name, public_key), lifetime, now, publication)


def _issuing_below(
    root: Certified, issuing: "_Party", lifetime: timedelta, now: datetime, publication: Publication | None = None
) -> x509.Certificate:
    certificate, key = root
    validity, extensions = _within(certificate, now, lifetime), _authority_extensions(path_length=0)
    points = _points(certificate, publication)
    return _sign(issuing, _Party.of(certificate), key, validity=validity, extensions=extensions, points=points)


def _points(issuer: x509.Certificate, publication: Publication | None) -> DistributionPoints | None:
    return DistributionPoints(identifier_of(issuer), publication) if publication is not None else None


def create_operators(name: str, now: datetime) -> Certified:
    """A self-signed CA for the operators of the fleet called `name`, and its new key. Path length 0.

    It chains to nothing that devices trust, and only the admin API trusts it.

    Raises: Invalid (`bad-name`).
    """
    return _self_signed(common_name(f"{name} Operators CA"), now, OPERATORS_LIFETIME, path_length=0)


def issue_server_certificate(
    issuing: x509.Certificate,
    issuing_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...],
    now: datetime,
    lifetime: timedelta = SERVER_LIFETIME,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Certified:
    """A server certificate for `hosts` (DNS names, IP addresses), and its key: `key`, or a new one.

    Raises: Invalid (`bad-host`).
    """
    key = key or generate_key()
    return renewed_server_certificate((issuing, issuing_key), hosts, key, now, lifetime=lifetime), key


def renewed_server_certificate(
    issuing: Certified,
    hosts: tuple[str, ...],
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    publication: Publication | None = None,
    lifetime: timedelta = SERVER_LIFETIME,
) -> x509.Certificate:
    """A server certificate for `hosts` and `key`, which names what `publication` says. Raises: Invalid (`bad-host`)."""
    validity = _within(issuing[0], now, lifetime)
    if not 1 <= len(hosts) <= HOSTS_MAX:
        raise Invalid("bad-host", f"A server certificate takes 1 to {HOSTS_MAX} hosts, not {len(hosts)}.")
    names = [_host_name(host) for host in dict.fromkeys(hosts)]
    # RFC 9525, 2: clients use the SAN alone. The CN is for people, when it fits.
    shown = next((host for host in hosts if len(host) <= COMMON_NAME_SIZE_MAX), "server")
    return _sign(
        _Party.new(common_name(shown), key.public_key()),
        _Party.of(issuing[0]),
        issuing[1],
        validity=validity,
        extensions=(
            (END_ENTITY, True),
            (SIGNS_ONLY, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName(names), False),
        ),
        points=_points(issuing[0], publication),
    )


def issue_responder_certificate(
    issuing: x509.Certificate, issuing_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.Certificate:
    """A delegated OCSP responder's certificate for `key` (RFC 6960, 4.2.2.2): it answers for `issuing`.

    Raises: Invalid: `bad-issuer`, the key is not that of `issuing`; `issuer-expired`.
    """
    if issuing.public_key() != issuing_key.public_key():
        raise Invalid("bad-issuer", "The issuing certificate and the issuing key do not belong together.")
    return _sign(
        _Party.new(common_name("OCSP Responder"), key),
        _Party.of(issuing),
        issuing_key,
        validity=_within(issuing, now, RESPONDER_LIFETIME),
        extensions=(
            (END_ENTITY, True),
            (SIGNS_ONLY, True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False),
            (x509.OCSPNoCheck(), False),
        ),
    )


def names_of_server(certificate: x509.Certificate) -> frozenset[str]:
    """Hosts in the SAN of a server certificate."""
    names = extension_in(certificate, x509.SubjectAlternativeName)
    return frozenset(str(name.value) for name in names or () if isinstance(name, x509.DNSName | x509.IPAddress))


def _self_signed(name: x509.Name, now: datetime, lifetime: timedelta, *, path_length: int | None) -> Certified:
    key = generate_key()
    itself = _Party.new(name, key.public_key())
    validity = now - BACKDATED_CA, now + lifetime
    return _sign(itself, itself, key, validity=validity, extensions=_authority_extensions(path_length)), key


def _authority_extensions(path_length: int | None) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return (x509.BasicConstraints(ca=True, path_length=path_length), True), (SIGNS_CERTIFICATES, True)


def _within(issuer: x509.Certificate, now: datetime, lifetime: timedelta) -> tuple[datetime, datetime]:
    start = max(now - BACKDATED_CA, issuer.not_valid_before_utc)
    end = min(now + lifetime, issuer.not_valid_after_utc)
    if not now < end:
        raise Invalid(
            "issuer-expired", f"{issuer.subject.rfc4514_string()} has expired; nothing can be issued below it."
        )
    return start, end


def common_name(text: str) -> x509.Name:
    """The name CN=`text`. Raises: Invalid (`bad-name`)."""
    if not text.isprintable() or not 1 <= len(text) <= COMMON_NAME_SIZE_MAX:
        raise Invalid("bad-name", f"{text[:80]!r} cannot be a certificate's name: 1 to 64 printable characters.")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # no address, so it must be a name
    if not _DNS_NAME.fullmatch(host):
        raise Invalid(
            "bad-host",
            f"{host[:80]!r} is neither a DNS name nor an IP address.",
            "Give the name without scheme and port; an international name in its xn-- form.",
        )
    return x509.DNSName(host)


class _Party(Struct, frozen=True):
    """Issuer or subject of a certificate."""

    name: x509.Name
    public_key: CertificatePublicKeyTypes
    identifier: bytes

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "_Party":
        # RFC 5280, 4.2.1.1: the AKI equals the SKI in the issuer's certificate.
        return cls(certificate.subject, certificate.public_key(), identifier_of(certificate))

    @classmethod
    def new(cls, name: x509.Name, key: ec.EllipticCurvePublicKey) -> "_Party":
        return cls(name, key, key_identifier(spki_sha256(key)))


def _sign(
    subject: _Party,
    issuer: _Party,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    validity: tuple[datetime, datetime],
    extensions: tuple[tuple[x509.ExtensionType, bool], ...],
    points: DistributionPoints | None = None,
) -> x509.Certificate:
    serial = new_serial(validity[0])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.name)
        .issuer_name(issuer.name)
        .public_key(subject.public_key)
        .serial_number(serial)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier(subject.identifier), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer.identifier, None, None), critical=False)
    )
    of_serial = points.extensions(serial) if points is not None else ()
    for extension, critical in (*extensions, *((each, False) for each in of_serial)):
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())
