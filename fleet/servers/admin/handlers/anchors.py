"""Manufacturers' CAs, by whose certificates (IDevIDs) a device may earn a first certificate of ours."""

from fleet.domain.access import Permission
from fleet.domain.changes import Change
from fleet.domain.idevid import Anchor as DomainAnchor
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all
from fleet.servers.admin.idempotency import answering, inserted
from fleet.servers.admin.records.base import NO_REASON, Page, Paging, Reason
from fleet.servers.admin.records.credentials import Anchor, NewAnchor, RemovedAnchor
from fleet.servers.admin.routing import Result, get, post
from fleet.services import anchors


@get("/v1/anchors", Permission.ANCHOR_READ, "Trusted manufacturers' CAs, by name.")
async def list_anchors(context: Context, call: Call, query: Paging) -> Result[Page[Anchor]]:
    """A restricted operator sees those whose models are all its own."""
    found = [a for a in await context.registry.anchors() if all(call.operator.sees(model) for model in a.models)]
    return page_of_all(call, query, found, lambda anchor: anchor.name, Anchor.shown)


@post(
    "/v1/anchors", Permission.ANCHOR_WRITE, "Trust a manufacturer's CA for some models.", status=201, may_not_find=True
)
async def create_anchor(context: Context, call: Call, body: NewAnchor) -> Result[Anchor]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from fleet.ca.trust_anchor import read_trust_anchor

    context.authorities().operators()  # created by now, so that it is not taken for a manufacturer's CA
    own = [each.certificate for each in context.authorities().shown()]
    found = read_trust_anchor(body.certificate.encode(), own, call.now)

    def result_of(change: Change) -> Result[Anchor]:
        return Result(Anchor.shown(inserted(change, DomainAnchor)), 201)

    registry = answering(context.registry, call.once, result_of)
    der = found.public_bytes(Encoding.DER)
    return Result(Anchor.shown(await anchors.add_anchor(registry, body.name, body.models, der, act=call.act)), 201)


@post(
    "/v1/anchors/{anchor}/remove",
    Permission.ANCHOR_WRITE,
    "No longer trust a manufacturer's CA; devices that enrolled with its certificates stay.",
)
async def remove_anchor(context: Context, call: Call, body: Reason = NO_REASON) -> Result[RemovedAnchor]:
    name = call.path["anchor"]
    result: Result[RemovedAnchor] = Result(RemovedAnchor(name=name))
    registry = answering(context.registry, call.once, lambda _: result)
    await anchors.remove_anchor(registry, name, act=call.act, reason=body.reason)
    return result
