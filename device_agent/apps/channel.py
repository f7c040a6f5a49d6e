"""The control socket for asyncio: requests and their answers, events, and a new connection when the agent restarts."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from device_agent.apps.control import HEARD_SIZE_MAX, checked, socket_address
from device_agent.errors import NotRunning, TimedOut

RETRY_SECONDS = (0.1, 2.0)  # between two attempts to reach the agent: the first, and the most
NO_LINE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # of what is none of the protocol's
Line = dict[str, Any]


class Channel:
    """`on_event` is given each event; `on_restored` runs after each connection but the first."""

    def __init__(
        self, home: Path, on_event: Callable[[Line], None], on_restored: Callable[[], Awaitable[None]]
    ) -> None:
        self._home = home
        self._on_event = on_event
        self._on_restored = on_restored
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Line]] = {}
        self._up = asyncio.Event()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def open(self, seconds: float) -> None:
        """Connect, and stay connected. Raises: NotRunning if there is no agent within `seconds`."""
        await self._connect(seconds)
        self._tasks = [asyncio.create_task(self._serve())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._up.is_set():
            self._up.clear()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def ask(self, request: Line, seconds: float | None) -> Line:
        """The answer, which has "ok": true; asked again if the agent restarts meanwhile.

        Raises: AgentError with the agent's message; TimedOut; RuntimeError if it is not open.
        """
        if not self._tasks:
            raise RuntimeError("There is no connection to the agent: use it inside `async with Agent(...) as agent:`.")
        try:
            async with asyncio.timeout(seconds):
                return await self._asked(request)
        except TimeoutError:
            raise self._timed_out(request, seconds) from None

    async def _asked(self, request: Line) -> Line:
        while True:
            await self._up.wait()
            number = next(self._numbers)
            answer = self._answers[number] = asyncio.get_running_loop().create_future()
            try:
                self.say(request | {"id": number})
                answered = asyncio.gather(answer, self._writer.drain())  # both end when the connection does
                return checked((await answered)[0])
            except ConnectionError:
                await asyncio.sleep(0)
            finally:
                del self._answers[number]

    def _timed_out(self, request: Line, seconds: float | None) -> TimedOut:
        within = f"within {seconds or 0:g} s"
        if not self._up.is_set():
            return TimedOut(f"No agent has answered in {self._home} {within}.", "Start it: device-agent run.")
        if unread := self._writer.transport.get_write_buffer_size():
            return TimedOut(
                f"The agent's socket is full: {unread} bytes were not read {within}.",
                "Send less at a time, and wait for each answer; `device-agent status` shows whether the agent is busy.",
            )
        if request["do"] == "send" and request.get("wait"):
            return TimedOut(
                f"The server has not acknowledged the message {within}.",
                "The agent goes on to deliver it; `device-agent status` shows its connection and how many wait.",
            )
        return TimedOut(f"The agent has not answered {within}.", "See: device-agent status.")

    def say(self, request: Line) -> None:
        """Send a request; nothing if there is no connection."""
        if self._up.is_set():
            self._writer.write(json.dumps(request).encode() + b"\n")

    async def _connect(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds if seconds is not None else None
        delay, delay_max = RETRY_SECONDS
        while True:
            try:
                with socket_address(self._home) as address:
                    self._reader, self._writer = await asyncio.open_unix_connection(address, limit=HEARD_SIZE_MAX)
            except OSError as error:
                if end is not None and (loop.time() + delay >= end or isinstance(error, PermissionError)):
                    raise NotRunning(f"No agent answers in {self._home}.", "Start it: device-agent run.") from error
                await asyncio.sleep(delay)
                delay = min(2 * delay, delay_max)
            else:
                self._up.set()
                return

    async def _serve(self) -> None:
        while True:
            # A line that is none of the protocol's ends the connection, as the end of the stream does.
            with contextlib.suppress(OSError, *NO_LINE):
                while line := await self._reader.readline():
                    self._take(json.loads(line))
            self._up.clear()
            self._writer.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the agent ended"))
            await asyncio.sleep(RETRY_SECONDS[0])
            await self._connect(None)
            self._tasks = [each for each in self._tasks if not each.done()]
            self._tasks.append(asyncio.ensure_future(self._restore()))

    async def _restore(self) -> None:
        await self._on_restored()

    def _take(self, line: Line) -> None:
        if "event" in line:
            self._on_event(line)
            return
        answer = self._answers.get(line.get("id", 0))
        if answer is not None and not answer.done():
            answer.set_result(line)
