"""mosquitto with its own TLS listener: client certificates required, the same topic rules as the fleet's own broker."""

import contextlib
import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fleet.domain.device import Model
from fleet.servers.gateway.broker.mosquitto import BACKEND, acl_text
from hw_bench.peers.contract import Environment, Peer, Running
from hw_bench.processes import accepts, free_port, program, running, wait_until

# Below the TLS listener, the settings of the broker that `fleet serve` starts behind its gateway. The Unix socket is
# for the subscriber that counts. set_tcp_nodelay: without it each TLS connect waits about 40 ms.
CONFIG = """\
user {user}
listener {port} 127.0.0.1
cafile {anchors}
certfile {certificate}
keyfile {key}
require_certificate true
use_identity_as_username true

listener 0 broker.sock
allow_anonymous true
acl_file {room}/acl
max_packet_size 16777216
max_inflight_messages 100
max_queued_messages 2000
max_queued_bytes 16777216
persistence true
persistence_location {room}/
persistence_file mosquitto.db
autosave_interval 60
set_tcp_nodelay true
connection_messages false
log_dest stderr
log_type error
"""

SUBSCRIBER = BACKEND
"""The user name that may read everything, here as at the fleet's own broker."""


def missing() -> str | None:
    return None if program("mosquitto") else "mosquitto is not installed"


def version() -> str:
    """For instance "mosquitto 2.0.11"."""
    argv = [program("mosquitto") or "mosquitto", "-h"]
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = re.search(r"mosquitto version (\S+)", text)
    return f"mosquitto {found[1]}" if found else "mosquitto"


@contextlib.contextmanager
def start(environment: Environment) -> Iterator[Running]:
    """mosquitto on a free port of 127.0.0.1, with a Unix socket beside it. Raises: BenchError."""
    room = environment.new_folder("mosquitto")
    port = free_port()
    config, log = room / "mosquitto.conf", room / "output.log"
    config.write_text(_config(environment, room, port))
    # From version 2.1 on, an access list that others may read is refused.
    (room / "acl").touch(mode=0o600)
    # Behind the gateway the client id is proved; here the user name is, by the certificate.
    (room / "acl").write_text(acl_text([Model("default")]).replace("%c", "%u"))
    argv = [program("mosquitto") or "mosquitto", "-c", str(config)]
    # In its room, so that the socket's name is short: a whole path may be longer than an address of a Unix socket.
    with running(argv, cores=environment.server_cores, log=log, cwd=room) as process:
        broker = room / "broker.sock"
        wait_until(lambda: broker.is_socket() and accepts(("127.0.0.1", port)), "mosquitto", process, log)
        yield Running("mosquitto", version(), ("127.0.0.1", port), (process.pid,), str(broker))


def _config(environment: Environment, room: Path, port: int) -> str:
    certificates = environment.certificates
    return CONFIG.format(
        # Started by root it would become the user mosquitto, who can't enter our private folder.
        user=pwd.getpwuid(os.getuid()).pw_name,
        room=room,
        port=port,
        anchors=certificates.anchors,
        certificate=certificates.server.certificate,
        key=certificates.server.key,
    )


PEER = Peer("mosquitto", "mosquitto's own TLS listener", missing, start)
