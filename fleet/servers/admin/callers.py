"""Who calls: by the certificate presented, by the CA at the end of its chain, and by the registry; all must agree."""

from fleet.domain.access import Permission, demand
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.credential import CredentialKind
from fleet.domain.errors import FleetError, Refused, Unavailable
from fleet.servers.admin.parts import Caller, Parts
from fleet.servers.admin.routes import Door, Route
from fleet.servers.http import Exchange
from fleet.services.identity import identify, identify_operator, shown_by
from fleet.services.refusals import refusals_of


async def admit(parts: Parts, exchange: Exchange, route: Route) -> Caller | None:
    """Whoever calls `route`, when it may; None where anybody may.

    Raises: Unauthenticated, Refused: after an audit row is written, one a minute for each kind. Unavailable.
    """
    if route.access is Door.ANYBODY:
        return None
    try:
        caller = await _caller(parts, exchange)
        exchange.device = caller.credential.holder
        _demand(caller, route)
    except Unavailable:
        raise
    except FleetError as refusal:
        await _audit_refusal(parts, exchange, route, refusal)
        raise
    return caller


async def _caller(parts: Parts, exchange: Exchange) -> Caller:
    chain, now = exchange.peer.chain_der, parts.clock()
    if chain and chain[-1] == parts.operators_der:
        operator, credential = await identify_operator(parts.registry, exchange.peer, now)
        return Caller(credential, operator)
    facts = await identify(parts.registry, exchange.peer, now)
    return Caller(facts.credential, None)


def _demand(caller: Caller, route: Route) -> None:
    if route.access is Door.HOLDER:
        return
    if route.for_stations and caller.credential.kind is CredentialKind.STATION:
        return
    if caller.operator is None:
        raise Refused("not-for-you", f"A {caller.credential.kind}'s certificate does not open this path.")
    if isinstance(route.access, Permission):
        demand(caller.operator, route.access)


async def _audit_refusal(parts: Parts, exchange: Exchange, route: Route, refusal: FleetError) -> None:
    """The refusal stands whether or not its row could be written: Unavailable is not allowed to hide it."""
    try:
        actor, detail = await shown_by(parts.registry, exchange.peer)
        subject = f"{route.method} {route.template}"
        entry = AuditEntry(parts.clock(), actor, "api.call", subject, refusal.code, exchange.peer.address, detail)
        row = refusals_of(parts.registry).row(entry)  # who keeps knocking fills one row a minute
        if row is not None:
            await parts.registry.commit(Change(row))
    except Unavailable as error:
        refusal.add_note(f"The audit row could not be written: {error.message}")
