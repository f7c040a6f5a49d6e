"""An HTTP API behind a reverse proxy that asks a served fleet about every request, and its clients."""

import http.client
import http.server
import json
import os
import re
import shutil
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec.structs import replace

import fleet.servers.forward_auth
from fleet.config.addresses import parse_local_address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.est_client.client import EstClient
from fleet.home.layout import Home
from fleet.wire.csr import build_csr
from hw_bench.processes import accepts, running, wait_until
from tests.serving import Served, run_fleet
from tests.waiting import PATIENCE_SECONDS

PAGE = Path(fleet.servers.forward_auth.__file__).with_name("README.md").read_text()
PATH = ":path"
IDENTITY = ("X-Device-Id", "X-Device-Model", "X-Device-Tenant", "X-Device-Serial")


def block(language: str, section: str = "") -> str:
    """The configuration of `language` on the page, or in its `section`."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0] if section else PAGE
    found: str
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


class Api(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that arrived, and the target as PATH."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        received = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = json.dumps([received, (PATH, self.path), *self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Site:
    """A fleet with an API beside it."""

    served: Served
    folder: Path
    listener: str
    """Where proxies ask."""
    api: int
    """Port."""
    certificate: Path
    """Of the proxies: the fleet's own, with its key."""

    def fleet(self, *words: str) -> str:
        return run_fleet(self.served.home, *words)

    def device(self, name: str, *, serial: str = "", model: str = "default") -> Path:
        """A new device's key and certificate."""
        self.fleet("device", "add", name, "--model", model, *(("--serial", serial) if serial else ()))
        token = self.fleet("token", "create", "--device", name).strip()
        key = ec.generate_private_key(ec.SECP256R1())
        client = EstClient(self.served.est, self.served.ca_file, basic=(name, token))
        certificate = client.simpleenroll(build_csr(key, (("2.5.4.3", name),), ()))
        file = self.folder / f"{name}.pem"
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        return file


@contextmanager
def served_site(pristine_home: Path, folder: Path, listener: str, secret: str = "") -> Iterator[Site]:
    """A copy of the home, whose proxies ask at `listener`, with the `secret` if any, and the API that they protect."""
    home = Path(shutil.copytree(pristine_home, folder / "home", symlinks=True))
    if secret:
        file = home / "proxy.secret"
        file.touch(mode=0o600)
        file.write_text(f"{secret}\n")
    settings = Home(home).settings_file
    address = parse_local_address(listener.removeprefix("http://"))
    secret_file = "proxy.secret" if secret else ""
    changed = replace(read_settings(settings), forward_auth=address, forward_auth_secret_file=secret_file)
    settings.write_text(render(changed))
    certificate = folder / "proxy.pem"
    certificate.write_bytes(Home(home).server_chain.read_bytes() + Home(home).server_key.read_bytes())
    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    serving = Served(home, folder / "ready.json").start()
    try:
        yield Site(serving, folder, listener, api.server_address[1], certificate)
    finally:
        assert serving.stop() == 0
        api.shutdown()
        api.server_close()


@contextmanager
def serving(argv: list[str], port: int, folder: Path) -> Iterator[None]:
    log = folder / "proxy.log"
    with running(argv, cores=tuple(os.sched_getaffinity(0)), log=log) as process:
        wait_until(lambda: accepts(("127.0.0.1", port)), argv[0], process, log)
        yield


class Client:
    """One kept connection of a device, or of a client without a certificate, to a proxy."""

    def __init__(self, port: int, certificate: Path | None = None, host: str = "127.0.0.1") -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate)
        self._connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE_SECONDS, context=context)
        self._connection.connect()
        self._socket = self._connection.sock

    def get(self, target: str, headers: Mapping[str, str] | None = None) -> tuple[int, list[list[str]]]:
        """Status, and the headers that reached the API, if it was asked. The connection is kept."""
        status, arrived = self._ask("GET", target, headers or {})
        assert self._connection.sock is self._socket, "the connection was not kept"
        return status, arrived[1:]

    def post(self, target: str, body: bytes) -> tuple[int, int]:
        """Status, and how much of `body` reached the API."""
        status, arrived = self._ask("POST", target, {}, body)
        return status, arrived[0] if arrived else 0

    def refused(self, target: str, headers: Mapping[str, str]) -> int:
        """Status of a request after which the proxy may close the connection; 0: it did while it was being sent."""
        try:
            return self._ask("GET", target, headers)[0]
        except OSError:
            return 0

    def _ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None) -> tuple[int, Any]:
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if answer.status == 200 else []

    def close(self) -> None:
        self._connection.close()


def identity(arrived: list[list[str]]) -> dict[str, list[str]]:
    return {name: [value for key, value in arrived if key.lower() == name.lower()] for name in IDENTITY}
