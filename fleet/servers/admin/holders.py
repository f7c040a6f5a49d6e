"""The routes that bring in stations and operators, and put them out again. Keys are made where they are used: what
comes here is a certificate request.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.shown import CaCertificate
from fleet.domain.access import Operator, Role, demand_grantable, demand_model
from fleet.domain.changes import AddCredential, AddOperator, AddStation, Change
from fleet.domain.credential import Credential, CredentialKind, CredentialState, Station
from fleet.domain.errors import Invalid, NotFound
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.shapes import moment, operator_json, station_json
from fleet.services import inventory, operators, revocation
from fleet.services.holders import demand_good_key, demand_own_name
from fleet.wire.csr import Csr, decode_csr

_LABEL = "(?:NEW )?CERTIFICATE REQUEST-----"
_PEM = re.compile(rf"\s*-----BEGIN {_LABEL}([A-Za-z0-9+/=\s]+)-----END {_LABEL}\s*")


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
        "pem": _pem(certificate),
    }


@dataclass(frozen=True, slots=True)
class _Signed:
    """What goes back with a new certificate."""

    leaf: x509.Certificate
    issuers: Sequence[x509.Certificate]
    root: x509.Certificate

    def json(self) -> dict[str, str]:
        chain = [self.leaf, *(c for c in self.issuers if _has_signed(c, self.leaf))]
        return {"chain": "".join(map(_pem, chain)), "root": _pem(self.root)}


async def create_station(parts: Parts, call: Call) -> Reply:
    """An operator who is held to models adds stations that build those and nothing else."""
    body = call.body
    for model in body["models"]:
        demand_model(call.operator, model)
    csr = _request_for(body["name"], body["csr"])

    def reply_of(change: Change) -> Reply:
        station = next(write.station for write in change.writes if isinstance(write, AddStation))
        return _created_station(parts, station, _made(change))

    credential = await inventory.enroll_station(
        answering(parts.registry, call.once, reply_of),
        parts.authorities.stations_issuer(),
        body["name"],
        body["models"],
        csr.spki_der,
        lifetime=_lifetime(body, inventory.STATION_LIFETIME),
        quota=body.get("quota", 0),
        act=call.act,
    )
    models = tuple(dict.fromkeys(body["models"]))
    return _created_station(parts, Station(body["name"], models, call.now, body.get("quota", 0)), credential)


def _created_station(parts: Parts, station: Station, credential: Credential) -> Reply:
    issuers = [each.certificate for each in parts.authorities.shown() if each.role != "root"]
    signed = _Signed(_leaf(credential), issuers, _root(parts))
    return Reply({**station_json(station, credential), **signed.json()}, 201)


async def revoke_station(parts: Parts, call: Call) -> Reply:
    """Raises: NotFound (`no-such-station`): for one that builds others' models, too."""
    name, registry = call.path["station"], parts.registry
    found = await registry.station(name)
    if found is None or not all(call.operator.sees(model) for model in found.models):
        raise NotFound("no-such-station", f"There is no station {name!r}.")
    newest = await newest_of(parts, name, CredentialKind.STATION)
    reply = Reply({**station_json(found, newest), "certificate": CredentialState.REVOKED.value})
    keeping = answering(registry, call.once, lambda _: reply)
    await revocation.revoke_station(keeping, name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply


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
        return _created_operator(parts, operator, _made(change))

    credential = await operators.enroll_operator(
        answering(parts.registry, call.once, reply_of),
        parts.authorities.operators_issuer(call.now),
        body["name"],
        role,
        models,
        csr.spki_der,
        lifetime=_lifetime(body, operators.OPERATOR_LIFETIME),
        act=call.act,
    )
    return _created_operator(parts, Operator(body["name"], role, call.now, models), credential)


def _created_operator(parts: Parts, operator: Operator, credential: Credential) -> Reply:
    signed = _Signed(_leaf(credential), [parts.authorities.operators], _root(parts))
    location = {"Location": f"/v1/operators/{operator.name}"}
    return Reply({**operator_json(operator, credential), **signed.json()}, 201, location)


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


async def newest_of(parts: Parts, holder: str, kind: CredentialKind) -> Credential | None:
    return next((c for c in reversed(await parts.registry.credentials(holder)) if c.kind is kind), None)


def _request_for(name: str, text: str) -> Csr:
    """The certificate request in `text`, PEM: signed by a good new key, for `name`.

    Raises: Invalid: `bad-csr`, `name-not-in-request`, `key-not-allowed`. WireError.
    """
    found = _PEM.fullmatch(text)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der:
        raise Invalid("bad-csr", "csr is no certificate request in PEM.", "Make one with: openssl req -new")
    csr = decode_csr(der)
    demand_own_name(name, csr.subject)
    demand_good_key(csr.key_type)
    return csr


def _lifetime(body: dict[str, Any], usual: timedelta) -> timedelta:
    return timedelta(seconds=int(body["lifetime_seconds"])) if "lifetime_seconds" in body else usual


def _made(change: Change) -> Credential:
    return next(write.credential for write in change.writes if isinstance(write, AddCredential))


def _leaf(credential: Credential) -> x509.Certificate:
    return x509.load_der_x509_certificate(credential.der)


def _root(parts: Parts) -> x509.Certificate:
    return next(each.certificate for each in parts.authorities.shown() if each.role == "root")


def _has_signed(issuer: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
