"""Events that others cause as often as they like: the first is a line at once, its repeats are one line a minute."""

from collections.abc import Callable
from dataclasses import dataclass

from device_agent.log.event_log import EventLog

FOLD_SECONDS = 60.0


@dataclass(slots=True)
class _Repeats:
    until: float
    count: int = 0


class FoldedEvents:
    """Events of the log, of which those with the same name and reason are repeats. Call `tick` at every turn."""

    def __init__(self, log: EventLog, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._monotonic = monotonic
        self._repeats: dict[tuple[str, str], _Repeats] = {}

    def event(self, name: str, reason: str, **fields: object) -> None:
        """`reason` is one of a few texts, and none that the sender writes."""
        self.tick()
        if (found := self._repeats.get((name, reason))) is not None:
            found.count += 1
            return
        self._log.event(name, reason=reason, **fields)
        self._repeats[name, reason] = _Repeats(self._monotonic() + FOLD_SECONDS)

    def tick(self, *, end: bool = False) -> None:
        """Count the repeats of a minute that has ended; with `end`, of all."""
        now = self._monotonic()
        for key in [each for each, found in self._repeats.items() if end or found.until <= now]:
            found = self._repeats.pop(key)
            if found.count:
                name, reason = key
                self._log.event(name, reason=reason, repeated=found.count)
                if not end:
                    self._repeats[key] = _Repeats(now + FOLD_SECONDS)
