"""From CONNECT to a live session: ask the registry, end the device's older session, connect to the broker."""

from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.ports import Registry
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.context import SessionContext
from fleet.servers.gateway.session import Link, Phase, Session
from fleet.services.admission import Admission, Will, admit
from fleet.wire.mqtt.codes import Reason

REASON: dict[str, Reason] = {
    "client-id-mismatch": Reason.CLIENT_IDENTIFIER_NOT_VALID,
    "device-suspended": Reason.BANNED,
    "device-revoked": Reason.BANNED,
    "device-retired": Reason.BANNED,
    "certificate-revoked": Reason.BANNED,
    "will-retain": Reason.RETAIN_NOT_SUPPORTED,  # [MQTT-3.2.2-13]
}
"""What CONNACK says for a refusal's code; NOT_AUTHORIZED for any other."""


async def open_session(context: SessionContext, registry: Registry, session: Session) -> None:
    """Admit `session` and let it go live, or refuse it. Never raises what a refusal or a failure below raises.

    The session stands in the live table already: whatever the feed says of its device meanwhile ends it, and each
    step looks whether it has.
    """
    admission = await _admission(context, registry, session)
    if admission is None or session.phase is not Phase.OPENING:
        return
    session.admission = admission
    # MQTT 5.0, 4.13.1 and [MQTT-3.1.4-3]; 3.1.1, [MQTT-3.1.4-2]: the newer connection takes over
    for other in context.table.of_device(admission.device.id):
        if other is not session and other.admission is not None:
            other.end(close_reasons.TAKEN_OVER)
    link = Link(session)
    try:
        await context.prepare(admission.device.model)
        await context.upstream.connect(lambda: link)
    except (OSError, TimeoutError, Unavailable):
        session.refuse("broker-unreachable", Reason.SERVER_UNAVAILABLE)
        return
    if link.tap is None:
        return
    if session.stale and session.phase is Phase.OPENING:
        admission = await _admission(context, registry, session) or admission
    if session.phase is Phase.OPENING:
        session.go_live(admission, link.tap)
    else:
        link.tap.close(context.limits.linger_seconds_max)


async def _admission(context: SessionContext, registry: Registry, session: Session) -> Admission | None:
    """None: it has been refused, or has ended."""
    connect = session.connect
    if connect is None:
        return None
    will = Will(connect.will.topic, connect.will.retain) if connect.will else None
    while True:
        session.stale = False
        try:
            admission = await admit(registry, session.peer, connect.client_id, context.clock(), will=will)
        except Unavailable as error:
            session.refuse(error.code, Reason.SERVER_UNAVAILABLE)
            return None
        except FleetError as error:
            session.refuse(error.code, REASON.get(error.code, Reason.NOT_AUTHORIZED))
            return None
        if code := context.ended.holds(admission):
            session.refuse(code, REASON[code])
            return None
        # A model that changed while we asked may be the device's: the answer could be of before or after.
        if session.stale and session.phase is Phase.OPENING:
            continue
        return admission
