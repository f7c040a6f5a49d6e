"""Wake-ups of the event loop: signals, and other threads. A self-pipe."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
RENEW_SIGNAL = signal.SIGUSR1
RELOAD_SIGNAL = signal.SIGHUP


class Waker:
    """Poll `descriptor` for reading; `clear` it, and get the `signals` that were received."""

    def __init__(self) -> None:
        self.descriptor, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: set[int] = set()
        self._lock = threading.Lock()  # a late thread must not write to a descriptor that has been reused
        self._closed = False

    def wake(self) -> None:
        """Wake the loop. From any thread."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: the loop is awake
            if not self._closed:
                os.write(self._writer, b"w")

    def clear(self) -> None:
        """Drain the pipe."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def signals(self) -> set[int]:
        """The signals received since the last call."""
        signals, self._signals = self._signals, set()
        return signals

    def close(self) -> None:
        with self._lock:
            self._closed = True
            os.close(self.descriptor)
            os.close(self._writer)

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Catch STOP_SIGNALS, RENEW_SIGNAL and RELOAD_SIGNAL while the block runs. In the main thread only."""

        def note(number: int, _: object) -> None:
            self._signals.add(number)

        before = {number: signal.signal(number, note) for number in (*STOP_SIGNALS, RENEW_SIGNAL, RELOAD_SIGNAL)}
        before_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
