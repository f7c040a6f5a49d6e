"""The routes that bring in stations and operators, change them, and put them out again. Keys are made where they are
used: what comes here is a certificate request.
"""

from typing import Any

from cryptography.hazmat.primitives import hashes

from fleet.ca.view import CaCertificate
from fleet.domain.access import Operator, Role, demand_grantable, demand_model
from fleet.domain.changes import AddOperator, AddStation, Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.errors import NotFound
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.shapes import moment, operator_json, station_json
from fleet.servers.admin.signing import lifetime_of, made_in, newest_of, pem_of, read_request, signed_json
from fleet.services import inventory, operators, revocation
from fleet.services.holders import demand_own_name
from fleet.wire.csr import Csr


async def list_authorities(parts: Parts, call: Call) -> Reply:
    return Reply({"items": [_authority_json(each) for each in parts.authorities.shown()], "next": None})


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


async def create_station(parts: Parts, call: Call) -> Reply:
    """An operator who is held to models adds stations that build those and nothing else."""
    body = call.body
    for model in body["models"]:
        demand_model(call.operator, model)
    csr = _request_for(body["name"], body["csr"])

    def reply_of(change: Change) -> Reply:
        station = next(write.station for write in change.writes if isinstance(write, AddStation))
        return _created_station(parts, station, made_in(change))

    credential = await inventory.enroll_station(
        answering(parts.registry, call.once, reply_of),
        parts.authorities.stations_issuer(),
        body["name"],
        body["models"],
        csr.spki_der,
        lifetime=lifetime_of(body, inventory.STATION_LIFETIME),
        quota=body.get("quota", 0),
        act=call.act,
    )
    models = tuple(dict.fromkeys(body["models"]))
    return _created_station(parts, Station(body["name"], models, call.now, body.get("quota", 0)), credential)


def _created_station(parts: Parts, station: Station, credential: Credential) -> Reply:
    return Reply({**station_json(station, credential), **signed_json(parts, credential)}, 201)


async def patch_station(parts: Parts, call: Call) -> Reply:
    """How many certificates it may earn a day.

    Raises: NotFound (`no-such-station`): for one that builds others' models, too.
    """
    found, quota = await _found_station(parts, call), int(call.body["quota"])
    newest = await newest_of(parts, found.name, CredentialKind.STATION)
    changed = await inventory.set_station_quota(parts.registry, found.name, quota, act=call.act)
    return Reply(station_json(changed, newest))


async def revoke_station(parts: Parts, call: Call) -> Reply:
    """Raises: NotFound (`no-such-station`): for one that builds others' models, too."""
    found = await _found_station(parts, call)
    newest = await newest_of(parts, found.name, CredentialKind.STATION)
    reply = Reply({**station_json(found, newest), "certificate": CredentialState.REVOKED.value})
    keeping = answering(parts.registry, call.once, lambda _: reply)
    await revocation.revoke_station(keeping, found.name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply


async def _found_station(parts: Parts, call: Call) -> Station:
    name = call.path["station"]
    found = await parts.registry.station(name)
    if found is None or not all(call.operator.sees(model) for model in found.models):
        raise NotFound("no-such-station", f"There is no station {name!r}.")
    return found


async def get_operator(parts: Parts, call: Call) -> Reply:
    found = await _found_operator(parts, call)
    return Reply(operator_json(found, await newest_of(parts, found.name, CredentialKind.OPERATOR)))


async def create_operator(parts: Parts, call: Call) -> Reply:
    """Nobody gives what it does not have."""
    body, role = call.body, Role(call.body["role"])
    models = tuple(dict.fromkeys(body.get("models", ())))
    demand_grantable(call.operator, role, models)
    csr = _request_for(body["name"], body["csr"])

    def reply_of(change: Change) -> Reply:
        operator = next(write.operator for write in change.writes if isinstance(write, AddOperator))
        return _created_operator(parts, operator, made_in(change))

    credential = await operators.enroll_operator(
        answering(parts.registry, call.once, reply_of),
        parts.authorities.operators_issuer(call.now),
        body["name"],
        role,
        models,
        csr.spki_der,
        lifetime=lifetime_of(body, operators.OPERATOR_LIFETIME),
        act=call.act,
    )
    return _created_operator(parts, Operator(body["name"], role, call.now, models), credential)


def _created_operator(parts: Parts, operator: Operator, credential: Credential) -> Reply:
    signed = signed_json(parts, credential, [parts.authorities.operators])
    location = {"Location": f"/v1/operators/{operator.name}"}
    return Reply({**operator_json(operator, credential), **signed}, 201, location)


async def revoke_operator(parts: Parts, call: Call) -> Reply:
    found = await _found_operator(parts, call)
    newest = await newest_of(parts, found.name, CredentialKind.OPERATOR)
    reply = Reply({**operator_json(found, newest), "certificate": CredentialState.REVOKED.value})
    keeping = answering(parts.registry, call.once, lambda _: reply)
    await operators.revoke_operator(keeping, found.name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply


async def _found_operator(parts: Parts, call: Call) -> Operator:
    found = await parts.registry.operator(call.path["operator"])
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
