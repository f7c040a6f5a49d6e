"""The routes of anchors: makers' CAs, by whose certificates a device may earn a first one of ours."""

from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.trust_anchor import read_maker_ca
from fleet.domain.changes import Change
from fleet.domain.writes import AddAnchor
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all, paged
from fleet.servers.admin.idempotency import answering
from fleet.servers.admin.result import Result
from fleet.servers.admin.shapes import anchor_json
from fleet.services import anchors


async def list_anchors(context: Context, call: Call) -> Result:
    """An operator who is held to models sees those that stand for these and nothing else."""
    found = [a for a in await context.registry.anchors() if all(call.operator.sees(model) for model in a.models)]
    page, more = page_of_all(call, found, lambda anchor: anchor.name)
    return paged(call, [anchor_json(each) for each in page], [page[-1].name] if more else None)


async def create_anchor(context: Context, call: Call) -> Result:
    body = call.body
    context.authorities().operators()  # made by now, so that it is told from makers' CAs
    own = [each.certificate for each in context.authorities().shown()]
    found = read_maker_ca(body["certificate"].encode(), own, call.now)

    def reply_of(change: Change) -> Result:
        return Result(anchor_json(next(w.anchor for w in change.writes if isinstance(w, AddAnchor))), 201)

    keeping = answering(context.registry, call.once, reply_of)
    der = found.public_bytes(Encoding.DER)
    return Result(anchor_json(await anchors.add_anchor(keeping, body["name"], body["models"], der, act=call.act)), 201)


async def remove_anchor(context: Context, call: Call) -> Result:
    name = call.path["anchor"]
    reply = Result({"name": name})
    keeping = answering(context.registry, call.once, lambda _: reply)
    await anchors.remove_anchor(keeping, name, act=call.act, reason=(call.body or {}).get("reason", ""))
    return reply
