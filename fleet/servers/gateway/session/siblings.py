"""Sessions beside one: of the same certificate, and of the same device under its other client ids."""

from collections.abc import Iterable
from typing import Protocol

from fleet.servers.gateway.close_reasons import SESSION_QUOTA, TAKEN_OVER, CloseReason, CloseSession
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.services.admission import Admission
from fleet.wire.mqtt.connect import Connect


class Sibling(Protocol):
    @property
    def admission(self) -> Admission | None: ...

    def close(self, reason: CloseReason) -> None: ...


def connections(sessions: Iterable[Sibling]) -> int:
    """How many connections one certificate has, its sessions of several client ids taken as one."""
    admitted = [session.admission is not None for session in sessions]
    return len(admitted) - max(0, sum(admitted) - 1)


def take_over(session: Sibling, admission: Admission, of_device: Iterable[Sibling]) -> None:
    """Close those of the same client id: MQTT 5.0, 4.13.1 and [MQTT-3.1.4-3]; 3.1.1, [MQTT-3.1.4-2]."""
    for other in of_device:
        if other is not session and other.admission is not None and other.admission.client_id == admission.client_id:
            other.close(TAKEN_OVER)


def must_have_room(
    session: Sibling, connect: Connect, admission: Admission, of_device: Iterable[Sibling], kept: KeptFilters
) -> None:
    """Raises: CloseSession: the device has sessions of as many client ids as its model allows."""
    if not admission.other_client_id:
        return
    open_ids = [
        other.admission.client_id for other in of_device if other is not session and other.admission is not None
    ]
    outlives, sessions_max = connect.outlives_connection, admission.rules.sessions
    if not kept.clients.begins(admission.client_id, open_ids, sessions_max, outlives=outlives):
        raise CloseSession(SESSION_QUOTA)
