"""The audit: its rows, a proof of one, and what it takes to verify the whole without trusting the server: rows hash to
leaves, leaves to roots, and roots are signed.
"""

from fleet.domain.access import Permission
from fleet.domain.audit_proof import proof_text
from fleet.domain.errors import Invalid
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, position
from fleet.servers.admin.records.audit import (
    AuditPage,
    AuditQuery,
    AuditRow,
    Frontier,
    Hashes,
    HashesQuery,
    HeadQuery,
    Proof,
    ProofQuery,
    Sealed,
    TreeHead,
)
from fleet.servers.admin.records.base import SEQUENCE_MAX, Page
from fleet.servers.admin.routing import Result, get
from fleet.services.audit_proving import prove, seq_of_issue


@get("/v1/audit", Permission.AUDIT_READ, "Who did what, oldest first.")
async def list_audit(context: Context, call: Call, query: AuditQuery) -> Result[AuditPage]:
    values = position(call, query, int)
    after = values[0] if values else query.after or 0
    last = await context.registry.last_audit()
    rows = await context.registry.audit(after=max(0, min(after, last)), limit=query.limit)
    following = [rows[-1].seq] if rows and rows[-1].seq < last else None
    result = paged(call, query, [AuditRow.shown(row) for row in rows], following)
    return Result(AuditPage(items=result.body.items, next=result.body.next, last=last), headers=result.headers)


@get("/v1/audit/heads", Permission.AUDIT_READ, "Signed heads of the audit's tree, smallest first.")
async def list_heads(context: Context, call: Call, query: HeadQuery) -> Result[Page[TreeHead]]:
    values = position(call, query, int)
    after = values[0] if values else query.after or 0
    heads = await context.registry.audit_heads(after=max(0, min(after, SEQUENCE_MAX)), limit=query.limit + 1)
    page = heads[: query.limit]
    following = [page[-1].size] if len(heads) > query.limit else None
    return paged(call, query, [TreeHead.shown(head) for head in page], following)


@get("/v1/audit/sealed", Permission.AUDIT_READ, "The newest signed head, and the hashes to append to it.")
async def get_sealed(context: Context, call: Call) -> Result[Sealed]:
    sealed = await context.registry.last_sealed()
    if sealed is None:
        return Result(Sealed(head=None, frontier=None))
    frontier = Frontier(size=sealed.frontier.size, hashes=sealed.frontier.packed().hex())
    return Result(Sealed(head=TreeHead.shown(sealed.head), frontier=frontier))


@get(
    "/v1/audit/hashes",
    Permission.AUDIT_READ,
    "Hashes of the audit's tree: of rows, or of perfect subtrees of 2^level rows.",
)
async def get_hashes(context: Context, call: Call, query: HashesQuery) -> Result[Hashes]:
    """Fewer than `count` when there are no more."""
    found = await context.registry.audit_hashes(query.level, query.first, query.count)
    return Result(Hashes(hashes=[each.hex() for each in found]))


@get(
    "/v1/audit/proof",
    Permission.AUDIT_READ,
    "Proof that a row is in the audit: row seq, or the one of the issue of certificate serial.",
    may_not_find=True,
)
async def prove_row(context: Context, call: Call, query: ProofQuery) -> Result[Proof]:
    if (query.seq is None) == (query.serial is None):
        raise Invalid("bad-request", "Give seq or serial, one of the two.")
    seq = query.seq if query.seq is not None else await seq_of_issue(context.registry, query.serial or "")
    return Result(raw=proof_text(await prove(context.registry, seq)).encode("ascii"))
