"""The desk at a home itself: the services on its registry, as whoever may read its files."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fleet.cli.desk import Held
from fleet.cli.home import OPERATOR, OpenHome, opened, run, utc_now
from fleet.domain.access import Act
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.changes import AuditRow
from fleet.domain.credential import CredentialKind, Token
from fleet.domain.device import Device, DeviceFilter, Model, Place
from fleet.domain.errors import NotFound
from fleet.domain.tags import Retag
from fleet.home import settings_of, waiting_limits
from fleet.services import approvals, inventory, renewal, revocation, tagging
from fleet.services.audit_search import RowFilter, rows_of
from fleet.services.overview import overview
from fleet.services.renewal import Progress
from fleet.tenants import tenant_names

_Result = TypeVar("_Result")

_MOVES: dict[str, Callable[..., Awaitable[Device]]] = {
    "suspend": revocation.suspend,
    "resume": revocation.resume,
    "revoke": revocation.revoke,
    "retire": revocation.retire,
}
_DECISIONS: dict[str, Callable[..., Awaitable[ApprovalRequest]]] = {
    "approve": approvals.approve,
    "deny": approvals.deny,
}


class LocalDesk:
    """A Desk on the home at `path`, which is opened for each call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _at(self, work: Callable[[OpenHome], Awaitable[_Result]]) -> _Result:
        async def opening() -> _Result:
            async with opened(self.path) as fleet:
                return await work(fleet)

        return run(opening())

    def models(self) -> list[Model]:
        return self._at(lambda fleet: fleet.registry.models())

    def model(self, name: str) -> Model:
        return self._at(lambda fleet: _found_model(fleet, name))

    def add_model(self, model: Model) -> None:
        async def work(fleet: OpenHome) -> None:
            await inventory.add_model(fleet.registry, model, act=_act(), tenants=tenant_names(fleet.home))

        self._at(work)

    def change_model(self, name: str, change: Callable[[Model], Model]) -> Model:
        async def work(fleet: OpenHome) -> Model:
            new = change(await _found_model(fleet, name))
            return await inventory.set_model(fleet.registry, new, act=_act(), tenants=tenant_names(fleet.home))

        return self._at(work)

    def renewal_progress(self, model: str) -> Progress:
        return self._at(lambda fleet: renewal.progress(fleet.registry, model))

    def devices(self, where: DeviceFilter, after: Place, limit: int) -> list[Device]:
        return self._at(lambda fleet: fleet.registry.devices(where, after=after, limit=limit))

    def device(self, id_text: str) -> tuple[Device, list[Held]]:
        async def work(fleet: OpenHome) -> tuple[Device, list[Held]]:
            found = await fleet.registry.device(id_text)
            if found is None:
                raise NotFound("no-such-device", f"There is no device {id_text!r}.", "See: fleet device list")
            held = [c for c in await fleet.registry.credentials(id_text) if c.kind is CredentialKind.DEVICE]
            return found, [Held(c.serial, c.state, c.not_before, c.not_after, c.fingerprint) for c in held]

        return self._at(work)

    def add_device(self, id_text: str, model: str, hardware_serial: str, labels: Retag | None = None) -> Device:
        tags, groups = (labels.tags, labels.join) if labels is not None else ((), ())
        return self._at(
            lambda fleet: inventory.add_device(
                fleet.registry,
                id_text,
                model,
                hardware_serial=hardware_serial,
                tags=tags,
                groups=groups,
                act=_act(),
            )
        )

    def tag_device(self, id_text: str, retag: Retag, reason: str) -> Device:
        return self._at(lambda fleet: tagging.tag_device(fleet.registry, id_text, retag, act=_act(), reason=reason))

    def move_device(self, verb: str, id_text: str, reason: str) -> Device:
        return self._at(lambda fleet: _MOVES[verb](fleet.registry, id_text, act=_act(), reason=reason))

    def tokens(self) -> list[Token]:
        return self._at(lambda fleet: fleet.registry.tokens())

    def create_token(self, device: str | None, model: str | None, uses: int, ttl: timedelta) -> tuple[Token, str]:
        return self._at(
            lambda fleet: inventory.create_token(
                fleet.registry, device=device, model=model, uses=uses, ttl=ttl, act=_act()
            )
        )

    def revoke_token(self, token_id: str) -> None:
        self._at(lambda fleet: inventory.revoke_token(fleet.registry, token_id, act=_act()))

    def requests(self, where: RequestFilter, after: str, limit: int) -> list[ApprovalRequest]:
        return self._at(lambda fleet: fleet.registry.requests(where, now=utc_now(), after=after, limit=limit))

    def request(self, request_id: str) -> ApprovalRequest:
        return self._at(lambda fleet: approvals.known_request(fleet.registry, request_id, act=_act()))

    def decide_request(self, verb: str, request_id: str, reason: str) -> ApprovalRequest:
        async def work(fleet: OpenHome) -> ApprovalRequest:
            limits = waiting_limits(settings_of(fleet.home))
            return await _DECISIONS[verb](fleet.registry, request_id, act=_act(), reason=reason, limits=limits)

        return self._at(work)

    def audit(self, where: RowFilter, after: int | None, limit: int) -> list[AuditRow]:
        return self._at(lambda fleet: rows_of(fleet.registry, where, after, limit))

    def status(self) -> dict[str, Any]:
        async def work(fleet: OpenHome) -> dict[str, Any]:
            return {"registry": await overview(fleet.registry, utc_now())}

        return self._at(work)


def _act() -> Act:
    return Act(OPERATOR, utc_now())


async def _found_model(fleet: OpenHome, name: str) -> Model:
    found = await fleet.registry.model(name)
    if found is None:
        raise NotFound("no-such-model", f"There is no model {name!r}.", "See: fleet model list")
    return found
