"""Factory stations. Keys are generated where they are used: the body has a certificate request."""

from datetime import timedelta

from fleet.domain import credential as domain
from fleet.domain.access import Permission, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.crl import GIVEN_REASONS
from fleet.domain.errors import no_such
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, slice_of
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import NO_REVOCATION_REASON, Page, Paging, RevocationReason
from fleet.servers.admin.records.holders import AddedStation, NewStation, Station, StationChanges, newest
from fleet.servers.admin.routing import Result, get, patch, post
from fleet.servers.admin.signing import made_in, newest_of, read_named_request, signed
from fleet.services import inventory, revocation


@get("/v1/stations", Permission.STATION_READ, "Factory stations, by name.")
async def list_stations(context: Context, call: Call, query: Paging) -> Result[Page[Station]]:
    """A restricted operator sees those whose models are all its own."""
    found = [s for s in await context.registry.stations() if all(call.operator.sees(model) for model in s.models)]
    page, following = slice_of(call, query, found, lambda station: station.name)
    items = [Station.of(s, **await newest_of(context, s.name, CredentialKind.STATION)) for s in page]
    return paged(call, query, items, following)


@post(
    "/v1/stations",
    Permission.STATION_WRITE,
    "Add a factory station, with a certificate for the key of its request.",
    status=201,
    may_not_find=True,
)
async def create_station(context: Context, call: Call, body: NewStation) -> Result[AddedStation]:
    """A restricted operator adds stations whose models are all its own."""
    for model in body.models:
        demand_model(call.operator, model)
    csr = read_named_request(body.name, body.csr)

    def result_of(change: Change) -> Result[AddedStation]:
        station = inserted(change, domain.Station)
        return _created(context, station, made_in(change))

    credential = await inventory.enroll_station(
        answering(context.registry, call.once, result_of),
        context.authorities().issuer(),
        inventory.NewStation(
            body.name, body.models, csr.spki_der, timedelta(seconds=body.lifetime_seconds), body.quota
        ),
        act=call.act,
    )
    station = domain.Station(body.name, tuple(dict.fromkeys(body.models)), call.now, body.quota)
    return _created(context, station, credential)


def _created(context: Context, station: domain.Station, credential: Credential) -> Result[AddedStation]:
    return Result(AddedStation.of(station, **newest(credential), **signed(context, credential)), 201)


@patch("/v1/stations/{station}", Permission.STATION_WRITE, "Change a station's daily quota of certificates.")
async def patch_station(context: Context, call: Call, body: StationChanges) -> Result[Station]:
    found = await _found(context, call)
    held = await newest_of(context, found.name, CredentialKind.STATION)
    changed = await inventory.set_station_quota(context.registry, found.name, body.quota, act=call.act)
    return Result(Station.of(changed, **held))


@post(
    "/v1/stations/{station}/revoke",
    Permission.STATION_WRITE,
    "Revoke a station's certificates; devices that it provisioned stay.",
)
async def revoke_station(
    context: Context, call: Call, body: RevocationReason = NO_REVOCATION_REASON
) -> Result[Station]:
    found = await _found(context, call)
    held = await newest_of(context, found.name, CredentialKind.STATION)
    result: Result[Station] = Result(Station.of(found, **{**held, "certificate": CredentialState.REVOKED}))
    registry = answering(context.registry, call.once, lambda _: result)
    crl_reason = GIVEN_REASONS[body.crl_reason]
    await revocation.revoke_station(registry, found.name, act=call.act, reason=body.reason, crl_reason=crl_reason)
    return result


async def _found(context: Context, call: Call) -> domain.Station:
    """Raises: NotFound (`no-such-station`): for one with models of others, too."""
    name = call.path["station"]
    found = await context.registry.station(name)
    if found is None or not all(call.operator.sees(model) for model in found.models):
        raise no_such("station", name)
    return found
