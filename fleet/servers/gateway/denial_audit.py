"""Audit of what devices were not allowed to publish or subscribe to, and of CONNECTs that are refused before their
admission; repeats are folded into one row a minute.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from fleet.domain.changes import AuditEntry
from fleet.domain.errors import FleetError
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.gateway.close_reasons import FEED_DOWN, CloseReason
from fleet.servers.gateway.outcome_log import TEXT_MAX
from fleet.services.admission import CONNECT, Admission, device_named
from fleet.services.refusal_rows import RefusalRows
from fleet.services.refusals import audit_refusal

AUDITED = frozenset({"mqtt.publish", "mqtt.subscribe"})  # not a delivery


class DenialAudit:
    def __init__(self, registry: Registry, clock: Callable[[], datetime]) -> None:
        self._registry = registry
        self._rows = RefusalRows(registry)
        self._clock = clock

    def put(self, peer: Peer, admission: Admission, action: str, code: str, detail: Mapping[str, str]) -> None:
        """Audit that the device was refused what `detail` says, unless `action` is a delivery."""
        if action not in AUDITED:
            return
        device = f"device {admission.device.id}"
        shown = {name: value[:TEXT_MAX] for name, value in detail.items()}
        shown["serial"] = admission.credential.serial
        self._rows.put(AuditEntry(self._clock(), device, action, device, code, peer.address, shown))

    async def refused_connect(self, peer: Peer, client_id: str, reason: CloseReason) -> None:
        """Audit that a CONNECT was refused for what is in it, before an admission, which audits its own refusals."""
        if reason is not FEED_DOWN:
            refusal = FleetError(reason.code, reason.text)
            await audit_refusal(self._registry, peer, self._clock(), CONNECT, device_named(client_id), refusal)

    async def close(self) -> None:
        """Write what is queued, for a second at most."""
        await self._rows.close()
