"""EST's paths: which operation, under which label, by which method."""

import base64
import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from fleet.servers.refusals import HttpRefused, no_such_path
from fleet.wire.est import OPERATIONS, WELL_KNOWN
from fleet.wire.identifiers import NAME

RENEWAL_INFO = "renewal-info"
"""When to renew the certificate that the path names, as RFC 9773 has it for ACME: by its fingerprint or by the
identifier of that RFC.
"""
TRUST_UPDATE = "trust-update"
"""Which former roots devices shall no longer trust (`fleet.wire.trust_update`)."""
SERVER_TRUST_UPDATE = "server-trust-update"
"""Likewise of the roots that the server's own certificate is below, whichever tenant asks."""
DEVICE_REPORT = "device-report"
"""A device's report of its health (`fleet.wire.device_report`)."""
WITHOUT_LABEL = (TRUST_UPDATE, SERVER_TRUST_UPDATE, DEVICE_REPORT)


class Operation(NamedTuple):
    method: str
    """The only one (RFC 7030, 3.2.2)."""
    is_open: bool = False
    """Whether it needs no credentials."""


SERVED = {
    "cacerts": Operation("GET", is_open=True),
    "csrattrs": Operation("GET", is_open=True),
    "simpleenroll": Operation("POST"),
    "simplereenroll": Operation("POST"),
    "serverkeygen": Operation("POST"),
    # Not part of RFC 7030
    RENEWAL_INFO: Operation("GET", is_open=True),
    TRUST_UPDATE: Operation("GET", is_open=True),
    SERVER_TRUST_UPDATE: Operation("GET", is_open=True),
    DEVICE_REPORT: Operation("POST"),
}

# A model's name. What is percent-encoded without need is decoded (RFC 3986, 6.2.2.2); other octets name no model.
_LABEL = re.compile(NAME)

_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, 2.3

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# RFC 9773, 4.1: base64url of the authority key identifier and of the serial number's octets, without padding.
_CERTIFICATE_ID = re.compile(r"([A-Za-z0-9_-]{2,86})\.([A-Za-z0-9_-]{2,28})")


@dataclass(frozen=True, slots=True)
class Route:
    """One of SERVED, or an operation of EST that is not; and the label in the path: a model's name, or None."""

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
    found = _route(_ENCODED.sub(_unreserved, path))
    if found is None:
        raise no_such_path()
    served = SERVED.get(found.operation)
    if served is None:  # fullcmc, which RFC 7030, 3.2.2 leaves to us
        raise HttpRefused(501, "not-served", f"The operation {found.operation} is not served here.")
    allowed = ("GET", "HEAD") if served.method == "GET" else (served.method,)
    if method not in allowed:
        message = f"{found.operation} takes {served.method} only."
        raise HttpRefused(405, "bad-method", message, {"Allow": ", ".join(allowed)})
    return found


def _route(path: str) -> Route | None:
    if not path.startswith(f"{WELL_KNOWN}/"):
        return None
    match path.removeprefix(f"{WELL_KNOWN}/").split("/"):
        case [operation] if operation in OPERATIONS or operation in WITHOUT_LABEL:
            return Route(operation, None)
        case [operation, certificate] if operation == RENEWAL_INFO and (asked := _of_certificate(certificate)):
            return asked
        # RFC 7030, 3.2.2: a label is never equal to an operation.
        case [label, operation] if operation in OPERATIONS and label not in OPERATIONS and _LABEL.fullmatch(label):
            return Route(operation, label)
        case _:
            return None


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


def _unreserved(encoded: re.Match[str]) -> str:
    character = chr(int(encoded[1], 16))
    return character if _UNRESERVED.fullmatch(character) else encoded[0]
