"""Access of devices to HTTP APIs behind a reverse proxy: one decision for each request, from the registry's state.

    access = await admit_request(registry, peer, HttpRequest("GET", "/v1/things?x=1"), now)

The certificate is judged as for MQTT (admission.py); then the model's rules for HTTP are asked. Refusals are audited.
"""

from contextlib import suppress
from datetime import datetime

from msgspec import Struct

from fleet.domain.changes import AuditEntry
from fleet.domain.credential import Credential
from fleet.domain.device import Device, Model
from fleet.domain.errors import Refused, Unavailable
from fleet.domain.http_policy import may_request
from fleet.domain.model_rules import ModelKind
from fleet.domain.peer import Peer
from fleet.domain.ports import HolderFacts, Registry
from fleet.services.admission import admitted, admitted_device
from fleet.services.refusals import write_row

HTTP_REQUEST = "http.request"
NO_DEVICE = "device ?"
SHOWN_MAX = 256  # characters of a target in the audit


class HttpRequest(Struct, frozen=True):
    """What the proxy has been asked for."""

    method: str
    target: str
    """As the client sent it, with its query."""


class HttpAccess(Struct, frozen=True):
    """Who may go on."""

    device: Device
    model: Model
    credential: Credential


async def admit_request(registry: Registry, peer: Peer, request: HttpRequest | None, now: datetime) -> HttpAccess:
    """Admit `request` by the device whose certificate `peer` has; None: the proxy did not say what is asked for.

    Raises: Unauthenticated, Refused: what `identify` raises, and `not-a-device`, `device-registered`,
    `certificate-ended`, `bad-target`, `http-not-allowed`; each after its audit row is written.
    Unavailable: the registry failed, or a first use could not be recorded.
    """
    access = await admitted(registry, peer, now, HTTP_REQUEST, NO_DEVICE, _access)
    try:
        _check_rules(access, request)
    except Refused as refusal:
        await _audit_denied(registry, peer, access, request, now, refusal)
        raise
    return access


def _access(facts: HolderFacts) -> HttpAccess:
    """Raises: Refused: `not-a-device`, `device-registered` and the like."""
    return HttpAccess(*admitted_device(facts), facts.credential)


def _check_rules(access: HttpAccess, request: HttpRequest | None) -> None:
    """Raises: Refused (`bad-target`, `http-not-allowed`)."""
    allow, name = access.model.rules.http.allow, access.model.name
    if not allow and access.model.rules.kind is ModelKind.APPLICATION:
        raise Refused("http-not-allowed", f"Model {name} is of applications, and has no rules for HTTP requests.")
    if not allow:
        return
    if request is None:
        raise Refused("bad-target", "The proxy sent no method or no request target, and the model has rules for them.")
    if not may_request(allow, request.method, request.target, device=access.device.id, model=name):
        raise Refused("http-not-allowed", f"Model {name} does not allow this request.")


async def _audit_denied(
    registry: Registry, peer: Peer, access: HttpAccess, request: HttpRequest | None, now: datetime, refusal: Refused
) -> None:
    device, detail = f"device {access.device.id}", {"serial": access.credential.serial}
    if request is not None:
        detail |= {"method": _shown(request.method), "target": _shown(request.target.partition("?")[0])}
    entry = AuditEntry(now, device, HTTP_REQUEST, device, refusal.code, peer.address, detail)
    with suppress(Unavailable):  # it is answered all the same; a later row counts it
        await write_row(registry, entry)


def _shown(text: str) -> str:
    return text[:SHOWN_MAX].encode("ascii", "backslashreplace").decode()
