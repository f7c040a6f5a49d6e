"""One worker process, as its supervisor sees it: started, asked to drain or to stop, killed when it does not."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

from fleet.config.logs import log_event
from fleet.domain.errors import FleetError, Unavailable
from fleet.runtime.ipc import Channel, Message, WorkerConfig
from fleet.runtime.signals import REST_SECONDS_MAX, STOP_SECONDS_MAX

log = logging.getLogger("fleet")

PROGRAM = "fleet.runtime.worker_main"
START_SECONDS_MAX = 30.0  # an interpreter with its imports, on a busy machine
RESTART_SECONDS_MAX = REST_SECONDS_MAX + STOP_SECONDS_MAX


SetModels = Callable[[], Awaitable[None]]
Forward = Callable[[int, Message], None]
"""A worker's number, and what it sends to others."""


class WorkerProcess:
    """One worker process, from start to exit. Made by `WorkerProcess.start`."""

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        channel: Channel,
        set_models: SetModels,
        forward: Forward,
    ) -> None:
        self.number = number
        self.unanswered = 0
        """Pings in a row without an answer."""
        self.counters: Mapping[str, object] = {}
        """As it last said."""
        self._process = process
        self._channel = channel
        self._set_models = set_models
        self._forward = forward
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, config: WorkerConfig, inherited: Sequence[int], set_models: SetModels, forward: Forward
    ) -> "WorkerProcess":
        """Start it and send it `config`; it inherits these descriptors. Raises: OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno())),
                # Our own module search path, without the working directory (-P).
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherited),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = await Channel.on(ours)
        channel.send("config", **asdict(config))
        return cls(config.worker, process, channel, set_models, forward)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def listens(self) -> bool:
        """Whether it is ready, and has not exited."""
        return self._ready.done() and self._ready.exception() is None and self.runs

    @property
    def runs(self) -> bool:
        """Whether it has not exited: it may accept connections before we know that it is ready."""
        return self._process.returncode is None

    def ping(self, **fields: object) -> None:
        self.unanswered += 1
        self._channel.send("ping", **fields)

    def send(self, message_type: str, **fields: object) -> None:
        self._channel.send(message_type, **fields)

    async def ready(self) -> None:
        """Returns when it listens. Raises: Unavailable: it failed, died first, or took too long."""
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await asyncio.shield(self._ready)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            message = f"Worker {self.number} did not listen within {START_SECONDS_MAX:.0f} s."
            raise Unavailable("worker-not-ready", message, "Check the load of the machine.") from None

    async def ended(self) -> int:
        """Its exit code, once it has exited: minus the number of the signal that killed it."""
        code = await self._process.wait()
        await asyncio.shield(self._listening)  # its last message may give the cause; cancelling us must not cancel it
        self._channel.close()
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is running."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def drain_for_stop(self, seconds: float) -> None:
        """It ends its MQTT sessions over `seconds`."""
        self._channel.send("drain", seconds=seconds, restarts=False)

    async def drain_for_restart(self, seconds: float) -> int:
        """It accepts nothing more and ends its MQTT sessions over `seconds`; its exit code. SIGKILL when it has not
        exited RESTART_SECONDS_MAX later.
        """
        self._channel.send("drain", seconds=seconds, restarts=True)
        try:
            async with asyncio.timeout(seconds + RESTART_SECONDS_MAX):
                await self._process.wait()
        except TimeoutError:
            self._kill()
        return await self.ended()

    def _kill(self) -> None:
        known = {"worker": self.number, "pid": self.pid}
        log_event(log, logging.ERROR, "worker.killed", **known, reason="did not exit in time")
        self.signal(signal.SIGKILL)

    async def stop(self, seconds_max: float) -> None:
        """It drains, since all are stopped; SIGKILL when it has not exited after `seconds_max`. Safe to call twice."""
        if self.listens:
            self._channel.send("stop")  # no signal: it might be seen first, and tells nothing of the broker
        else:
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds_max):
                await self._process.wait()
        except TimeoutError:
            self._kill()
        await self.ended()

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            match message["type"]:
                case "ready" if not self._ready.done():
                    self._ready.set_result(None)
                case "pong":
                    self.unanswered, self.counters = 0, message["counters"]
                case "who-holds" | "holds" | "holds-not" | "leaves":
                    self._forward(self.number, message)
                case "failed":
                    self._failed(Unavailable(message["code"], message["message"], message["advice"]))
                case "models":
                    request = asyncio.create_task(self._load_models(message["number"]))
                    self._requests.add(request)
                    request.add_done_callback(self._requests.discard)
        code = await self._process.wait()
        self._failed(Unavailable("worker-died", f"Worker {self.number} exited ({cause_of(code)}) before it listened."))

    def _failed(self, reason: Unavailable) -> None:
        if not self._ready.done():
            self._ready.set_exception(reason)
            self._ready.exception()  # retrieved, so that asyncio logs nothing if nobody awaits it
        elif reason.code != "worker-died":
            log_event(log, logging.ERROR, "worker.failed", worker=self.number, code=reason.code, reason=reason.message)

    async def _load_models(self, number: int) -> None:
        problem = ""
        try:
            await self._set_models()
        except (OSError, TimeoutError, FleetError) as error:
            problem = str(error) or type(error).__name__
        self._channel.send("models-set", number=number, problem=problem)


def cause_of(code: int) -> str:
    """How a process has ended, by its exit code."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
