"""The OCSP answer about the server's own certificate, which its listeners staple (RFC 6066, 8; RFC 8446, 4.4.2.1)."""

import logging
from datetime import datetime, timedelta

from cryptography import x509

from fleet.config.clock import Clock
from fleet.config.logs import log_event
from fleet.domain.backdating import BACKDATED_CA
from fleet.home.ocsp_responders import OcspResponders
from fleet.wire.ocsp import SingleResponse, Unrevoked

log = logging.getLogger("fleet")

STAPLE_VALIDITY = timedelta(days=3)
RENEW_AFTER = timedelta(hours=12)


class ServerStaple:
    """Gives the answer about `certificate`: good. One that is revoked is replaced, or it would not be served."""

    def __init__(self, certificate: x509.Certificate, responders: OcspResponders, clock: Clock) -> None:
        self._certificate, self._responders, self._clock = certificate, responders, clock
        self._answer = b""
        self._renew_at: datetime | None = None

    def __call__(self) -> bytes:
        """DER; b"": no CA here has issued it, or its key is away. Raises nothing: a handshake goes on without."""
        now = self._clock()
        if self._renew_at is None or now >= self._renew_at:
            self._renew_at = now + RENEW_AFTER
            try:
                self._answer = self._signed(now)
            except Exception as error:
                self._answer = b""
                log_event(log, logging.ERROR, "staple", outcome="not-made", reason=error)
        return self._answer

    def _signed(self, now: datetime) -> bytes:
        found = self._responders.responder_for(self._certificate)
        if found is None:
            return b""
        responder, certificate = found
        # Backdated as the certificate itself: some clients (GnuTLS) verify what is stapled, by clocks that are behind.
        return responder.sign(
            [SingleResponse(certificate, Unrevoked.GOOD, now - BACKDATED_CA, now + STAPLE_VALIDITY)], now
        )
