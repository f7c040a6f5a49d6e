"""The deadline of a stop, shared by the parts that are stopped one after the other."""

import asyncio

STOP_SECONDS_MAX = 4.8  # of the 5 s that `fleet serve` promises; the rest is for the interpreter's exit
BROKER_SECONDS_MIN = 2.0  # kept for a broker that we run, which then writes what it holds to disk
KILL_SECONDS_MIN = 1.5  # of these, when a worker process had to be killed


class StopDeadline:
    """Begins when it is first asked for what is left."""

    def __init__(self) -> None:
        self._ends_at: float | None = None

    def left(self, reserve: float = 0.0) -> float:
        """Seconds for a part after which `reserve` seconds are to be left. Never negative."""
        now = asyncio.get_running_loop().time()
        if self._ends_at is None:
            self._ends_at = now + STOP_SECONDS_MAX
        return max(0.0, self._ends_at - reserve - now)
