"""Outcome counters and a rate-limited log: every outcome is counted, and logged in one line below its source's limit.

event=mqtt.connect device=cam-7 serial=5d… ms=3 code=ok
"""

import logging
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from fleet.config.logs import log_event
from fleet.servers.line_limit import LineLimit

log = logging.getLogger("fleet.gateway")

TEXT_MAX = 80  # of a value that a peer has chosen

COUNTERS = {
    "mqtt.connect.CODE": "connections by outcome: `ok`, or why the CONNECT was refused",
    "mqtt.session.CODE": "closed sessions by reason",
    "mqtt.delay.applied": "CONNECTs that had to wait",
    "mqtt.publish.refused": "PUBLISHes that are not allowed (with `reason`: `retain`, `qos`, `reserved`, `dot`)",
    "mqtt.publish.response-refused": "those with a Response Topic that the device may not subscribe to",
    "mqtt.publish.quota": "those over a limit: of QoS 2 in flight, or retained (`reason` `retained`)",
    "mqtt.subscribe.refused": "topic filters that the model does not allow (`reason`: `shared`), or the broker (`dot`)",
    "mqtt.subscribe.quota": "topic filters over a limit",
    "mqtt.deliver.refused": "messages of the broker that the device may not receive",
    "mqtt.deliver.unread": "messages of QoS 0 that were dropped, since the client did not read",
    "mqtt.will.returned": "waiting wills whose device another worker has",
    "mqtt.will.cancelled": "waiting wills that were cancelled at the broker",
    "mqtt.will.failed": "attempts at that which failed; they are repeated",
    "mqtt.purge.ok": "broker sessions of revoked and retired devices that were deleted",
    "mqtt.purge.failed": "those that could not be deleted",
    "mqtt.share.left": "suspended devices that the broker has unsubscribed from their shared subscriptions",
    "mqtt.share.failed": "those that it has not",
    "mqtt.model.applied": "changes of a model that have reached the sessions",
    "mqtt.tags.applied": "changes of a connected device's tags that have reached its sessions",
}
"""Every counter -> what it counts. CODE: one of the page's table of close codes, or of ERRORS.md."""


class OutcomeLog:
    """Counters and log lines. `monotonic` is the loop's time in seconds."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._limit = LineLimit(log)

    @property
    def counts(self) -> Mapping[str, int]:
        """Live and read-only: counter -> how often."""
        return MappingProxyType(self._counts)

    def count(self, counter: str) -> None:
        """Count without a line."""
        self._counts[counter] += 1

    def record(
        self,
        event: str,
        code: str,
        monotonic: float,
        source: str = "",
        *,
        authenticated: bool = False,
        **fields: str | int,
    ) -> None:
        """Count `event.code`, and log it with `fields` unless `source`, its cause, has reached its limit.

        `authenticated`: `source` is a certificate, which TLS has proved.
        """
        if self.admits(event, code, monotonic, source, authenticated=authenticated):
            self.write(event, code, **fields)

    def admits(self, event: str, code: str, monotonic: float, source: str = "", *, authenticated: bool = False) -> bool:
        """Count as `record`. Whether there is to be a line, which `write` writes: its fields cost more than a count."""
        counter = f"{event}.{code}"
        self.count(counter)
        return self._limit.allows(monotonic, counter, source, authenticated=authenticated)

    def write(self, event: str, code: str, **fields: str | int) -> None:
        """The line of what `admits` has counted."""
        shown = {
            name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items() if value != ""
        }
        log_event(log, logging.INFO, event, **shown, code=code)

    def close(self) -> None:
        """Log what was left out."""
        self._limit.report()
