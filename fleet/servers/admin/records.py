"""The routes of what is on record: certificates, stations, operators; and of the server itself."""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.access import Operator
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import NotFound
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.routes import DER, PEM
from fleet.servers.admin.shapes import credential_json, moment, operator_json, station_json
from fleet.servers.admin.signing import newest_of
from fleet.services.overview import overview

COUNT_DEVICES = "count"


async def health(parts: Parts, call: Call) -> Reply:
    await parts.registry.last_event()
    return Reply({"status": "ok"})


async def whoami(parts: Parts, call: Call) -> Reply:
    assert call.caller is not None  # noqa: S101  the route asks for a holder
    credential, operator = call.caller.credential, call.caller.operator
    rights = {} if operator is None else {"role": operator.role.value, "models": list(operator.models)}
    return Reply(
        {
            "holder": credential.holder,
            "kind": credential.kind.value,
            "serial": credential.serial,
            "not_after": moment(credential.not_after),
            "state": credential.state.value,
            **rights,
        }
    )


async def status(parts: Parts, call: Call) -> Reply:
    uptime = (call.now - parts.started).total_seconds()
    if call.caller is None or call.caller.operator is None:
        return Reply({"uptime_seconds": uptime, **parts.status()})
    counts = call.query.get("devices") == COUNT_DEVICES
    held = await overview(parts.registry, call.now, counts_devices=counts)
    return Reply({"uptime_seconds": uptime, "registry": held, **parts.status()})


async def get_credential(parts: Parts, call: Call) -> Reply:
    """As JSON, PEM or DER, by Accept."""
    serial = call.path["serial"]
    credential = await parts.registry.credential(serial)
    if credential is None or not await _may_see(parts, call.operator, credential):
        raise NotFound("no-such-credential", f"There is no certificate with serial {serial}.")
    if call.media_type == DER:
        return Reply(media_type=DER, raw=credential.der)
    if call.media_type == PEM:
        return Reply(media_type=PEM, raw=x509.load_der_x509_certificate(credential.der).public_bytes(Encoding.PEM))
    return Reply(credential_json(credential))


async def _may_see(parts: Parts, operator: Operator, credential: Credential) -> bool:
    """An operator who is held to models sees certificates of their devices, and no others."""
    if not operator.models:
        return True
    device = await parts.registry.device(credential.holder) if credential.kind is CredentialKind.DEVICE else None
    return device is not None and operator.sees(device.model)


async def list_stations(parts: Parts, call: Call) -> Reply:
    """An operator who is held to models sees stations that build those and nothing else."""
    found = [s for s in await parts.registry.stations() if all(call.operator.sees(model) for model in s.models)]
    page, more = page_of_all(call, found, lambda station: station.name)
    items = [station_json(each, await newest_of(parts, each.name, CredentialKind.STATION)) for each in page]
    return paged(call, items, [page[-1].name] if more else None)


async def list_operators(parts: Parts, call: Call) -> Reply:
    page, more = page_of_all(call, await parts.registry.operators(), lambda operator: operator.name)
    items = [operator_json(each, await newest_of(parts, each.name, CredentialKind.OPERATOR)) for each in page]
    return paged(call, items, [page[-1].name] if more else None)
