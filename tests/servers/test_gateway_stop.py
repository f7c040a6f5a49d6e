"""The stop of a gateway before a broker that hangs; on a clock that jumps."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from fleet.runtime.signals import BROKER_SECONDS_MIN, KILL_SECONDS_MIN, STOP_SECONDS_MAX, StopDeadline
from fleet.servers.gateway import Gateway
from fleet.servers.gateway.broker import process as broker_process
from fleet.servers.gateway.broker.process import BrokerProcess
from fleet.servers.gateway.gateway import CLOSE_SECONDS_MAX
from tests.servers.gateway_fixtures import now
from tests.servers.test_gateway_session_purge import Broker
from tests.servers.test_gateway_waiting_wills import seconds, waits
from tests.simulated_time import run

DEAF = """
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    listener.accept()
"""


class HungBroker(Broker):
    """It accepts connections, closes none, and never answers."""

    is_ours = True

    def __init__(self) -> None:
        super().__init__(delay=3600.0)


def hung_gateway() -> Gateway:
    """A link to the broker is open, and a will waits there."""
    gateway = Gateway(cast(Any, None), HungBroker(), clock=now)  # it is not asked
    gateway.context.wills.add(waits("cam-1", due_at=seconds() + 100), seconds())
    gateway.context.broker_links.add(cast(Any, object()))
    return gateway


def test_a_stop_has_one_deadline_and_happens_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        gateway, begun = hung_gateway(), seconds()
        first = asyncio.create_task(gateway.close())
        await asyncio.sleep(0.1)
        first.cancel()  # who waits may give up
        await gateway.close()
        await gateway.close()
        assert seconds() - begun == pytest.approx(CLOSE_SECONDS_MAX)

    with caplog.at_level(logging.WARNING):
        run(scene())
    assert caplog.text.count("wills.not-cancelled") == 1


def test_what_a_gateway_needs_leaves_the_broker_its_time() -> None:
    async def scene() -> None:
        deadline, begun = StopDeadline(), seconds()
        await hung_gateway().close(deadline.left(BROKER_SECONDS_MIN))
        assert deadline.left() == pytest.approx(BROKER_SECONDS_MIN)
        assert deadline.left(KILL_SECONDS_MIN) > 0  # a worker that needs all of its time is not killed
        await asyncio.sleep(deadline.left())
        assert seconds() - begun == pytest.approx(STOP_SECONDS_MAX)
        await asyncio.sleep(1)
        assert deadline.left() == deadline.left(BROKER_SECONDS_MIN) == 0

    run(scene())


async def test_a_broker_that_does_not_exit_is_killed_in_what_is_left(tmp_path: Path) -> None:
    socket = tmp_path / "broker.sock"
    process = BrokerProcess("deaf", (sys.executable, "-c", DEAF, str(socket)), tmp_path, socket, lambda line: None)
    await process.start()
    async with asyncio.timeout(broker_process.STOP_SECONDS_MAX / 2):  # of which it would need all
        await process.close(0.0)
    assert process.work_done() is None
