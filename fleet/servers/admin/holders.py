"""The routes that bring in stations and operators, change them, and put them out again. Keys are made where they are
used: what comes here is a certificate request.
"""

from typing import Any

from cryptography.hazmat.primitives import hashes

from fleet.ca.view import CaCertificate
from fleet.domain.access import Operator, Role, demand_grantable, demand_model
from fleet.domain.changes import Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.errors import NotFound
from fleet.domain.writes import AddOperator, AddStation
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import moment, operator_json, station_json
from fleet.servers.admin.signing import lifetime_of, made_in, newest_of, pem_of, read_request, signed_json
from fleet.services import inventory, operators, revocation
from fleet.services.holders import demand_own_name
from fleet.wire.csr import Csr


async def list_authorities(context: Context, call: Call) -> Result:
    return Result({"items": [_authority_json(each) for each in context.authorities().shown()], "next": None})


def _authority_json(each: CaCertificate) -> dict[str, Any]:
    certificate = each.certificate
    return {
        "role": each.role,
        "subject": certificate.subject.rfc4514_string(),
        "not_after": moment(certificate.not_valid_after_utc),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "tenant": each.tenant,
        "pem": pem_of(certificate),
    }


async def create_station(context: Context, call: Call) -> Result:
    """An operator who is held to models adds stations that build those and nothing else."""
    body = call.body
    for model in body["models"]:
        demand_model(call.operator, model)
    csr = _request_for(body["name"], body["csr"])

    def reply_of(change: Change) -> Result:
        station = next(write.station for write in change.writes if isinstance(write, AddStation))
        return _created_station(context, station, made_in(change))

    credential = await inventory.enroll_station(
        answering(context.registry, call.once, reply_of),
        context.authorities().stations_issuer(),
        body["name"],
        body["models"],
        csr.spki_der,
        lifetime=lifetime_of(body, inventory.STATION_LIFETIME),
        quota=body.get("quota", 0),
        act=call.act,
    )
    models = tuple(dict.fromkeys(body["models"]))
    return _created_station(context, Station(body["name"], models, call.now, body.get("quota", 0)), credential)


def _created_station(context: Context, station: Station, credential: Credential) -> Result:
    return Result({**station_json(station, credential), **signed_json(context, credential)}, 201)


async def patch_station(context: Context, call: Call) -> Result:
    """How many certificates it may earn a day.

    Raises: NotFound (`no-such-station`): for one that builds others' models, too.
    """
    found, quota = await _found_station(context, call), int(call.body["quota"])
    newest = await newest_of(context, found.name, CredentialKind.STATION)
    changed = await inventory.set_station_quota(context.registry, found.name, quota, act=call.act)
    return Result(station_json(changed, newest))


async def revoke_station(context: Context, call: Call) -> Result:
    """Raises: NotFound (`no-such-station`): for one that builds others' models, too."""
    found = await _found_station(context, call)
    newest = await newest_of(context, found.name, CredentialKind.STATION)
    reply = Result({**station_json(found, newest), "certificate": CredentialState.REVOKED.value})
    keeping = answering(context.registry, call.once, lambda _: reply)
    await revocation.revoke_station(keeping, found.name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply


async def _found_station(context: Context, call: Call) -> Station:
    name = call.path["station"]
    found = await context.registry.station(name)
    if found is None or not all(call.operator.sees(model) for model in found.models):
        raise NotFound("no-such-station", f"There is no station {name!r}.")
    return found


async def get_operator(context: Context, call: Call) -> Result:
    found = await _found_operator(context, call)
    return Result(operator_json(found, await newest_of(context, found.name, CredentialKind.OPERATOR)))


async def create_operator(context: Context, call: Call) -> Result:
    """Nobody gives what it does not have."""
    body, role = call.body, Role(call.body["role"])
    models = tuple(dict.fromkeys(body.get("models", ())))
    demand_grantable(call.operator, role, models)
    csr = _request_for(body["name"], body["csr"])

    def reply_of(change: Change) -> Result:
        operator = next(write.operator for write in change.writes if isinstance(write, AddOperator))
        return _created_operator(context, operator, made_in(change))

    credential = await operators.enroll_operator(
        answering(context.registry, call.once, reply_of),
        context.authorities().operators_issuer(call.now),
        body["name"],
        role,
        models,
        csr.spki_der,
        lifetime=lifetime_of(body, operators.OPERATOR_LIFETIME),
        act=call.act,
    )
    return _created_operator(context, Operator(body["name"], role, call.now, models), credential)


def _created_operator(context: Context, operator: Operator, credential: Credential) -> Result:
    signed = signed_json(context, credential, [context.authorities().operators()])
    location = {"Location": f"/v1/operators/{operator.name}"}
    return Result({**operator_json(operator, credential), **signed}, 201, location)


async def revoke_operator(context: Context, call: Call) -> Result:
    found = await _found_operator(context, call)
    newest = await newest_of(context, found.name, CredentialKind.OPERATOR)
    reply = Result({**operator_json(found, newest), "certificate": CredentialState.REVOKED.value})
    keeping = answering(context.registry, call.once, lambda _: reply)
    await operators.revoke_operator(keeping, found.name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply


async def _found_operator(context: Context, call: Call) -> Operator:
    found = await context.registry.operator(call.path["operator"])
    if found is None:
        raise NotFound("no-such-operator", f"There is no operator {call.path['operator']!r}.")
    return found


def _request_for(name: str, text: str) -> Csr:
    """The certificate request in `text`, for `name`.

    Raises: Invalid: `bad-csr`, `name-not-in-request`, `key-not-allowed`. WireError.
    """
    csr = read_request(text)
    demand_own_name(name, csr.subject)
    return csr
