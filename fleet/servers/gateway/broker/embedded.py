"""The embedded broker, for a demo on a machine without mosquitto: amqtt in a child process, MQTT 3.1.1 only."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet.domain.device import Model
from fleet.servers.gateway.broker.private_socket import private_directory
from fleet.servers.gateway.broker.process import BrokerProcess, OwnBroker

SOCKET = "broker.sock"
PROGRAM = "fleet.servers.gateway.broker.embedded_main"


class Embedded(OwnBroker):
    """Without ACLs: only the gateway enforces the policy."""

    speaks_v5 = False

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / SOCKET)
        # Our own module path, independent of the working directory.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        argv = (sys.executable, "-P", "-m", PROGRAM, str(self.socket))
        self.process = BrokerProcess("amqtt", argv, run_dir, self.socket, lambda line: None, env)

    @classmethod
    async def start(cls, run_dir: Path) -> "Embedded":
        """Returns when it accepts connections. Raises: OSError, TimeoutError."""
        broker = cls(private_directory(run_dir))
        await broker.process.start()
        return broker

    async def set_models(self, models: Sequence[Model]) -> None:
        """It has no ACLs."""

    def describe(self) -> str:
        return f"the embedded broker (amqtt, MQTT 3.1.1 only) on unix:{self.socket}"
