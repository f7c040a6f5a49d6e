"""The chain of an issuing CA that was signed elsewhere: what it must be before it is taken."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from fleet.ca.key_identifiers import extension_in
from fleet.domain.errors import Invalid
from fleet.wire.spki import spki_of

CHAIN_SIZE_MAX = 6  # the issuing CA, its root, and as many between them as any client follows
RSA_BITS_MIN = 2048
EC_BITS_MIN = 256  # OpenSSL at its usual security level takes 224, which hardly a client knows any more
_WEAK_HASHES = ("md5", "sha1")


def has_signed(authority: x509.Certificate, below: x509.Certificate) -> bool:
    """Whether `below` bears the name of `authority` as its issuer, and its signature."""
    try:
        below.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        # TypeError: a key that signs none
        return False
    return True


def has_signed_crl(authority: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    """Likewise of a CRL."""
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def checked_chain(
    given: Sequence[x509.Certificate],
    key: ec.EllipticCurvePublicKey,
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """The chain for `key` among `given`, in any order: issuing CA first, its root last, which may be one of `roots`.

    Raises: Invalid (`bad-chain`), with the reason.
    """
    spki = spki_of(key)
    issuing = next((each for each in given if _spki(each) == spki), None)
    if issuing is None:
        raise _bad(
            "no certificate for the key of the request is in the file",
            "Have the request signed that `fleet ca csr` wrote last.",
        )
    chain = _climbed(issuing, [*given, *roots])
    if len(chain) == 1:
        raise _bad(f"{_name(issuing)} has signed itself", "Have the request signed by a CA with another key.")
    for below, certificate in enumerate(chain):
        _check(certificate, now)
        _check_path_length(certificate, chain[:below])
    return chain


def _spki(certificate: x509.Certificate) -> bytes | None:
    """None: of a kind that is unknown here, as some other CA's in the same file may be."""
    try:
        return spki_of(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return None


def _climbed(issuing: x509.Certificate, pool: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    chain = [issuing]
    candidates = sorted(pool, key=lambda each: not has_signed(each, each))  # a root before one that another has signed
    while not has_signed(chain[-1], chain[-1]):
        last = chain[-1]
        above = next((each for each in candidates if each not in chain and has_signed(each, last)), None)
        if above is None:
            what = "has not signed it" if any(each.subject == last.issuer for each in pool) else "is not in the file"
            raise _bad(
                f"the issuer of {_name(last)} is {last.issuer.rfc4514_string()}, which {what}",
                "It takes every CA up to the root, and the root.",
            )
        chain.append(above)
        if len(chain) > CHAIN_SIZE_MAX:
            raise _bad(f"it is longer than {CHAIN_SIZE_MAX} certificates", "Use fewer levels.")
    return tuple(chain)


def _check(certificate: x509.Certificate, now: datetime) -> None:
    name = _name(certificate)
    if now < certificate.not_valid_before_utc:
        raise _bad(f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M}Z", "Check the clock.")
    if now >= certificate.not_valid_after_utc:
        raise _bad(f"{name} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}", "Have it signed again.")
    constraints = extension_in(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise _bad(f"{name} is no CA: its basic constraints do not say CA:TRUE", "Have it signed as a subordinate CA.")
    usage = extension_in(certificate, x509.KeyUsage)
    if usage is None or not (usage.key_cert_sign and usage.crl_sign):
        raise _bad(f"{name} may not sign certificates and CRLs", "Its key usage takes keyCertSign and cRLSign.")
    if extension_in(certificate, x509.SubjectKeyIdentifier) is None:
        raise _bad(f"{name} has no subject key identifier", "RFC 5280, 4.2.1.2 requires one of every CA.")
    if not _is_strong(certificate):
        raise _bad(
            f"{name} has a key or a signature that clients reject",
            "EC of 256 bits, Ed25519 or RSA of 2048 bits; SHA-256.",
        )


def _check_path_length(certificate: x509.Certificate, below: Sequence[x509.Certificate]) -> None:
    constraints = extension_in(certificate, x509.BasicConstraints)
    allowed = constraints.path_length if constraints is not None else None
    if allowed is not None and allowed < len(below):
        raise _bad(
            f"{_name(certificate)} has path length {allowed}, and {len(below)} CA{'s' * (len(below) > 1)} would stand "
            f"below it: {_name(below[-1])}",
            "Have it signed by a CA whose path length allows that.",
        )


def _is_strong(certificate: x509.Certificate) -> bool:
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.name in _WEAK_HASHES and not has_signed(certificate, certificate):
        return False
    return is_strong_key(certificate.public_key())


def is_strong_key(key: CertificatePublicKeyTypes) -> bool:
    """Of a CA: EC of EC_BITS_MIN, Ed25519, or RSA of RSA_BITS_MIN."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.key_size >= EC_BITS_MIN
    return isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN
    )


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a name"


def _bad(why: str, advice: str) -> Invalid:
    return Invalid("bad-chain", f"The chain is refused: {why}.", advice)
