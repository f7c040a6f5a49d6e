"""The desk from afar: the admin API of a served fleet, as the operator whose certificate is shown."""

import asyncio
import functools
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fleet.ca.head_signer import HeadKey
from fleet.ca.view import CaCertificate
from fleet.cli import remote_admission, remote_bulk, remote_holders
from fleet.cli.desk import Held, Order, Taking, Went
from fleet.cli.https import Api
from fleet.cli.issued import Issued, Newest
from fleet.cli.remote_admission import RemoteImporter
from fleet.cli.remote_audit import RemoteAudit
from fleet.cli.told import device_from, held_from, model_body, model_from, request_from, time_from, token_from
from fleet.domain.access import Operator, Role
from fleet.domain.approval import ApprovalRequest, RequestFilter
from fleet.domain.audit_proof import Proof, check_path, read_proof
from fleet.domain.changes import AuditRow
from fleet.domain.claim import Claim
from fleet.domain.credential import Station, Token
from fleet.domain.device import (
    Device,
    DeviceFilter,
    Model,
    Place,
    device_id,
    plain_name,
)
from fleet.domain.device_filter import place_text
from fleet.domain.errors import NotFound
from fleet.domain.idevid import Anchor
from fleet.domain.model_rules import rules_of
from fleet.domain.ports import AuditReader
from fleet.domain.tags import Retag, checked_groups
from fleet.services.audit_search import RowFilter, rows_of
from fleet.services.bulk import Tally
from fleet.services.forecast import Forecast, Warned, Week
from fleet.services.importing import Counts
from fleet.services.inventory import checked_model
from fleet.services.renewal import Progress
from fleet.services.retention import Policy
from fleet.services.retention_status import RetentionStatus

PAGE_MAX = 1000

Json = Mapping[str, Any]


class RemoteDesk:
    """A Desk over the admin API at `url`.

    Raises: Invalid (`bad-url`, `bad-certificate`); and each call Unavailable (`cannot-reach`, `bad-answer`).
    """

    def __init__(self, url: str, cert: Path, key: Path | None, ca: Path | None) -> None:
        self._open = functools.partial(Api, url, cert, key, ca)
        self._opened: Api | None = None

    @property
    def _api(self) -> Api:
        """Made at the first call, so that what is wrong with the files is told as that call's failure."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def models(self) -> list[Model]:
        return [model_from(each) for each in self._api.items(f"/v1/models?limit={PAGE_MAX}")]

    def model(self, name: str) -> Model:
        with _named("model", repr(name[:80])):
            return model_from(self._api.ask("GET", _model_path(name))[0])

    def add_model(self, model: Model) -> None:
        self._api.ask("POST", "/v1/models", {"name": checked_model(model).name, **model_body(model)})

    def change_model(self, name: str, change: Callable[[Model], Model]) -> Model:
        path = _model_path(name)
        with _named("model", repr(name[:80])):
            found, etag = self._api.ask("GET", path)
        return model_from(self._api.ask("PATCH", path, model_body(change(model_from(found))), {"If-Match": etag})[0])

    def renewal_progress(self, model: str) -> Progress:
        with _named("model", repr(model[:80])):
            found = self._api.ask("GET", f"{_model_path(model)}/renewal")[0]
        rules = rules_of({"renewal": {"campaign": found["campaign"]}})
        return Progress(found["model"], rules.renewal.campaign, found["devices"], found["renewed"])

    def devices(self, where: DeviceFilter, after: Place, limit: int) -> list[Device]:
        query = [("limit", str(min(limit, PAGE_MAX))), *_query(where)]
        if after.id:
            query.append(("after", place_text(after)))
        found = (device_from(each) for each in self._api.items(f"/v1/devices?{urlencode(query)}"))
        return list(itertools.islice(found, limit))

    def device(self, id_text: str) -> tuple[Device, list[Held]]:
        path = f"/v1/devices/{quote(id_text, safe='')}"
        with _named("device", repr(id_text)):
            found, _ = self._api.ask("GET", path)
        return device_from(found), [held_from(each) for each in self._api.items(f"{path}/credentials?limit={PAGE_MAX}")]

    def add_device(self, id_text: str, model: str, hardware_serial: str, labels: Retag | None = None) -> Device:
        tags, groups = (labels.tags, labels.join) if labels is not None else ((), ())
        body = {
            "id": device_id(id_text),
            "model": model,
            "hardware_serial": hardware_serial,
            "tags": dict(tags),
            "groups": checked_groups(groups),
        }
        return device_from(self._api.ask("POST", "/v1/devices", body)[0])

    def tag_device(self, id_text: str, retag: Retag, reason: str) -> Device:
        path = _device_path(id_text)
        with _named("device", id_text):
            found, etag = self._api.ask("GET", path)
        tags, groups = retag.applied(device_from(found))
        changes = {"tags": {**dict.fromkeys(found["tags"]), **dict(tags)}, "groups": list(groups), "reason": reason}
        return device_from(self._api.ask("PATCH", path, changes, {"If-Match": etag})[0])

    def move_device(self, verb: str, id_text: str, reason: str) -> Device:
        path = f"{_device_path(id_text)}/{verb}"
        with _named("device", id_text):
            return device_from(self._api.ask("POST", path, {"reason": reason})[0])

    def all_devices(self, where: DeviceFilter) -> list[Device]:
        query = urlencode([("limit", str(PAGE_MAX)), *_query(where)])
        return [device_from(each) for each in self._api.items(f"/v1/devices?{query}")]

    def count_devices(self, order: Order) -> int:
        return remote_bulk.count_of(self._api, order)

    def act_on_many(self, order: Order, count: int, heard: Callable[[Tally], None]) -> Went:
        return remote_bulk.carried_out(self._api, order, count, heard)

    def stations(self) -> list[tuple[Station, Newest | None]]:
        return remote_holders.stations_of(self._api)

    def add_station(
        self, name: str, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta, quota: int
    ) -> Issued:
        return remote_holders.add_station(self._api, name, models, csr_der, lifetime, quota)

    def set_station_quota(self, name: str, quota: int) -> Station:
        with _named("station", repr(name[:80])):
            return remote_holders.set_station_quota(self._api, name, quota)

    def revoke_station(self, name: str, reason: str) -> None:
        with _named("station", repr(name[:80])):
            remote_holders.revoke_station(self._api, name, reason)

    def claims(self) -> list[Claim]:
        return remote_admission.claims_of(self._api)

    def claim(self, name: str) -> tuple[Claim, list[Held]]:
        with _named("claim", repr(name[:80])):
            found, held = remote_admission.claim_of(self._api, name)
        return found, [held_from(each) for each in held]

    def add_claim(self, name: str, model: str, quota: int, csr_der: bytes, lifetime: timedelta) -> tuple[Claim, Issued]:
        return remote_admission.add_claim(self._api, name, model, quota, csr_der, lifetime)

    def move_claim(self, verb: str, name: str, reason: str) -> None:
        with _named("claim", repr(name[:80])):
            remote_admission.move_claim(self._api, verb, name, reason)

    def anchors(self) -> list[Anchor]:
        return remote_admission.anchors_of(self._api)

    def add_anchor(self, name: str, models: tuple[str, ...], data: bytes) -> Anchor:
        return remote_admission.add_anchor(self._api, name, models, data)

    def remove_anchor(self, name: str, reason: str) -> None:
        with _named("anchor", repr(name[:80])):
            remote_admission.remove_anchor(self._api, name, reason)

    def operators(self) -> list[tuple[Operator, Newest | None]]:
        return remote_holders.operators_of(self._api)

    def operator(self, name: str) -> tuple[Operator, Newest | None]:
        with _named("operator", repr(name[:80])):
            return remote_holders.operator_of(self._api, name)

    def add_operator(
        self, name: str, role: Role, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta
    ) -> Issued:
        return remote_holders.add_operator(self._api, name, role, models, csr_der, lifetime)

    def revoke_operator(self, name: str, reason: str) -> None:
        with _named("operator", repr(name[:80])):
            remote_holders.revoke_operator(self._api, name, reason)

    def authorities(self) -> list[CaCertificate]:
        return remote_holders.authorities_of(self._api)

    def broken_tenants(self) -> dict[str, str]:
        return {}  # the server's log tells of them

    def forecast(self, weeks: int, cliff_percent: float) -> Forecast:
        found, _ = self._api.ask("GET", f"/v1/forecast?weeks={weeks}&cliff_percent={cliff_percent}")
        return Forecast(
            found["devices"],
            found["overdue"],
            tuple(
                Week(time_from(f"{w['week']}T00:00:00Z"), w["devices"], w["tokens"], tuple(w["authorities"]))
                for w in found["weeks"]
            ),
            tuple(Warned(each["code"], each["message"]) for each in found["warnings"]),
        )

    def retention(self) -> RetentionStatus:
        v, _ = self._api.ask("GET", "/v1/retention")
        policy = Policy(v["events_days"], v["audit_days"], v["expired_credentials_days"])
        return RetentionStatus(policy, v["first_event"], v["last_event"], v["first_audit"], v["last_audit"])

    def prove(self, what: int | str) -> Proof:
        query = f"seq={what}" if isinstance(what, int) else f"serial={what}"
        found, _ = self._api.ask("GET", f"/v1/audit/proof?{query}")
        proof = read_proof(json.dumps(found).encode("ascii"))
        check_path(proof)
        return proof

    def tokens(self) -> list[Token]:
        return [token_from(each) for each in self._api.items(f"/v1/tokens?limit={PAGE_MAX}")]

    def create_token(self, device: str | None, model: str | None, uses: int, ttl: timedelta) -> tuple[Token, str]:
        scope = {"device": device_id(device)} if device is not None else {"model": model}
        body = {**scope, "uses": uses, "ttl_seconds": int(ttl.total_seconds())}
        made, _ = self._api.ask("POST", "/v1/tokens", body)
        return token_from(made), made["token"]

    def revoke_token(self, token_id: str) -> None:
        with _named("token", repr(token_id[:80])):
            self._api.ask("POST", f"/v1/tokens/{quote(token_id, safe='')}/revoke")

    def requests(self, where: RequestFilter, after: str, limit: int) -> list[ApprovalRequest]:
        named = (("state", where.state), ("model", where.model), ("device", where.device_id))
        query = [("limit", str(PAGE_MAX)), *((name, str(value)) for name, value in named if value is not None)]
        found = (request_from(each) for each in self._api.items(f"/v1/requests?{urlencode(query)}"))
        return list(itertools.islice((each for each in found if each.id > after), limit))

    def request(self, request_id: str) -> ApprovalRequest:
        with _named("request", repr(request_id[:80])):
            return request_from(self._api.ask("GET", f"/v1/requests/{quote(request_id, safe='')}")[0])

    def decide_request(self, verb: str, request_id: str, reason: str) -> ApprovalRequest:
        path = f"/v1/requests/{quote(request_id, safe='')}/{verb}"
        with _named("request", repr(request_id[:80])):
            return request_from(self._api.ask("POST", path, {"reason": reason})[0])

    def audit(self, where: RowFilter, after: int | None, limit: int) -> list[AuditRow]:
        return asyncio.run(rows_of(RemoteAudit(self._api), where, after, limit))

    @asynccontextmanager
    async def audit_reader(self) -> AsyncIterator[AuditReader]:
        yield RemoteAudit(self._api)

    def audit_keys(self) -> list[HeadKey] | None:
        return None  # whoever holds the rows must not vouch for the key as well

    @asynccontextmanager
    async def importing(self, bulk: str, counts: Counts) -> AsyncIterator[Taking]:
        yield RemoteImporter(self._api, bulk, counts).take

    def status(self) -> dict[str, Any]:
        value, _ = self._api.ask("GET", "/v1/status?devices=count")
        return dict(value)


@contextmanager
def _named(what: str, shown: str) -> Iterator[None]:
    """What is not there is told in the words in which a home tells it."""
    try:
        yield
    except NotFound as error:
        raise NotFound(f"no-such-{what}", f"There is no {what} {shown}.", f"See: fleet {what} list") from error


def _model_path(name: str) -> str:
    return f"/v1/models/{plain_name(name, 'model')}"


def _device_path(text: str) -> str:
    return f"/v1/devices/{quote(device_id(text), safe='')}"


def _query(where: DeviceFilter) -> list[tuple[str, str]]:
    named = (
        ("model", where.model),
        ("state", where.state.value if where.state else None),
        ("group", where.group),
        ("expires_before", where.expires_before.isoformat() if where.expires_before else None),
    )
    return [*((name, value) for name, value in named if value is not None), *(("tag", ":".join(t)) for t in where.tags)]
