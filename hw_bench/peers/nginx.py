"""nginx as a TLS endpoint: one worker, client certificates required, no resumption, an empty answer."""

import contextlib
import os
import pwd
import re
import subprocess
from collections.abc import Iterator

from hw_bench.peers.contract import Environment, Peer, Running
from hw_bench.processes import accepts, free_port, program, running, wait_until

# The settings that decide the price of a handshake are those of the other peers. multi_accept: it drains its accept
# queue at each turn, as the others do. nginx verifies during the handshake and reports the result at the request.
CONFIG = """\
daemon off;
{user}
worker_processes 1;
pid {room}/nginx.pid;
error_log {room}/error.log crit;
events {{ worker_connections 4096; multi_accept on; }}
http {{
    access_log off;
    client_body_temp_path {room}/body;
    proxy_temp_path {room}/proxy;
    fastcgi_temp_path {room}/fastcgi;
    uwsgi_temp_path {room}/uwsgi;
    scgi_temp_path {room}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl backlog=1024;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_client_certificate {anchors};
        ssl_verify_client on;
        ssl_verify_depth 2;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        ssl_session_cache off;
        return 204;
    }}
}}
"""


def missing() -> str | None:
    return None if program("nginx") else "nginx is not installed"


def version() -> str:
    """For instance "nginx/1.22.1, OpenSSL 3.0.19"."""
    text = subprocess.run([program("nginx") or "nginx", "-V"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/\S+", text)
    # "built with OpenSSL A (running with OpenSSL B)", the second part only when they differ.
    libraries = re.findall(r"OpenSSL [^\s)]+", text)
    return ", ".join([found[0] if found else "nginx", *libraries[-1:]])


@contextlib.contextmanager
def start(environment: Environment) -> Iterator[Running]:
    """nginx on a free port of 127.0.0.1. Raises: BenchError."""
    room = environment.new_folder("nginx")
    port = free_port()
    certificates = environment.certificates
    # Only a master that is root may choose its worker's user; the worker needs our private folder, so it stays ours.
    user = f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else ""
    (room / "nginx.conf").write_text(
        CONFIG.format(
            user=user,
            room=room,
            port=port,
            certificate=certificates.server.certificate,
            key=certificates.server.key,
            anchors=certificates.anchors,
        )
    )
    log = room / "output.log"
    argv = [program("nginx") or "nginx", "-p", str(room), "-c", str(room / "nginx.conf"), "-e", str(room / "error.log")]
    with running(argv, cores=environment.server_cores, log=log) as process:
        wait_until(lambda: accepts(("127.0.0.1", port)), "nginx", process, log)
        yield Running("nginx", version(), ("127.0.0.1", port), (process.pid,))


PEER = Peer("nginx", "nginx, one worker, an empty answer over TLS", missing, start)
