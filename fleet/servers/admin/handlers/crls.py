"""Published CRLs: what relying parties fetch from the publish listener."""

from datetime import timedelta

from msgspec import UNSET

from fleet.domain.access import Permission
from fleet.domain.changes import Change, made_by
from fleet.domain.distribution import crl_path
from fleet.domain.errors import NotFound
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import page_of_all
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.crls import AS_SET, Crl, CrlsToIssue, WholeCrl
from fleet.servers.admin.routing import AccessLevel, Result, get, post


@get("/v1/crls", AccessLevel.OPERATOR, "Published CRLs, by path.")
async def list_crls(context: Context, call: Call, query: Paging) -> Result[Page[Crl]]:
    return page_of_all(call, query, await context.registry.crl_heads(), lambda head: head.path, Crl.shown)


@get("/v1/crls/{ca}/{crl}", AccessLevel.OPERATOR, "One CRL.")
async def get_crl(context: Context, call: Call) -> Result[WholeCrl]:
    found = await context.registry.crl(crl_path(call.path["ca"], call.path["crl"]))
    if found is None:
        raise NotFound("no-such-crl", f"There is no CRL {call.path['crl']} of a CA {call.path['ca']}.")
    return Result(WholeCrl.whole(found))


@post(
    "/v1/crls/issue",
    Permission.CRL_ISSUE,
    "Sign every CRL now whose CA's key is on this server, with all that was revoked until now.",
    is_one_change=False,
)
async def issue_crls(context: Context, call: Call, body: CrlsToIssue = AS_SET) -> Result[Page[Crl]]:
    made = await context.issue_crls(call.now, None if body.hours is UNSET else timedelta(hours=body.hours))
    entry = made_by(call.act, "crl.issue", "fleet", count=str(len(made)))
    await context.registry.commit(Change(entry))
    return Result(Page(items=[Crl.shown(head) for head in made], next=None))
