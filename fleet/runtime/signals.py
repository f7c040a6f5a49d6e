"""Stop and reload requests from outside the process, as events; the deadline of a stop."""

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from fleet.domain.errors import Unavailable


class Signals(Struct, frozen=True):
    """Set by POSIX signals, and in a worker process by the supervisor's messages."""

    stop: asyncio.Event
    reload: asyncio.Event
    restart: asyncio.Event
    """Replace the workers."""

    @classmethod
    def install(cls, stop: Sequence[int], reload: Sequence[int] = (), restart: Sequence[int] = ()) -> "Signals":
        """Signals of these numbers set the events. Call inside the running loop."""
        signals, loop = cls(asyncio.Event(), asyncio.Event(), asyncio.Event()), asyncio.get_running_loop()
        for numbers, event in ((stop, signals.stop), (reload, signals.reload), (restart, signals.restart)):
            for number in numbers:
                loop.add_signal_handler(number, event.set)
        return signals

    async def until_stop(
        self,
        reload: Callable[[], None],
        watched: Sequence[asyncio.Task[None]],
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Return when a stop is requested; call `reload` and `restart` at each of those requests.

        Raises: the exception of a task in `watched`, none of which may end before the stop.
        """
        stopping = asyncio.create_task(self.stop.wait())
        requests = {self.reload: reload, self.restart: restart}
        waits = {event: asyncio.create_task(event.wait()) for event in requests}
        try:
            while True:
                await asyncio.wait((stopping, *waits.values(), *watched), return_when=asyncio.FIRST_COMPLETED)
                for task in watched:
                    if task.done():
                        task.result()
                        raise Unavailable("part-ended", f"{task.get_name()} has ended.")
                if stopping.done():
                    return
                for event, act in requests.items():
                    if waits[event].done():
                        event.clear()
                        act()
                        waits[event] = asyncio.create_task(event.wait())
        finally:
            for waiting in (stopping, *waits.values()):
                waiting.cancel()


REST_SECONDS_MAX = 40.0  # for a worker that is replaced: handshakes and requests that it has begun, after its sessions
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
