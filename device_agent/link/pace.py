"""How many messages may be in flight while a server accepts none for now. No I/O; time is passed in."""

from collections.abc import Callable

from device_agent.renewal import Backoff

PAUSE = Backoff(5.0, 300.0, floor_seconds=1.0)  # until a message is sent again that the server had no quota for


class Pace:
    """After a temporary refusal nothing is sent for a while, and then one message, until it is accepted."""

    def __init__(self, monotonic: Callable[[], float], chance: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._chance = chance
        self._refusals = 0
        self._send_at = 0.0

    def in_flight_max(self, window: int) -> int:
        """How many may be in flight now, of a window of so many."""
        if not self._refusals:
            return window
        return 1 if self._monotonic() >= self._send_at else 0

    def answered(self, *, is_temporary: bool) -> None:
        """The server has refused a message for now, or not. What it says during a pause is about those before."""
        if (now := self._monotonic()) < self._send_at:
            return
        if not is_temporary:
            self._refusals = 0
            return
        self._send_at = now + PAUSE.delay_seconds(self._refusals, self._chance())
        self._refusals += 1
