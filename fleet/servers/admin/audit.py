"""The routes of the audit: its rows, a proof of one, and all that it takes to verify the whole from afar.

Whoever verifies need believe none of it: rows go into leaves, leaves and hashes into roots, and roots are signed.
"""

from typing import Any

from fleet.domain.audit_log import NODE_LEVELS
from fleet.domain.audit_proof import head_value, proof_text
from fleet.domain.errors import Invalid
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_limit, paged, place
from fleet.servers.admin.result import Result
from fleet.servers.admin.schemas import SEQ_MAX
from fleet.servers.admin.shapes import audit_json
from fleet.services.audit_proving import prove, seq_of_issue

LEVELS = (0, *NODE_LEVELS)
HASHES_MAX = 1024  # a page of 64 KiB of hex


async def list_audit(context: Context, call: Call) -> Result:
    """Oldest first, from behind `after`."""
    values: list[Any] | None = place(call, int)
    after, limit = values[0] if values else call.query.get("after", 0), page_limit(call)
    last = await context.registry.last_audit()
    rows = await context.registry.audit(after=max(0, min(after, last)), limit=limit)
    following = [rows[-1].seq] if rows and rows[-1].seq < last else None
    return paged(call, [audit_json(row) for row in rows], following, last=last)


async def list_heads(context: Context, call: Call) -> Result:
    """Signed heads of more rows than `after`, smallest first."""
    values: list[Any] | None = place(call, int)
    after, limit = values[0] if values else call.query.get("after", 0), page_limit(call)
    heads = await context.registry.audit_heads(after=max(0, min(after, SEQ_MAX)), limit=limit + 1)
    page = heads[:limit]
    following = [page[-1].size] if len(heads) > limit else None
    return paged(call, [head_value(head) for head in page], following)


async def get_sealed(context: Context, call: Call) -> Result:
    """The newest head, and the hashes that stand for all rows under it; nulls before the first."""
    sealed = await context.registry.last_sealed()
    if sealed is None:
        return Result({"head": None, "frontier": None})
    frontier = {"size": sealed.frontier.size, "hashes": sealed.frontier.packed().hex()}
    return Result({"head": head_value(sealed.head), "frontier": frontier})


async def get_hashes(context: Context, call: Call) -> Result:
    """Hashes of `count` perfect subtrees of 2^`level` rows, from number `first` on; fewer when there are no more."""
    level, first, count = call.query.get("level", 0), call.query.get("first", 0), call.query.get("count", HASHES_MAX)
    found = await context.registry.audit_hashes(level, first, count)
    return Result({"hashes": [each.hex() for each in found]})


async def prove_row(context: Context, call: Call) -> Result:
    """Row `seq`, or the row that recorded the issue of certificate `serial`."""
    seq, serial = call.query.get("seq"), call.query.get("serial")
    if (seq is None) == (serial is None):
        raise Invalid("bad-request", "Give seq or serial, one of the two.")
    if seq is None:
        seq = await seq_of_issue(context.registry, serial or "")
    return Result(raw=proof_text(await prove(context.registry, seq)).encode("ascii"))
