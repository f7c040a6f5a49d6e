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
        """Count `event.code`, and log it with `fields` unless `source`, who caused it, has reached its limit.

        `authenticated`: `source` is a certificate, which TLS has proved.
        """
        counter = f"{event}.{code}"
        self.count(counter)
        if not self._limit.allows(monotonic, counter, source, authenticated=authenticated):
            return
        shown = {
            name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items() if value != ""
        }
        log_event(log, logging.INFO, event, **shown, code=code)

    def close(self) -> None:
        """Log what was left out."""
        self._limit.report()
