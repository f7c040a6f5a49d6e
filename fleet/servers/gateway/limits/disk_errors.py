"""Log lines about files of the gateway's that could not be read or written."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fleet.config.logs import log_event

log = logging.getLogger("fleet.gateway")

LOG_SECONDS = 10.0  # at least between two lines about files


class DiskErrors:
    """Logs that a file of `what` could not be read or written, in place of raising OSError; at most one line in
    LOG_SECONDS."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._logged_at = float("-inf")

    @contextmanager
    def logged(self, act: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if time.monotonic() - self._logged_at >= LOG_SECONDS:
                self._logged_at = time.monotonic()
                log_event(log, logging.ERROR, f"{self._what}.not-{act}", error=error)
