"""The routes of what is on record: certificates, stations, operators; and of the server itself."""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.domain.access import Operator
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import NotFound
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.result import Result
from fleet.servers.admin.routes import DER, PEM
from fleet.servers.admin.shapes import credential_json, moment, operator_json, station_json
from fleet.servers.admin.signing import newest_of
from fleet.services.overview import overview

COUNT_DEVICES = "count"


async def health(context: Context, call: Call) -> Result:
    await context.registry.last_event()
    return Result({"status": "ok"})


async def whoami(context: Context, call: Call) -> Result:
    assert call.caller is not None  # noqa: S101  the route asks for a holder
    credential, operator = call.caller.credential, call.caller.operator
    assert credential is not None  # noqa: S101
    rights = {} if operator is None else {"role": operator.role.value, "models": list(operator.models)}
    return Result(
        {
            "holder": credential.holder,
            "kind": credential.kind.value,
            "serial": credential.serial,
            "not_after": moment(credential.not_after),
            "state": credential.state.value,
            **rights,
        }
    )


async def status(context: Context, call: Call) -> Result:
    uptime = (call.now - context.started).total_seconds()
    if call.caller is None or call.caller.operator is None:
        return Result({"uptime_seconds": uptime, **context.status()})
    counts = call.query.get("devices") == COUNT_DEVICES
    held = await overview(context.registry, call.now, counts_devices=counts)
    return Result({"uptime_seconds": uptime, "registry": held, **context.status()})


async def get_credential(context: Context, call: Call) -> Result:
    """As JSON, PEM or DER, by Accept."""
    serial = call.path["serial"]
    credential = await context.registry.credential(serial)
    if credential is None or not await _may_see(context, call.operator, credential):
        raise NotFound("no-such-credential", f"There is no certificate with serial {serial}.")
    if call.media_type == DER:
        return Result(media_type=DER, raw=credential.der)
    if call.media_type == PEM:
        return Result(media_type=PEM, raw=x509.load_der_x509_certificate(credential.der).public_bytes(Encoding.PEM))
    return Result(credential_json(credential))


async def _may_see(context: Context, operator: Operator, credential: Credential) -> bool:
    """An operator who is held to models sees certificates of their devices, and no others."""
    if not operator.models:
        return True
    device = await context.registry.device(credential.holder) if credential.kind is CredentialKind.DEVICE else None
    return device is not None and operator.sees(device.model)


async def list_stations(context: Context, call: Call) -> Result:
    """An operator who is held to models sees stations that build those and nothing else."""
    found = [s for s in await context.registry.stations() if all(call.operator.sees(model) for model in s.models)]
    page, more = page_of_all(call, found, lambda station: station.name)
    items = [station_json(each, await newest_of(context, each.name, CredentialKind.STATION)) for each in page]
    return paged(call, items, [page[-1].name] if more else None)


async def list_operators(context: Context, call: Call) -> Result:
    page, more = page_of_all(call, await context.registry.operators(), lambda operator: operator.name)
    items = [operator_json(each, await newest_of(context, each.name, CredentialKind.OPERATOR)) for each in page]
    return paged(call, items, [page[-1].name] if more else None)
