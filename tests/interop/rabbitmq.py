"""A RabbitMQ of a test's own: its folder, its ports, its name service."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.relying_parties import listening, running
from tests.waiting import wait_until

PROGRAMS = ("rabbitmqctl", "epmd")
PLUGINS = "rabbitmq_auth_backend_http,rabbitmq_auth_mechanism_ssl,rabbitmq_management,rabbitmq_mqtt"


@contextmanager
def names_service(folder: Path, port: int) -> Iterator[None]:
    """Erlang's, without which the server would start one that stays."""
    own = folder / "names"
    own.mkdir()
    with running(own, "epmd", "-port", str(port), "-address", "127.0.0.1") as process:
        wait_until(lambda: listening(port), "epmd does not listen", process)
        yield


@contextmanager
def rabbitmq(folder: Path, distribution: int, names: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The server, as `folder`/rabbitmq.conf says."""
    [program] = Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server")
    (folder / "enabled_plugins").write_text(f"[{PLUGINS}].\n")
    environment = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "fleet-test@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
    }
    with running(folder, program, **environment) as process:
        yield process
