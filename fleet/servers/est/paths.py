"""EST's paths: which operation, under which label, by which method."""

import base64
import functools
import re
from dataclasses import dataclass

from fleet.servers.refusals import HttpRefused, no_such_path
from fleet.wire.est import OPERATIONS, WELL_KNOWN

METHODS = {
    "cacerts": "GET",
    "csrattrs": "GET",
    "simpleenroll": "POST",
    "simplereenroll": "POST",
    "serverkeygen": "POST",
}
"""Operations served, each with its only method (RFC 7030, 3.2.2)."""

# A model's name. What is percent-encoded without need is decoded (RFC 3986, 6.2.2.2); other octets name no model.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, 2.3

RENEWAL_INFO = "renewal-info"
"""Not part of RFC 7030: when to renew the certificate that the path names, as RFC 9773 has it for ACME: by its
fingerprint or by the identifier of that RFC.
"""
TRUST_UPDATE = "trust-update"
"""Not part of RFC 7030: which former roots devices shall no longer trust (`fleet.wire.trust_update`)."""
SERVER_TRUST_UPDATE = "server-trust-update"
"""Not part of RFC 7030: likewise of the roots that the server's own certificate is below, whichever tenant asks."""
DEVICE_REPORT = "device-report"
"""Not part of RFC 7030: a device's report of its health (`fleet.wire.device_report`)."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# RFC 9773, 4.1: base64url of the authority key identifier and of the serial number's octets, without padding.
_CERTIFICATE_ID = re.compile(r"([A-Za-z0-9_-]{2,86})\.([A-Za-z0-9_-]{2,28})")


@dataclass(frozen=True, slots=True)
class Route:
    """One of METHODS, and the label in the path: a model's name, or None."""

    operation: str
    label: str | None
    fingerprint: bytes | None = None
    """Set for RENEWAL_INFO alone, as is `certificate_id`."""
    certificate_id: tuple[bytes, str] | None = None
    """Authority key identifier, and serial number in hex."""


@functools.lru_cache(maxsize=1024)  # a path for each model that is asked for, and those of renewal-info
def route(method: str, path: str) -> Route:
    """The operation of `method` on `path` (as sent, without a query). HEAD is served where GET is (RFC 9110, 9.3.2).

    Raises: HttpRefused: 404, 405, or 501 for an operation of EST that is not served here.
    """
    path = _ENCODED.sub(_unreserved, path)
    for operation in (TRUST_UPDATE, SERVER_TRUST_UPDATE):
        if path == f"{WELL_KNOWN}/{operation}":
            _check_method(method, operation, "GET")
            return Route(operation, None)
    if path == f"{WELL_KNOWN}/{DEVICE_REPORT}":
        _check_method(method, DEVICE_REPORT, "POST")
        return Route(DEVICE_REPORT, None)
    info = path.removeprefix(f"{WELL_KNOWN}/{RENEWAL_INFO}/")
    if info != path and (asked := _of_certificate(info)) is not None:
        _check_method(method, RENEWAL_INFO, "GET")
        return asked
    operation, label = _split(path)
    if operation not in METHODS:
        if operation in OPERATIONS:  # fullcmc, which RFC 7030, 3.2.2 leaves to us
            raise HttpRefused(501, "not-served", f"The operation {operation} is not served here.")
        raise no_such_path()
    _check_method(method, operation, METHODS[operation])
    return Route(operation, label)


def _of_certificate(text: str) -> Route | None:
    """The route of the certificate that `text` names; None: it names none."""
    if _FINGERPRINT.fullmatch(text):
        return Route(RENEWAL_INFO, None, bytes.fromhex(text))
    parts = _CERTIFICATE_ID.fullmatch(text)
    if parts is None:
        return None
    key_id, serial = (_from_base64url(part) for part in parts.groups())
    # RFC 9773, 4.1: the content octets of the serial's DER: positive, and no longer than need be.
    if key_id is None or serial is None or serial[0] > 0x7F or (serial[0] == 0 and serial[1:2] < b"\x80"):
        return None
    return Route(RENEWAL_INFO, None, certificate_id=(key_id, f"{int.from_bytes(serial):x}"))


def _from_base64url(text: str) -> bytes | None:
    """None: it is not what an encoder makes."""
    try:
        found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return found if base64.urlsafe_b64encode(found).rstrip(b"=").decode() == text else None


def _check_method(method: str, operation: str, wanted: str) -> None:
    allowed = (wanted, "HEAD") if wanted == "GET" else (wanted,)
    if method not in allowed:
        raise HttpRefused(405, "bad-method", f"{operation} takes {wanted} only.", {"Allow": ", ".join(allowed)})


def _unreserved(encoded: re.Match[str]) -> str:
    character = chr(int(encoded[1], 16))
    return character if _UNRESERVED.fullmatch(character) else encoded[0]


def _split(path: str) -> tuple[str, str | None]:
    if not path.startswith(f"{WELL_KNOWN}/"):
        return "", None
    match path.removeprefix(f"{WELL_KNOWN}/").split("/"):
        case [operation]:
            return operation, None
        # RFC 7030, 3.2.2: a label is never equal to an operation.
        case [label, operation] if label not in OPERATIONS and _LABEL.fullmatch(label):
            return operation, label
        case _:
            return "", None
