"""Terms of a session's relay: what its device may do, by its model and by what the broker holds for it already."""

from functools import partial

from fleet.servers.gateway.close_reasons import WILL_QUOTA, CloseSession
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport
from fleet.servers.gateway.limits.rates import Budget
from fleet.servers.gateway.relay.relay import Terms
from fleet.servers.gateway.relay.saved_acks import HeldAcks
from fleet.servers.gateway.session.context import S, SessionContext
from fleet.services.admission import Admission
from fleet.wire.mqtt.connect import Connect


def terms_of(
    context: SessionContext[S], connect: Connect, admission: Admission, budget: Budget, broker: FlowControlledTransport
) -> Terms:
    """Those of a session that begins: the broker gets its CONNECT next.

    Raises: CloseSession: its will would be one retained message too many.
    """
    retained, will, device_id = context.retained, connect.will, admission.device.id
    if retained and will and will.retain and not retained.put(device_id, will.topic, len(will.payload)):
        raise CloseSession(WILL_QUOTA)
    in_flight = budget.in_flight_of(admission.client_id, admission.device.id)
    in_flight.connecting(connect.session_seconds)
    return Terms(
        admission.policy,
        admission.rules,
        context.limits,
        context.kept_filters.of_session(admission.client_id, outlives_connection=connect.outlives_connection),
        in_flight,
        partial(HeldAcks, context.saves, broker.peer_pid()) if context.saves is not None else None,
        partial(retained.put, device_id) if retained else None,
        partial(retained.count, device_id) if retained else None,
        assigned_client_id="" if connect.client_id else admission.client_id,
    )
