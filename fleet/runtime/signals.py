"""Stop and reload requests from outside the process, as events."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet.domain.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Signals:
    """Set by POSIX signals, and in a worker process by the supervisor's messages."""

    stop: asyncio.Event
    reload: asyncio.Event

    @classmethod
    def install(cls, stop: Sequence[int], reload: Sequence[int] = ()) -> "Signals":
        """Signals of these numbers set the events. Call inside the running loop."""
        signals, loop = cls(asyncio.Event(), asyncio.Event()), asyncio.get_running_loop()
        for number in stop:
            loop.add_signal_handler(number, signals.stop.set)
        for number in reload:
            loop.add_signal_handler(number, signals.reload.set)
        return signals

    async def until_stop(self, reload: Callable[[], None], watched: Sequence[asyncio.Task[None]]) -> None:
        """Return when a stop is requested; call `reload` at each reload request.

        Raises: the exception of a task in `watched`, none of which may end before the stop.
        """
        stopping = asyncio.create_task(self.stop.wait())
        reloading = asyncio.create_task(self.reload.wait())
        try:
            while True:
                await asyncio.wait((stopping, reloading, *watched), return_when=asyncio.FIRST_COMPLETED)
                for task in watched:
                    if task.done():
                        task.result()
                        raise Unavailable("part-ended", f"{task.get_name()} has ended.")
                if stopping.done():
                    return
                if reloading.done():
                    self.reload.clear()
                    reload()
                    reloading = asyncio.create_task(self.reload.wait())
        finally:
            stopping.cancel()
            reloading.cancel()
