"""The routes of claims: certificates that a batch shares. The key of one is made where it is used: what comes here
is a certificate request, of which nothing counts but the key.
"""

from datetime import timedelta

from fleet.domain.access import demand_model
from fleet.domain.changes import AddClaim, Change
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import NotFound
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.parts import Call, Parts
from fleet.servers.admin.reply import Reply
from fleet.servers.admin.shapes import claim_json, credential_json
from fleet.servers.admin.signing import made_in, read_request, signed_json
from fleet.services import claims


async def list_claims(parts: Parts, call: Call) -> Reply:
    found = [each for each in await parts.registry.claims() if call.operator.sees(each.model)]
    page, more = page_of_all(call, found, lambda claim: claim.name)
    return paged(call, [claim_json(each, call.now) for each in page], [page[-1].name] if more else None)


async def get_claim(parts: Parts, call: Call) -> Reply:
    return Reply(claim_json(await _found(parts, call), call.now))


async def list_claim_credentials(parts: Parts, call: Call) -> Reply:
    found = await _found(parts, call)
    held = [c for c in await parts.registry.credentials(found.name) if c.kind is CredentialKind.CLAIM]
    page, more = page_of_all(call, held, lambda credential: credential.serial)
    return paged(call, [credential_json(each) for each in page], [page[-1].serial] if more else None)


async def create_claim(parts: Parts, call: Call) -> Reply:
    body = call.body
    demand_model(call.operator, body["model"])
    csr = read_request(body["csr"])

    def reply_of(change: Change) -> Reply:
        claim = next(write.claim for write in change.writes if isinstance(write, AddClaim))
        return _created(parts, call, claim, made_in(change))

    claim, credential = await claims.enroll_claim(
        answering(parts.registry, call.once, reply_of),
        parts.authorities.stations_issuer(),
        body["name"],
        body["model"],
        int(body["quota"]),
        csr.spki_der,
        expires_at=call.now + timedelta(seconds=int(body["lifetime_seconds"])),
        act=call.act,
    )
    return _created(parts, call, claim, credential)


def _created(parts: Parts, call: Call, claim: Claim, credential: Credential) -> Reply:
    location = {"Location": f"/v1/claims/{claim.name}"}
    return Reply({**claim_json(claim, call.now), **signed_json(parts, credential)}, 201, location)


async def revoke_claim(parts: Parts, call: Call) -> Reply:
    return await _move(parts, call, "revoke")


async def quarantine_claim(parts: Parts, call: Call) -> Reply:
    return await _move(parts, call, "quarantine")


async def release_claim(parts: Parts, call: Call) -> Reply:
    return await _move(parts, call, "release")


async def _move(parts: Parts, call: Call, verb: str) -> Reply:
    found, reason = await _found(parts, call), (call.body or {}).get("reason", "")
    reply = Reply(claim_json(claims.moved(found, verb, call.now, reason), call.now))
    keeping = answering(parts.registry, call.once, lambda _: reply)
    await claims.MOVES[verb](keeping, found.name, act=call.act, reason=reason)
    return reply


async def _found(parts: Parts, call: Call) -> Claim:
    """Raises: NotFound (`no-such-claim`): for one of another model, too."""
    found = await parts.registry.claim(call.path["claim"])
    if found is None or not call.operator.sees(found.model):
        raise NotFound("no-such-claim", f"There is no claim {call.path['claim']!r}.")
    return found
