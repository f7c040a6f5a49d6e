"""Log lines, counters and presence of one session, and how long it had to wait and has lived.

`device` and `serial` are what the certificate proves, from the end of the handshake on; `client_id` is what a CONNECT
claims, where that differs.
"""

from typing import Protocol

from fleet.domain.issuance_context import COMMON_NAME
from fleet.domain.peer import Peer
from fleet.domain.presence import ClientSession
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.services.admission import Admission
from fleet.services.presence import Presence
from fleet.wire.certificate_fields import certificate_fields
from fleet.wire.errors import WireError
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect
from fleet.wire.names import subject_values


class Records(Protocol):
    """Where it is recorded."""

    @property
    def outcomes(self) -> OutcomeLog: ...
    @property
    def presence(self) -> Presence | None:
        """None: who is connected is not recorded."""


class SessionLog:
    """`now` is the loop's time in seconds, from the end of the TLS handshake."""

    __slots__ = ("_accepted_at", "_delay", "_outcomes", "_peer", "_presence", "opened_at", "session")

    def __init__(self, records: Records, peer: Peer, now: float) -> None:
        self._outcomes = records.outcomes
        self._presence = records.presence
        self._peer = peer
        self.opened_at = now
        self._accepted_at: float | None = None
        self._delay = 0.0
        self.session: ClientSession | None = None
        """As its presence is recorded, from CONNACK to its close."""

    def delayed(self, seconds: float) -> None:
        """Its CONNECT waits for so long, since others with its certificate were refused."""
        self._delay = seconds

    def accepted(self, now: float, connect: Connect, admission: Admission | None) -> None:
        """CONNACK 0 is there."""
        self._accepted_at = now
        if self._presence is not None and admission is not None:
            mqtt = "5.0" if connect.version == V5 else "3.1.1"
            self.session = self._presence.opened(admission.device.id, connect.client_id, self._peer, mqtt)

    def closed(self, code: str, now: float) -> float | None:
        """It has been closed for the reason `code`: the seconds since CONNACK 0; None: there was none."""
        if self._presence is not None and self.session is not None:
            self._presence.ended(self.session, code)
            self.session = None
        return None if self._accepted_at is None else now - self._accepted_at

    def record(
        self, event: str, code: str, now: float, client_id: str, admission: Admission | None, **detail: str
    ) -> None:
        """Count and log one outcome, with its `detail`."""
        delay = {}
        if self._delay and event == "mqtt.connect":
            delay["delayed_ms"] = round(self._delay * 1000)
            self._outcomes.count("mqtt.delay.applied")
        is_authenticated = self._peer.fingerprint is not None
        if not self._outcomes.admits(event, code, now, self._peer.source, authenticated=is_authenticated):
            return
        device, serial = (
            (admission.device.id, admission.credential.serial) if admission is not None else _certified(self._peer)
        )
        self._outcomes.write(
            event,
            code,
            device=device,
            serial=serial,
            client_id="" if client_id == device else client_id,
            address=self._peer.address,
            **detail,
            ms=round((now - self.opened_at) * 1000),
            **delay,
        )


def _certified(peer: Peer) -> tuple[str, str]:
    """Holder and serial number of the certificate that TLS has verified; "" for what it does not hold."""
    if peer.certificate_der is None:
        return "", ""
    try:
        fields = certificate_fields(peer.certificate_der)
        serial = f"{fields.serial_number:x}"
        # In a manufacturer's certificate the same attributes have other meanings.
        names = dict(subject_values(fields.subject)) if peer.tenant is not None else {}
    except WireError:
        return "", ""
    return names.get(COMMON_NAME, ""), serial
