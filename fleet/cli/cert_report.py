"""What `fleet cert inspect` shows of a Bundle, as plain mappings. Key material never enters them.

A file to inspect is often a broken one: what cannot be read is listed under "problems", and the rest is still shown.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.wire import der
from fleet.wire.certificate_fields import CertificateFields, certificate_fields
from fleet.wire.csr import decode_csr
from fleet.wire.encodings.bundle import Bundle, Request, belongs_to
from fleet.wire.errors import WireError
from fleet.wire.keys import key_type_of
from fleet.wire.names import SUBJECT_ALT_NAME, AltNames, alt_name_values, subject_name, subject_values
from fleet.wire.parsing import library_errors
from fleet.wire.spki import load_spki, spki_of

Facts = Mapping[str, object]
_Extensions = list[x509.Extension[x509.ExtensionType]]
_Value = TypeVar("_Value")

_EXTENDED_KEY_USAGES = {
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
    "2.5.29.37.0": "any",
    "1.3.6.1.5.5.7.3.28": "cmcRA",
}


def certificate_facts(bundle: Bundle, index: int, now: datetime) -> Facts:
    """The certificate at `index` of `bundle`, its validity as seen at `now`."""
    certificate = bundle.certificates[index]
    problems: list[str] = []
    if certificate.serial_number <= 0:
        problems.append("The serial number is not positive, which RFC 5280 forbids.")
    subject = _read(problems, "subject", lambda: certificate.subject.rfc4514_string(), "?")
    issuer = _read(problems, "issuer", lambda: certificate.issuer.rfc4514_string(), "?")
    unknown: dict[str, object] = {"key_type": "?", "key_sha256": None}
    key = _read(problems, "public key", lambda: _key_facts(certificate.public_key()), unknown)
    fields = certificate_fields(certificate.public_bytes(Encoding.DER))
    none: AltNames = ()
    names = "subjectAltName"
    alt_names = _read(problems, names, lambda: alt_name_values(fields.extension(SUBJECT_ALT_NAME)), none)
    return {
        "subject": subject,
        "alt_names": alt_names,
        "issuer": issuer,
        "serial": f"{certificate.serial_number:x}",
        **_read(problems, "validity", lambda: _validity_facts(certificate, now), _NO_VALIDITY),
        "key_type": key["key_type"],
        **_usage_facts(fields, problems),
        "sha256": certificate.fingerprint(hashes.SHA256()),
        "sha1": certificate.fingerprint(hashes.SHA1()),  # noqa: S303 - a fingerprint that other tools still show
        "key_sha256": key["key_sha256"],
        "friendly_name": bundle.friendly_name(index),
        "problems": problems,
    }


def unsupported_facts(data: bytes, why: str) -> Facts:
    """A certificate that the library cannot load: what is read of its DER."""
    problems = [f"The certificate is not supported: {why}."]
    fields = certificate_fields(data)
    none: AltNames = ()
    alt_names = _read(problems, "alt names", lambda: alt_name_values(fields.extension(SUBJECT_ALT_NAME)), none)
    unknown: dict[str, object] = {"key_type": "?", "key_sha256": None}
    key = _read(problems, "public key", lambda: _key_facts(load_spki(fields.spki.whole)), unknown)
    return {
        "subject": _read(problems, "subject", lambda: _name(fields.subject), "?"),
        "alt_names": alt_names,
        "issuer": _read(problems, "issuer", lambda: _name(fields.issuer), "?"),
        "serial": f"{fields.serial_number:x}",
        **_NO_VALIDITY,
        "key_type": key["key_type"],
        **_usage_facts(fields, problems),
        "sha256": hashlib.sha256(data).digest(),
        "sha1": hashlib.sha1(data).digest(),  # noqa: S324 - as above
        "key_sha256": key["key_sha256"],
        "friendly_name": None,
        "problems": problems,
    }


def _name(name: der.Element) -> str:
    return subject_name(subject_values(name)).rfc4514_string()


def key_facts(bundle: Bundle) -> Facts | None:
    """The kind of the private key and the certificate, counted from 1, that it belongs to; None without a key."""
    key = bundle.private_key
    if key is None:
        return None
    mates = [number for number, each in enumerate(bundle.certificates, 1) if belongs_to(each, key)]
    return {"matches_certificate": mates[0] if mates else None, **_key_facts(key.public_key())}


def request_facts(request: Request) -> Facts:
    """A certificate request: what it asks for, and why the enrollment server here would refuse it, if it would."""
    problems: list[str] = []
    try:
        csr = decode_csr(request.der)
    except WireError as error:
        return {"subject": _subject_of_refused(request.der), "accepted": False, "problems": [str(error)]}
    return {
        "subject": _read(problems, "subject", lambda: subject_name(csr.subject).rfc4514_string(), "?"),
        "alt_names": csr.alt_names,
        "key_type": describe_key(load_spki(csr.spki_der)),
        "key_sha256": csr.key_sha256,
        "challenge_password": "present" if csr.challenge_password is not None else None,
        "accepted": True,
        "problems": problems,
    }


def _subject_of_refused(data: bytes) -> str:
    try:
        return x509.load_der_x509_csr(data).subject.rfc4514_string()
    except ValueError:
        return "?"


def list_facts(revocation_list: x509.CertificateRevocationList, now: datetime) -> Facts:
    """A certificate revocation list."""
    problems: list[str] = []
    issuer = _read(problems, "issuer", lambda: revocation_list.issuer.rfc4514_string(), "?")
    values = [each.value for each in _extensions(revocation_list, problems)]
    numbers = [each.crl_number for each in values if isinstance(each, x509.CRLNumber)]
    next_update = revocation_list.next_update_utc
    return {
        "issuer": issuer,
        "number": numbers[0] if numbers else None,
        "this_update": revocation_list.last_update_utc,
        "next_update": next_update,
        "state": None if next_update is None else "stale" if next_update <= now else "current",
        "entries": len(revocation_list),
        "problems": problems,
    }


def describe_key(public_key: PublicKeyTypes) -> str:
    """The kind of key, its size where the kind leaves it open, and why it would be refused, if it would."""
    size = f"RSA-{public_key.key_size}" if isinstance(public_key, rsa.RSAPublicKey) else ""
    try:
        kind = key_type_of(public_key)  # any other kind ends in Unsupported
        return size or kind
    except WireError as error:
        kind = size or type(public_key).__name__.removesuffix("PublicKey")
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            kind = f"EC {public_key.curve.name}"
        return f"{kind} (refused here: {error})"


def _key_facts(public_key: PublicKeyTypes) -> dict[str, object]:
    return {"key_type": describe_key(public_key), "key_sha256": hashlib.sha256(spki_of(public_key)).digest()}


def _extensions(holder: x509.CertificateRevocationList, problems: list[str]) -> _Extensions:
    none: _Extensions = []
    return _read(problems, "list of extensions", lambda: list(holder.extensions), none)


def _usage_facts(fields: CertificateFields, problems: list[str]) -> Facts:
    none: tuple[str, ...] = ()
    ca = _read(problems, "basic constraints", lambda: _ca_facts(fields), _UNKNOWN)
    extended = _read(problems, "extended key usage", lambda: fields.extended_key_usage or none, none)
    return {
        **ca,
        "key_usage": list(_read(problems, "key usage", lambda: fields.key_usage or none, none)),
        "extended_key_usage": [_EXTENDED_KEY_USAGES.get(oid, oid) for oid in extended],
    }


_UNKNOWN: dict[str, object] = {"ca": "unknown"}


def _ca_facts(fields: CertificateFields) -> dict[str, object]:
    found = fields.basic_constraints
    return {"ca": False} if found is None else {"ca": found[0], "path_length": found[1]}


_NO_VALIDITY: Facts = {"not_before": None, "not_after": None, "validity": "?", "expires_in_seconds": None}


def _validity_facts(certificate: x509.Certificate, now: datetime) -> Facts:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return {
        "not_before": not_before,
        "not_after": not_after,
        "validity": _validity(not_before, not_after, now),
        "expires_in_seconds": int((not_after - now).total_seconds()),
    }


def _validity(not_before: datetime, not_after: datetime, now: datetime) -> str:
    if now < not_before:
        return f"not yet valid: begins in {_duration(not_before - now)}"
    if now >= not_after:
        return f"expired {_duration(now - not_after)} ago"
    return f"expires in {_duration(not_after - now)}"


def _duration(span: timedelta) -> str:
    """Whole days; hours and minutes when two days or two hours are not reached."""
    minutes = int(span.total_seconds() // 60)
    for unit, size in (("day", 24 * 60), ("hour", 60)):
        if minutes >= 2 * size:
            return f"{minutes // size} {unit}s"
    return f"{minutes} minute{'' if minutes == 1 else 's'}"


def _read(problems: list[str], what: str, read: Callable[[], _Value], otherwise: _Value) -> _Value:
    """What `read` gives; `otherwise`, and a problem with `what` noted, when the library cannot read it."""
    try:
        with library_errors(what):
            return read()
    except WireError as error:
        problems.append(str(error))
        return otherwise
