"""The routes of claims: certificates that a batch shares. The key of one is made where it is used: what comes here
is a certificate request, of which nothing counts but the key.
"""

from datetime import timedelta

from fleet.domain.access import demand_model
from fleet.domain.changes import Change
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.errors import NotFound
from fleet.domain.writes import AddClaim
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import claim_json, credential_json
from fleet.servers.admin.signing import made_in, read_request, signed_json
from fleet.services import claims


async def list_claims(context: Context, call: Call) -> Result:
    found = [each for each in await context.registry.claims() if call.operator.sees(each.model)]
    page, more = page_of_all(call, found, lambda claim: claim.name)
    return paged(call, [claim_json(each, call.now) for each in page], [page[-1].name] if more else None)


async def get_claim(context: Context, call: Call) -> Result:
    return Result(claim_json(await _found(context, call), call.now))


async def list_claim_credentials(context: Context, call: Call) -> Result:
    found = await _found(context, call)
    held = [c for c in await context.registry.credentials(found.name) if c.kind is CredentialKind.CLAIM]
    page, more = page_of_all(call, held, lambda credential: credential.serial)
    return paged(call, [credential_json(each) for each in page], [page[-1].serial] if more else None)


async def create_claim(context: Context, call: Call) -> Result:
    body = call.body
    demand_model(call.operator, body["model"])
    csr = read_request(body["csr"])

    def reply_of(change: Change) -> Result:
        claim = next(write.claim for write in change.writes if isinstance(write, AddClaim))
        return _created(context, call, claim, made_in(change))

    claim, credential = await claims.enroll_claim(
        answering(context.registry, call.once, reply_of),
        context.authorities().stations_issuer(),
        body["name"],
        body["model"],
        int(body["quota"]),
        csr.spki_der,
        expires_at=call.now + timedelta(seconds=int(body["lifetime_seconds"])),
        act=call.act,
    )
    return _created(context, call, claim, credential)


def _created(context: Context, call: Call, claim: Claim, credential: Credential) -> Result:
    location = {"Location": f"/v1/claims/{claim.name}"}
    return Result({**claim_json(claim, call.now), **signed_json(context, credential)}, 201, location)


async def revoke_claim(context: Context, call: Call) -> Result:
    return await _move(context, call, "revoke")


async def quarantine_claim(context: Context, call: Call) -> Result:
    return await _move(context, call, "quarantine")


async def release_claim(context: Context, call: Call) -> Result:
    return await _move(context, call, "release")


async def _move(context: Context, call: Call, verb: str) -> Result:
    found, reason = await _found(context, call), (call.body or {}).get("reason", "")
    reply = Result(claim_json(claims.moved(found, verb, call.now, reason), call.now))
    keeping = answering(context.registry, call.once, lambda _: reply)
    await claims.MOVES[verb](keeping, found.name, act=call.act, reason=reason)
    return reply


async def _found(context: Context, call: Call) -> Claim:
    """Raises: NotFound (`no-such-claim`): for one of another model, too."""
    found = await context.registry.claim(call.path["claim"])
    if found is None or not call.operator.sees(found.model):
        raise NotFound("no-such-claim", f"There is no claim {call.path['claim']!r}.")
    return found
