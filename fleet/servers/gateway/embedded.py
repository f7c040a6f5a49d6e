"""The embedded broker, for a demo on a machine without mosquitto: amqtt in a child process, MQTT 3.1.1 only."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet.domain.device import Model
from fleet.servers.gateway.broker_process import BrokerProcess
from fleet.servers.gateway.private_socket import connect_unix, private_directory
from fleet.servers.gateway.upstream import CONNECT_SECONDS_MAX, Factory

SOCKET = "broker.sock"
PROGRAM = "fleet.servers.gateway.embedded_broker"


class Embedded:
    """An Upstream. It has no wall of its own: the gateway's is the only one."""

    speaks_v5 = False

    def __init__(self, run_dir: Path) -> None:
        self.socket = run_dir / SOCKET
        # The modules that we run on, wherever we were started, and none that happen to lie in a directory.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        argv = (sys.executable, "-P", "-m", PROGRAM, str(self.socket))
        self.child = BrokerProcess("amqtt", argv, run_dir, self.socket, lambda line: None, env)

    @classmethod
    async def start(cls, run_dir: Path) -> "Embedded":
        """Returns when it takes connections. Raises: OSError, TimeoutError."""
        broker = cls(private_directory(run_dir))
        await broker.child.start()
        return broker

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self.socket, factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Nothing to tell: it has no access rules."""

    def describe(self) -> str:
        return f"the embedded broker (amqtt, MQTT 3.1.1 only) on unix:{self.socket}"

    async def close(self) -> None:
        await self.child.close()
