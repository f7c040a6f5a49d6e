"""Delays for devices whose sessions are closed again and again for one cause of their own.

A client that sends what closes its session often connects again at once and sends it again: for ever, at the price of
a handshake and an admission each time. From the second close on its next CONNECT waits, each time longer, until a
session ends well: by the client's own DISCONNECT, or after more than the longest delay.
"""

from dataclasses import dataclass

from fleet.domain.recent import Recent
from fleet.servers.gateway import close_reasons

SECONDS_MIN = 1.0  # after the second close; doubled with each further one
FORGOTTEN_SECONDS = 600.0  # after the last close
ENTRIES_MAX = 10_000  # certificates, about 2 MB; whose last close is longest ago is forgotten first

CAUSES = frozenset({
    "client-id-mismatch", "dot-refused", "will-refused", "will-retain", "will-qos", "will-response", "not-a-device",
    "device-revoked", "device-retired", "certificate-revoked", "certificate-superseded",
    *(reason.code for reason in (
        close_reasons.MALFORMED, close_reasons.PROTOCOL_ERROR, close_reasons.TOO_LARGE, close_reasons.ALIAS,
        close_reasons.MALFORMED_CONNECT, close_reasons.CONNACK_TOO_LARGE, close_reasons.AUTH_METHOD,
        close_reasons.WILL_RESPONSE_INVALID, close_reasons.WILL_QUOTA,
        close_reasons.PUBLISH_REFUSED, close_reasons.QUOTA, close_reasons.MESSAGE_RATE, close_reasons.BYTE_RATE,
        close_reasons.BROKER_REJECTED, close_reasons.QOS_REFUSED,
    )),
})  # fmt: skip
"""Codes of the close reasons that the device itself causes, by what it has sent or by a certificate that is never
accepted again. A suspended device may be resumed at any time. A client whose MQTT version is not supported tries
another, as bridges do.
"""


@dataclass(frozen=True, slots=True)
class _Closes:
    code: str
    count: int
    """In a row."""
    last: float


class ReturnDelays:
    """By certificate, which TLS has proved: nobody else waits. `now` is the loop's time in seconds."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._closes: Recent[bytes, _Closes] = Recent(ENTRIES_MAX)

    def on_close(self, fingerprint: bytes | None, code: str, now: float, *, lived: float | None = None) -> None:
        """A session with this certificate was closed, or its CONNECT refused, for the reason of this code.

        `lived`: seconds since its CONNACK; None: it was refused.
        """
        if fingerprint is None:
            return
        if lived is not None and (code == close_reasons.CLIENT_DISCONNECTED.code or lived > self._seconds_max):
            self._closes.pop(fingerprint, None)
        if code not in CAUSES:
            return
        before = self._closes.get(fingerprint)
        repeated = before is not None and before.code == code and now - before.last < FORGOTTEN_SECONDS
        self._closes.put(fingerprint, _Closes(code, before.count + 1 if before and repeated else 1, now))

    def seconds(self, fingerprint: bytes | None, now: float, refused_for: str | None = None) -> float:
        """How long a CONNECT with this certificate waits for its admission or, with the code of what it is refused for
        before that, for its answer.
        """
        closes = self._closes.get(fingerprint) if fingerprint is not None else None
        if refused_for is not None and refused_for not in CAUSES:
            return 0.0
        if closes is None or closes.count < 2 or now - closes.last >= FORGOTTEN_SECONDS:
            return 0.0
        doublings = min(closes.count - 2, 32)
        return float(min(SECONDS_MIN * 2**doublings, self._seconds_max))
