"""Certificates: the caller's own, any by its serial number, and the fleet's CAs."""

import ssl
from collections.abc import Sequence

from msgspec import UNSET

from fleet.domain import credential as domain
from fleet.domain.access import Operator, Permission
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.crl import Revocation
from fleet.domain.errors import NotFound
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.cursors import paged, slice_of
from fleet.servers.admin.records.base import Page, Paging
from fleet.servers.admin.records.credentials import Credential
from fleet.servers.admin.records.holders import Authority, Whoami
from fleet.servers.admin.routing import DER, JSON, PEM, AccessLevel, Result, get


@get("/v1/whoami", AccessLevel.HOLDER, "The certificate presented, and its holder.")
async def whoami(context: Context, call: Call) -> Result[Whoami]:
    assert call.caller is not None  # noqa: S101  the route asks for a holder
    credential, operator = call.caller.credential, call.caller.operator
    rights = (operator.role, list(operator.models)) if operator is not None else (UNSET, UNSET)
    return Result(Whoami.of(credential, role=rights[0], models=rights[1]))


@get(
    "/v1/credentials/{serial}",
    Permission.CREDENTIAL_READ,
    "One certificate: as JSON, PEM or DER, by Accept.",
    media_types=(JSON, PEM, DER),
    has_etag=True,
)
async def get_credential(context: Context, call: Call) -> Result[Credential]:
    serial = call.path["serial"].lower()
    credential = await context.registry.credential(serial)
    if credential is None or not await _may_see(context, call.operator, credential):
        raise NotFound("no-such-credential", f"There is no certificate with serial {serial}.")
    if call.media_type == DER:
        return Result(media_type=DER, raw=credential.der)
    if call.media_type == PEM:
        return Result(media_type=PEM, raw=ssl.DER_cert_to_PEM_cert(credential.der).encode())
    return Result(Credential.shown(credential, await _listed(context, credential)))


async def credentials_page(
    context: Context, call: Call, query: Paging, held: Sequence[domain.Credential]
) -> Result[Page[Credential]]:
    """A page of `held`, with what CRLs say of those that are revoked."""
    page, following = slice_of(call, query, held, lambda credential: credential.serial)
    shown = [Credential.shown(c, await _listed(context, c)) for c in page]
    return paged(call, query, shown, following)


async def _listed(context: Context, credential: domain.Credential) -> Revocation | None:
    is_revoked = credential.state is CredentialState.REVOKED
    return await context.registry.revocation(credential.serial) if is_revoked else None


async def _may_see(context: Context, operator: Operator, credential: domain.Credential) -> bool:
    """A restricted operator sees certificates of its models' devices, and no others."""
    if not operator.models:
        return True
    device = await context.registry.device(credential.holder) if credential.kind is CredentialKind.DEVICE else None
    return device is not None and operator.sees(device.model)


@get("/v1/authorities", AccessLevel.OPERATOR, "The fleet's CAs: the root that devices trust, and the CAs below it.")
async def list_authorities(context: Context, call: Call) -> Result[Page[Authority]]:
    return Result(Page(items=[Authority.shown(each) for each in context.authorities().shown()], next=None))
