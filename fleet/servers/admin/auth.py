"""Authentication by client certificate, and authorization by permission.

A certificate counts by the CA at the end of its chain and by the registry; both must agree. A transport that has
authenticated its client by itself, in process at a home, says so in the request.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fleet.domain.access import Permission, demand, operator_actor
from fleet.domain.credential import CredentialKind
from fleet.domain.errors import FleetError, Refused, Unauthenticated, Unavailable
from fleet.servers.admin.context import Call, Context
from fleet.servers.admin.messages import Caller, Request
from fleet.servers.admin.routing import AccessLevel, Route
from fleet.services.identity import identify, identify_operator
from fleet.services.refusals import audit_refusal

if TYPE_CHECKING:
    from cryptography import x509


async def authenticate(context: Context, request: Request, route: Route) -> Caller | None:
    """The client that calls `route`; None where anybody may.

    Raises: Unauthenticated, Refused: after an audit row is written, one a minute for each kind. Unavailable.
    """
    if route.access is AccessLevel.ANYBODY:
        return None
    if request.caller is not None:
        return request.caller
    async with refusals_audited(context, request, route):
        chain, now = request.peer.chain_der, context.clock()
        if chain and chain[-1] == _der(context.authorities().operators()):
            operator, credential = await identify_operator(context.registry, request.peer, now)
            return Caller(operator_actor(operator.name), operator, credential)
        credential = (await identify(context.registry, request.peer, now)).credential
        return Caller(f"{credential.kind} {credential.holder}", None, credential)


def _der(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


async def authorize(context: Context, request: Request, route: Route, caller: Caller) -> None:
    """Return when `caller` may call `route`.

    Raises: Unauthenticated, Refused: after an audit row is written, one a minute for each kind.
    """
    async with refusals_audited(context, request, route):
        credential = caller.credential
        if route.access is AccessLevel.HOLDER:
            if credential is None:
                raise Unauthenticated("no-certificate", "A client certificate is needed.")
            return
        if route.for_stations and credential is not None and credential.kind is CredentialKind.STATION:
            return
        if caller.operator is None:
            kind = credential.kind if credential is not None else "client"
            raise Refused("not-for-you", f"A {kind}'s certificate is not accepted for this path.")
        if isinstance(route.access, Permission):
            demand(caller.operator, route.access)


@asynccontextmanager
async def refusals_audited(
    context: Context, request: Request, route: Route, of: type[FleetError] = FleetError
) -> AsyncIterator[None]:
    """Refusals of kind `of` in the block get an audit row, one a minute for each kind."""
    try:
        yield
    except Unavailable:
        raise
    except of as refusal:
        subject = f"{route.method} {route.template}"
        await audit_refusal(context.registry, request.peer, context.clock(), "api.call", subject, refusal)
        raise


async def must_be_in_service(context: Context, call: Call) -> None:
    """Check that the operator who calls is so still: what takes long asks again, before each part of it.

    Raises: Refused (`certificate-revoked` and the like), after an audit row is written. Unavailable.
    """
    if call.caller is None or call.caller.credential is None:
        return  # a user of this machine
    try:
        await identify_operator(context.registry, call.request.peer, context.clock())
    except Refused as refusal:
        await audit_partial_refusal(context, call, refusal)
        raise


async def audit_partial_refusal(context: Context, call: Call, refusal: Refused) -> None:
    """Audit the refusal of a part of a call: one row a minute for each kind."""
    subject = f"{call.request.method} {call.request.path}"
    await audit_refusal(context.registry, call.request.peer, call.now, "api.call", subject, refusal)
