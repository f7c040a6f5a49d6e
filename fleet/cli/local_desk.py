"""The desk at a home itself: the services on its registry, as whoever may read its files."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fleet.ca.head_signer import HeadKey
from fleet.ca.view import CaCertificate
from fleet.cli import local_admission, local_bulk, local_holders
from fleet.cli.desk import Held, Order, Taking, Went
from fleet.cli.head_keys import head_key_in
from fleet.cli.home import OPERATOR, OpenHome, opened, run, utc_now
from fleet.cli.issued import Issued, Newest
from fleet.domain.access import Act, Operator, Role
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.audit_proof import Proof
from fleet.domain.changes import AuditRow
from fleet.domain.claim import Claim
from fleet.domain.credential import CredentialKind, Station, Token
from fleet.domain.device import Device, DeviceFilter, Model, Place
from fleet.domain.errors import NotFound
from fleet.domain.idevid import Anchor
from fleet.domain.ports import AuditReader
from fleet.domain.tags import Retag
from fleet.home.ca_listing import forecasted_authorities, shown_authorities
from fleet.home.layout import open_home, settings_of, waiting_limits
from fleet.home.tenants import read_authorities, tenant_names
from fleet.runtime.jobs.retention import policy_of
from fleet.services import approvals, inventory, renewal, revocation, tagging
from fleet.services.audit_proving import prove, seq_of_issue
from fleet.services.audit_search import RowFilter, rows_of
from fleet.services.bulk import Tally
from fleet.services.forecast import Forecast, forecast
from fleet.services.importing import Counts, Importer
from fleet.services.overview import overview
from fleet.services.renewal import Progress
from fleet.services.retention_status import RetentionStatus, retention_status

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

    def all_devices(self, where: DeviceFilter) -> list[Device]:
        return run(local_bulk.devices_of(self.path, where))

    def count_devices(self, order: Order) -> int:
        return run(local_bulk.count_of(self.path, order.where))

    def act_on_many(self, order: Order, count: int, heard: Callable[[Tally], None]) -> Went:
        return run(local_bulk.carried_out(self.path, order, count, heard))

    def stations(self) -> list[tuple[Station, Newest | None]]:
        return self._at(local_holders.stations_of)

    def add_station(
        self, name: str, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta, quota: int
    ) -> Issued:
        return self._at(lambda fleet: local_holders.add_station(fleet, name, models, csr_der, lifetime, quota))

    def set_station_quota(self, name: str, quota: int) -> Station:
        return self._at(lambda fleet: inventory.set_station_quota(fleet.registry, name, quota, act=_act()))

    def revoke_station(self, name: str, reason: str) -> None:
        self._at(lambda fleet: local_holders.revoke_station(fleet, name, reason))

    def claims(self) -> list[Claim]:
        return self._at(lambda fleet: fleet.registry.claims())

    def claim(self, name: str) -> tuple[Claim, list[Held]]:
        return self._at(lambda fleet: local_admission.claim_of(fleet, name))

    def add_claim(self, name: str, model: str, quota: int, csr_der: bytes, lifetime: timedelta) -> tuple[Claim, Issued]:
        return self._at(lambda fleet: local_admission.add_claim(fleet, name, model, quota, csr_der, lifetime))

    def move_claim(self, verb: str, name: str, reason: str) -> None:
        self._at(lambda fleet: local_admission.move_claim(fleet, verb, name, reason))

    def anchors(self) -> list[Anchor]:
        return self._at(lambda fleet: fleet.registry.anchors())

    def add_anchor(self, name: str, models: tuple[str, ...], data: bytes) -> Anchor:
        return self._at(lambda fleet: local_admission.add_anchor(fleet, name, models, data))

    def remove_anchor(self, name: str, reason: str) -> None:
        self._at(lambda fleet: local_admission.remove_anchor(fleet, name, reason))

    def operators(self) -> list[tuple[Operator, Newest | None]]:
        return self._at(local_holders.operators_of)

    def operator(self, name: str) -> tuple[Operator, Newest | None]:
        return self._at(lambda fleet: local_holders.operator_of(fleet, name))

    def add_operator(
        self, name: str, role: Role, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta
    ) -> Issued:
        return self._at(lambda fleet: local_holders.add_operator(fleet, name, role, models, csr_der, lifetime))

    def revoke_operator(self, name: str, reason: str) -> None:
        self._at(lambda fleet: local_holders.revoke_operator(fleet, name, reason))

    def authorities(self) -> list[CaCertificate]:
        return shown_authorities(open_home(self.path))

    def broken_tenants(self) -> dict[str, str]:
        return dict(read_authorities(open_home(self.path)).broken)

    def forecast(self, weeks: int, cliff_percent: float) -> Forecast:
        async def work(fleet: OpenHome) -> Forecast:
            own = forecasted_authorities(fleet.home)
            return await forecast(fleet.registry, own, now=utc_now(), weeks=weeks, cliff_percent=cliff_percent)

        return self._at(work)

    def retention(self) -> RetentionStatus:
        async def work(fleet: OpenHome) -> RetentionStatus:
            return await retention_status(fleet.registry, policy_of(settings_of(fleet.home)))

        return self._at(work)

    def prove(self, what: int | str) -> Proof:
        async def work(fleet: OpenHome) -> Proof:
            seq = what if isinstance(what, int) else await seq_of_issue(fleet.registry, what)
            return await prove(fleet.registry, seq)

        return self._at(work)

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

    @asynccontextmanager
    async def audit_reader(self) -> AsyncIterator[AuditReader]:
        async with opened(self.path) as fleet:
            yield fleet.registry

    def audit_keys(self) -> list[HeadKey] | None:
        public = open_home(self.path).audit_public_key
        return [head_key_in(public)] if public.exists() else []

    @asynccontextmanager
    async def importing(self, bulk: str, counts: Counts) -> AsyncIterator[Taking]:
        async with opened(self.path) as fleet:
            yield Importer(fleet.registry, OPERATOR, utc_now, bulk, counts=counts).take

    def status(self) -> dict[str, Any]:
        async def work(fleet: OpenHome) -> dict[str, Any]:
            return {"registry": await overview(fleet.registry, utc_now(), counts_devices=True)}

        return self._at(work)


def _act() -> Act:
    return Act(OPERATOR, utc_now())


async def _found_model(fleet: OpenHome, name: str) -> Model:
    found = await fleet.registry.model(name)
    if found is None:
        raise NotFound("no-such-model", f"There is no model {name!r}.", "See: fleet model list")
    return found
