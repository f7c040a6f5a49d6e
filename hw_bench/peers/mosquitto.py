"""mosquitto with its own TLS listener: client certificates required, the same topic rule as the fleet's models."""

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator

from hw_bench.peers.contract import Ground, Peer, Running
from hw_bench.processes import accepts, free_port, running, wait_until

# set_tcp_nodelay: without it each TLS connect waits about 40 ms. max_queued_messages 0: the subscriber that counts is
# never cut short, so that a lost message is a lost message. The second listener is for that subscriber alone.
CONFIG = """\
per_listener_settings true
user {user}
log_dest stderr
log_type error
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 0
persistence false

listener {port} 127.0.0.1
cafile {anchors}
certfile {certificate}
keyfile {key}
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {room}/acl

listener 0 {room}/broker.sock
allow_anonymous true
"""
ACL = """\
pattern write bench/%u/#
pattern read bench/%u/#
"""


def missing() -> str | None:
    return None if shutil.which("mosquitto") else "mosquitto is not installed"


def version() -> str:
    """For instance "mosquitto 2.0.11"."""
    text = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"mosquitto version (\S+)", text)
    return f"mosquitto {found[1]}" if found else "mosquitto"


@contextlib.contextmanager
def start(ground: Ground) -> Iterator[Running]:
    """mosquitto on a free port of 127.0.0.1, with a Unix socket beside it. Raises: BenchError."""
    room = ground.room("mosquitto")
    port = free_port()
    certificates = ground.certificates
    # 2.0 refuses an ACL file that others may read, and as root it would become "mosquitto", who can't read our folder.
    acl = room / "acl"
    acl.write_text(ACL)
    acl.chmod(0o600)
    (room / "mosquitto.conf").write_text(
        CONFIG.format(
            user=pwd.getpwuid(os.getuid()).pw_name,
            room=room,
            port=port,
            anchors=certificates.anchors,
            certificate=certificates.server.certificate,
            key=certificates.server.key,
        )
    )
    log = room / "output.log"
    argv = ["mosquitto", "-c", str(room / "mosquitto.conf")]
    with running(argv, cores=(ground.server_core,), log=log) as process:
        wait_until(lambda: accepts(("127.0.0.1", port)), "mosquitto", process, log)
        yield Running(
            "mosquitto", version(), ("127.0.0.1", port), (process.pid,), broker=f"unix:{room / 'broker.sock'}"
        )


PEER = Peer("mosquitto", "mosquitto's own TLS listener", missing, start)
