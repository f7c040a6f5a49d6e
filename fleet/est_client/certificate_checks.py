"""Checks on an issued certificate before it is used: small named checks, run from a tuple.

Needs `cryptography`, so only short-lived processes import this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.est_client.errors import EstBadAnswer
from fleet.est_client.validity import Lifetime, has_expired
from fleet.wire.spki import spki_of

CHAIN_LENGTH_MAX = 5  # root, policy, issuing: three are common


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and what it is checked against."""

    certificate: x509.Certificate
    spki_der: bytes
    """SubjectPublicKeyInfo of the device's key."""
    device_id: str
    chain: tuple[x509.Certificate, ...]
    """From its issuer to below the anchor; see `find_chain`."""
    anchored: bool
    now: datetime


def key_is_ours(issued: Issued) -> None:
    spki_der = spki_of(issued.certificate.public_key())
    if spki_der != issued.spki_der:
        raise EstBadAnswer("The certificate is for another key than this device's.")


def name_is_ours(issued: Issued) -> None:
    names = [str(name.value) for name in issued.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [issued.device_id]:
        raise EstBadAnswer(
            f"The certificate's common name is not {issued.device_id}.",
            "Check the configured device id, and the token.",
        )


def chain_ends_at_anchor(issued: Issued) -> None:
    if not issued.anchored:
        raise EstBadAnswer(
            "The certificate does not chain to this device's CA file.",
            "Check that the CA file belongs to the fleet of this EST server; for a tenant with its own root, "
            "it holds that root too: fleet ca export --tenant NAME",
        )


def is_for_clients(issued: Issued) -> None:
    try:
        usage = issued.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # RFC 5280, 4.2.1.12: without the extension every use is allowed
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise EstBadAnswer("The certificate is not valid for TLS clients.")


def is_no_authority(issued: Issued) -> None:
    try:
        is_ca = issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return
    if is_ca:
        raise EstBadAnswer("The certificate is a CA's, not a device's.")


def is_valid_now(issued: Issued) -> None:
    lifetime = lifetime_of(issued.certificate)
    if lifetime.length.total_seconds() <= 0 or has_expired(lifetime, issued.now):
        raise EstBadAnswer(
            f"The certificate expired at {lifetime.not_after:%Y-%m-%d %H:%M:%S} UTC.",
            "Renew it, or enroll with a new token. Check this device's clock.",
        )


CHECKS: tuple[Callable[[Issued], None], ...] = (
    key_is_ours,
    name_is_ours,
    chain_ends_at_anchor,
    is_for_clients,
    is_no_authority,
    is_valid_now,
)


def check_certificate(
    certificate: x509.Certificate,
    *,
    spki_der: bytes,
    device_id: str,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """The chain to present with `certificate`: from its issuer up to the anchor, which is left out.

    `spki_der` is the expected public key, a DER SubjectPublicKeyInfo.

    Raises: EstBadAnswer for the first of CHECKS that fails.
    """
    chain, anchored = find_chain(certificate, intermediates, anchors, now)
    issued = Issued(certificate, spki_der, device_id, chain, anchored, now)
    try:
        for check in CHECKS:
            check(issued)
    except (ValueError, UnsupportedAlgorithm) as error:  # a key, an extension or a name cannot be decoded
        raise EstBadAnswer("The certificate has a field that cannot be decoded.") from error
    return chain


def check_has_begun(certificate: x509.Certificate, by: datetime) -> None:
    """Not among CHECKS: it takes a clock that is known to be set. Raises: EstBadAnswer if it begins later."""
    begin = certificate.not_valid_before_utc
    if begin > by:
        raise EstBadAnswer(
            f"The certificate begins in the future, at {begin:%Y-%m-%d %H:%M:%S} UTC.",
            "Check the clocks of this device and of the server.",
        )


def find_chain(
    certificate: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[tuple[x509.Certificate, ...], bool]:
    """The intermediates between `certificate` and one of `anchors`, and whether an anchor was reached.

    The shortest chain, since a CA may have been certified by several roots.
    """
    # A self-signed root ends the path. Another certificate of its name may not: NewWithOld (RFC 4210, 4.4).
    left = [each for each in intermediates if not is_root(each)]
    paths: list[tuple[x509.Certificate, ...]] = [(certificate,)]
    for _ in range(CHAIN_LENGTH_MAX):
        for path in paths:
            if any(has_issued(anchor, path[-1], now) for anchor in anchors):
                return path[1:], True
        longer: list[tuple[x509.Certificate, ...]] = []
        for path in paths:
            # Each certificate ends one path: with like-named ones, the number of paths would grow with each level.
            issuers = [issuer for issuer in left if has_issued(issuer, path[-1], now)]
            longer += [(*path, issuer) for issuer in issuers]
            left = [each for each in left if each not in issuers]
        if not longer:
            break
        paths = longer
    return paths[0][1:], False


def is_root(certificate: x509.Certificate) -> bool:
    """Whether it is self-signed."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def current_roots(certificates: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The roots among `certificates` but those that have been rolled over: of each name, the one that begins last."""
    newest: dict[x509.Name, x509.Certificate] = {}
    for root in sorted(filter(is_root, certificates), key=lambda each: each.not_valid_before_utc):
        newest[root.subject] = root
    return tuple(each for each in certificates if newest.get(each.subject) == each)


def has_issued(issuer: x509.Certificate, certificate: x509.Certificate, now: datetime) -> bool:
    """Whether `issuer`, a CA that has not expired, has signed `certificate`."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return constraints.ca and not has_expired(lifetime_of(issuer), now)


def lifetime_of(certificate: x509.Certificate) -> Lifetime:
    """The certificate's validity."""
    return Lifetime(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
