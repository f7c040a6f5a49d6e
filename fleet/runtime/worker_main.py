"""The program of a worker process: `python -m fleet.runtime.worker_main DESCRIPTOR`, which a supervisor starts.

DESCRIPTOR is its end of the channel. It takes orders, listens, says so, and serves until SIGTERM or until its
supervisor is gone. SIGINT and SIGHUP reach all of a terminal's processes; here they mean nothing: the supervisor tells.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from fleet.config.settings import Settings, parse_settings
from fleet.domain.errors import FleetError
from fleet.home.layout import Home, open_registry
from fleet.runtime.background import background
from fleet.runtime.ipc import Channel, Orders
from fleet.runtime.jobs.server_certificate import utc_now
from fleet.runtime.worker import LOG_FORMAT, Place, Told, loop_factory, working
from fleet.servers.gateway.broker_process import die_with_parent
from fleet.servers.gateway.brokers import start_upstream
from fleet.servers.gateway.upstream import SharedUpstream, Upstream

MODELS_SECONDS_MAX = 2.0  # the broker gets one; a session that waits for its model has ten


class Supervisor:
    """The one who started us, as we see it."""

    def __init__(self, channel: Channel, told: Told) -> None:
        self._channel, self._told = channel, told
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[str]] = {}

    async def listen(self) -> None:
        """Do as it says; stop when it is gone."""
        try:
            async for message in self._channel.hear():
                match message["say"]:
                    case "reload":
                        self._told.reload.set()
                    case "models-set":
                        asked = self._asked.pop(message["number"], None)
                        if asked is not None and not asked.done():
                            asked.set_result(message["problem"])
        finally:
            self._told.stop.set()  # whoever cannot be told to stop must not go on

    async def set_models(self) -> None:
        """Returns when our broker knows the models as they are now. Raises: OSError, TimeoutError."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.say("models", number=number)
            async with asyncio.timeout(MODELS_SECONDS_MAX):
                problem = await self._asked[number]
        finally:
            self._asked.pop(number, None)
        if problem:
            raise OSError(problem)


async def work(channel: Channel) -> int:
    """Serve as ordered; the exit code."""
    told = Told.by_signals((signal.SIGTERM,))
    message = await channel.next()
    if message is None:
        return 1  # it is gone already
    orders = Orders.of(message)
    form = LOG_FORMAT.replace("%(message)s", f"worker={orders.worker} %(message)s")
    logging.basicConfig(level=orders.log_level, format=form)
    supervisor = Supervisor(channel, told)
    try:
        async with background(supervisor.listen(), "the ear for the supervisor"):
            await _serve(orders, supervisor, channel, told)
    except FleetError as error:
        channel.say("failed", code=error.code, message=error.message, advice=error.advice)
        return 1
    except OSError as error:
        channel.say("failed", code="system", message=f"The system said no: {error}.", advice="")
        return 1
    return 0


async def _serve(orders: Orders, supervisor: Supervisor, channel: Channel, told: Told) -> None:
    home = Home(Path(orders.home))
    settings = parse_settings(orders.settings, home.settings_file)
    async with AsyncExitStack() as parts:
        registry = await open_registry(home)
        parts.push_async_callback(registry.close)
        upstream = await _upstream(orders, settings, home, supervisor)
        place = Place(orders.worker, shares=True)
        worker = await parts.enter_async_context(
            working(home, settings, registry, upstream, clock=utc_now, place=place)
        )
        channel.say("ready")
        await worker.until(told)


async def _upstream(orders: Orders, settings: Settings, home: Home, supervisor: Supervisor) -> Upstream:
    if not orders.broker_socket:
        return await start_upstream(settings.upstream, home.run, ())  # somebody else's: nothing is started
    return SharedUpstream(
        Path(orders.broker_socket), speaks_v5=orders.broker_speaks_v5, request_models=supervisor.set_models
    )


def main(descriptor: int) -> int:
    die_with_parent(os.getppid(), signal.SIGKILL)  # the channel tells too, but only who still listens to it
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    async def run() -> int:
        channel = await Channel.on(socket.socket(fileno=descriptor))
        try:
            return await work(channel)
        finally:
            channel.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
