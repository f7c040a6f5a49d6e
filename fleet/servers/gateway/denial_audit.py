"""Audit of what devices were not allowed to publish or subscribe to, and of CONNECTs that the gateway itself refuses;
repeats are folded into one row a minute.

One read may bring 30,000 of one kind: of those after the first of a device in one turn of the event loop only the last
is looked at, and the number of the others counts.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from fleet.domain.changes import AuditEntry
from fleet.domain.errors import FleetError
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.outcome_log import TEXT_MAX
from fleet.services.admission import CONNECT, Admission, device_named
from fleet.services.refusal_rows import RefusalRows
from fleet.services.refusals import audit_refusal

AUDITED = frozenset({"mqtt.publish", "mqtt.subscribe"})  # and of deliveries what is dropped since the client is slow


@dataclass(slots=True)
class _Repeats:
    """What came of one kind in this turn after the first: the last of it, and the number of all."""

    peer: Peer
    admission: Admission
    detail: Mapping[str, str]
    number: int = 0


class DenialAudit:
    def __init__(self, registry: Registry, clock: Callable[[], datetime]) -> None:
        self._registry = registry
        self._rows = RefusalRows(registry)
        self._clock = clock
        self._repeats: dict[tuple[str, str, str], _Repeats] = {}  # of this turn, by device, action and code

    def put(self, peer: Peer, admission: Admission, action: str, code: str, detail: Mapping[str, str]) -> None:
        """Audit that the device was refused what `detail` says, unless it was not allowed a delivery."""
        if action not in AUDITED and code != "unread":
            return
        key = (admission.device.id, action, code)
        repeats = self._repeats.get(key)
        if repeats is not None:
            repeats.number += 1
            repeats.peer, repeats.admission, repeats.detail = peer, admission, detail
            return
        if not self._repeats:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._repeats[key] = _Repeats(peer, admission, detail)
        self._put(peer, admission, action, code, detail)

    def _put(
        self, peer: Peer, admission: Admission, action: str, code: str, detail: Mapping[str, str], others: int = 0
    ) -> None:
        device = f"device {admission.device.id}"
        shown = {name: value[:TEXT_MAX] for name, value in detail.items()}
        shown["serial"] = admission.credential.serial
        self._rows.put(AuditEntry(self._clock(), device, action, device, code, peer.address, shown), others)

    def _end_turn(self) -> None:
        ended, self._repeats = self._repeats, {}
        for (_, action, code), repeats in ended.items():
            if repeats.number:
                self._put(repeats.peer, repeats.admission, action, code, repeats.detail, repeats.number - 1)

    async def refused_connect(self, peer: Peer, client_id: str, reason: CloseReason) -> None:
        """Audit that a CONNECT was refused for `reason`, if that calls for it: an admission audits its own refusals."""
        if reason.is_audited:
            refusal = FleetError(reason.code, reason.text)
            await audit_refusal(self._registry, peer, self._clock(), CONNECT, device_named(client_id), refusal)

    async def close(self) -> None:
        """Write what is queued, for a second at most."""
        self._end_turn()
        await self._rows.close()
