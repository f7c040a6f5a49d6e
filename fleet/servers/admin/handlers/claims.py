"""Claims: certificates that a batch of devices shares. The key is generated where it is used: the body has a
certificate request, of which only the public key is used.
"""

from datetime import timedelta

from fleet.domain.access import Permission, demand_model
from fleet.domain.changes import Change
from fleet.domain.claim import Claim as DomainClaim
from fleet.domain.credential import Credential as DomainCredential
from fleet.domain.credential import CredentialKind
from fleet.domain.crl import GIVEN_REASONS, CrlReason
from fleet.domain.errors import no_such
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all
from fleet.servers.admin.handlers.credentials import credentials_page
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import NO_REASON, NO_REVOCATION_REASON, Page, Paging, Reason, RevocationReason
from fleet.servers.admin.records.credentials import AddedClaim, Claim, Credential, NewClaim
from fleet.servers.admin.routing import Result, Route, get, post
from fleet.servers.admin.signing import made_in, read_request, signed
from fleet.services import claims


@get("/v1/claims", Permission.CLAIM_READ, "Claim certificates, by name.")
async def list_claims(context: Context, call: Call, query: Paging) -> Result[Page[Claim]]:
    found = [each for each in await context.registry.claims() if call.operator.sees(each.model)]
    return page_of_all(call, query, found, lambda claim: claim.name, lambda claim: Claim.shown(claim, call.now))


@get("/v1/claims/{claim}", Permission.CLAIM_READ, "One claim.")
async def get_claim(context: Context, call: Call) -> Result[Claim]:
    return Result(Claim.shown(await _found(context, call), call.now))


@get("/v1/claims/{claim}/credentials", Permission.CLAIM_READ, "A claim's certificate.")
async def list_claim_credentials(context: Context, call: Call, query: Paging) -> Result[Page[Credential]]:
    found = await _found(context, call)
    held = [c for c in await context.registry.credentials(found.name) if c.kind is CredentialKind.CLAIM]
    return await credentials_page(context, call, query, held)


@post(
    "/v1/claims",
    Permission.CLAIM_WRITE,
    "Make a claim, with a certificate for the key of its request.",
    status=201,
    may_not_find=True,
)
async def create_claim(context: Context, call: Call, body: NewClaim) -> Result[AddedClaim]:
    demand_model(call.operator, body.model)
    csr = read_request(body.csr)

    def result_of(change: Change) -> Result[AddedClaim]:
        claim = inserted(change, DomainClaim)
        return _created(context, call, claim, made_in(change))

    claim, credential = await claims.enroll_claim(
        answering(context.registry, call.once, result_of),
        context.authorities().issuer(),
        claims.NewClaim(
            body.name, body.model, body.quota, csr.spki_der, call.now + timedelta(seconds=body.lifetime_seconds)
        ),
        act=call.act,
    )
    return _created(context, call, claim, credential)


def _created(context: Context, call: Call, claim: DomainClaim, credential: DomainCredential) -> Result[AddedClaim]:
    location = {"Location": f"/v1/claims/{claim.name}"}
    return Result(AddedClaim.shown(claim, call.now, **signed(context, credential)), 201, location)


async def _moved(
    context: Context, call: Call, verb: str, reason: str, crl_reason: CrlReason = CrlReason.UNSPECIFIED
) -> Result[Claim]:
    found = await _found(context, call)
    result: Result[Claim] = Result(Claim.shown(claims.moved(found, verb, call.now, reason), call.now))
    registry = answering(context.registry, call.once, lambda _: result)
    await claims.move(verb, registry, found.name, act=call.act, reason=reason, crl_reason=crl_reason)
    return result


def _moving(verb: str, summary: str) -> Route:
    async def handle(context: Context, call: Call, body: Reason = NO_REASON) -> Result[Claim]:
        return await _moved(context, call, verb, body.reason)

    return post(f"/v1/claims/{{claim}}/{verb}", Permission.CLAIM_WRITE, summary, name=f"{verb}_claim")(handle)


@post(
    "/v1/claims/{claim}/revoke",
    Permission.CLAIM_WRITE,
    "Revoke a claim permanently; devices that it enrolled stay.",
)
async def revoke_claim(context: Context, call: Call, body: RevocationReason = NO_REVOCATION_REASON) -> Result[Claim]:
    return await _moved(context, call, "revoke", body.reason, GIVEN_REASONS[body.crl_reason])


quarantine_claim = _moving("quarantine", "Suspend a claim until it is released.")
release_claim = _moving("release", "Release a claim from quarantine.")


async def _found(context: Context, call: Call) -> DomainClaim:
    """Raises: NotFound (`no-such-claim`): for one of another model, too."""
    found = await context.registry.claim(call.path["claim"])
    if found is None or not call.operator.sees(found.model):
        raise no_such("claim", call.path["claim"])
    return found
