"""nginx and HAProxy in front of an HTTP API, as the page configures them, ask a served fleet about every request."""

import base64
import http.client
import shutil
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from msgspec.structs import replace

from fleet.config.addresses import parse_local_address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.home.layout import Home
from tests.end_to_end.proxied_api import IDENTITY, Client, Site, block, identity, served_site, serving
from tests.free_ports import free_port
from tests.serving import ANY_PORTS, Served, program
from tests.waiting import PATIENCE_SECONDS

LOOKALIKES = ("x-device-id", "X_Device_Id", "X-Device_Id", "x.device.tenant", "X~Device-Tenant", "X.Client_Cert")
"""What some API reads as X-Device-Id, X-Device-Tenant, X-Client-Cert."""


@pytest.fixture(scope="module")
def site(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    path = folder / "auth.sock"
    with served_site(pristine_home, folder, f"unix:{path}") as site:
        yield site
    assert not path.exists()


def test_the_ready_file_names_it(site: Site) -> None:
    assert site.served.endpoints["forward_auth"] == site.listener


def adapted(text: str, site: Site, port: int, folder: Path) -> str:
    """The page's configuration with this machine's paths and ports."""
    for said, here in (
        ("/run/fleet/auth.sock", site.listener.removeprefix("unix:")),
        ("/etc/nginx/api.pem", str(site.certificate)),
        ("/etc/nginx/api.key", str(site.certificate)),
        ("/etc/haproxy/api.pem", str(site.certificate)),
        ("/etc/haproxy/fleet-ca.pem", str(folder / "fleet-ca.pem")),
        ("/etc/haproxy/fleet-auth.lua", str(folder / "fleet-auth.lua")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("bind :443 ssl", f"bind 127.0.0.1:{port} ssl"),
        ("api.example.com:8080", f"127.0.0.1:{site.api}"),
    ):
        text = text.replace(said, here)
    return text


@contextmanager
def nginx(site: Site, folder: Path, *, without: str = "") -> Iterator[int]:
    """As on the page, but for the line `without`."""
    port = free_port()
    assert without in block("nginx")
    shown = adapted(block("nginx").replace(without, ""), site, port, folder)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; user root; worker_processes 1; pid {folder}/nginx.pid;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\n{shown} }}\n"
    )
    argv = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with serving(argv, port, folder):
        yield port


@contextmanager
def haproxy(site: Site, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "fleet-ca.pem").write_bytes(
        site.served.ca_file.read_bytes() + Home(site.served.home).issuing_certificate.read_bytes()
    )
    (folder / "fleet-auth.lua").write_text(adapted(block("lua"), site, port, folder))
    (folder / "haproxy.cfg").write_text(adapted(block("haproxy"), site, port, folder))
    with serving(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], port, folder):
        yield port


Proxy = Callable[[Site, Path], AbstractContextManager[int]]
PROXIES = [
    pytest.param(
        proxy,
        id=proxy.__name__,
        marks=pytest.mark.skipif(shutil.which(proxy.__name__) is None, reason=f"{proxy.__name__} is not installed"),
    )
    for proxy in (nginx, haproxy)
]


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_rules_of_a_model_judge_the_path_that_the_api_gets(site: Site, tmp_path: Path, proxy: Proxy) -> None:
    name, model = f"{proxy.__name__}-2", f"api-{proxy.__name__}"
    site.fleet("model", "add", model, "--http-allow", "GET /v1/{id}/**")
    device = site.device(name, model=model)
    with proxy(site, tmp_path) as port:
        client = Client(port, device)
        assert client.get(f"/v1/{name}/a%20b/?x=/../")[0] == 200
        for target in (
            "/v1/other/a",
            f"/v1/{name}/../other",
            f"/v1/{name}/%2e%2E/other",
            f"/v1/{name}//a",
            f"/v1/{name};/",
        ):
            assert client.get(target)[0] == 403, target
        client.close()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_device_goes_on_by_its_certificate_until_it_is_revoked(site: Site, tmp_path: Path, proxy: Proxy) -> None:
    name = f"{proxy.__name__}-1"
    device = site.device(name, serial=f"SN {name}")
    with proxy(site, tmp_path) as port:
        client = Client(port, device)
        status, arrived = client.get("/v1/things?x=1")
        assert status == 200
        mine = {"X-Device-Id": [name], "X-Device-Model": ["default"], "X-Device-Serial": [f"SN {name}"]}
        assert identity(arrived) == {**mine, "X-Device-Tenant": []}
        # What the client says of itself does not arrive.
        other = dict.fromkeys((*IDENTITY, *LOOKALIKES, "X-Client-Cert"), "forged")
        status, arrived = client.get("/v1/things", {**other, "Connection": "X-Device-Id, keep-alive"})
        assert (status, identity(arrived)) == (200, {**mine, "X-Device-Tenant": []})
        assert [key for key, value in arrived if value == "forged"] == []
        # It would tell a further proxy to drop what the first one says.
        assert [value for key, value in arrived if key.lower() == "connection" and "device" in value.lower()] == []
        # What a WebSocket needs goes on, where the page says so.
        _, arrived = client.get("/v1/things", {"Upgrade": "other", "Connection": "Upgrade, X-Device-Id"})
        asked = [value.lower() for key, value in arrived if key.lower() == "connection"]
        assert asked == [{"nginx": "close", "haproxy": "upgrade"}[proxy.__name__]]
        assert client.post("/v1/things", b"x" * 300_000) == (200, 300_000)
        site.fleet("device", "suspend", name)
        assert client.get("/v1/things")[0] == 403
        site.fleet("device", "resume", name)
        assert client.get("/v1/things")[0] == 200
        site.fleet("device", "revoke", name)
        assert client.get("/v1/things")[0] == 403
        client.close()


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("line", ["", ' proxy_set_header Content-Length "";'], ids=["on the page", "without the line"])
def test_a_body_of_one_device_is_no_part_of_the_next_ones_question(site: Site, tmp_path: Path, line: str) -> None:
    one, other = (site.device(f"{name}-{len(line)}") for name in ("body", "after"))
    with nginx(site, tmp_path, without=line) as port:
        first, second = Client(port, one), Client(port, other)
        for _ in range(3):  # on the connection that nginx keeps to us
            assert first.post("/v1/things", b"abc") == (200, 3)
            assert second.get("/v1/things")[0] == 200
        first.close()
        second.close()


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_client_that_sends_a_certificate_as_a_header_is_nobody(site: Site, tmp_path: Path, proxy: Proxy) -> None:
    text = site.device(f"{proxy.__name__}-3").read_text()
    pem = text[text.index("-----BEGIN CERTIFICATE") :]
    escaped, encoded = quote(pem, safe=""), base64.b64encode(ssl.PEM_cert_to_DER_cert(pem)).decode()
    with proxy(site, tmp_path) as port:
        nobody = Client(port)
        assert nobody.get("/v1/things")[0] == 401
        for value in (escaped, encoded):
            for name in ("X-Client-Cert", "x-client-cert", "X_Client_Cert", "X-Forwarded-Client-Cert"):
                assert nobody.get("/v1/things", {name: value, "X-Device-Id": "forged"})[0] == 401
        for target in ("/fleet-auth", "/nginx", "/haproxy"):  # what asks us is not for clients
            assert nobody.refused(target, {"X-Client-Cert": escaped}) in (401, 404)
        nobody.close()
        nobody = Client(port)
        assert nobody.refused("/v1/things", {"X-Long": "x" * 65_536}) in (0, 400, 431)
        nobody.close()


@pytest.mark.long
def test_two_workers_accept_from_one_port_and_ask_for_the_secret(pristine_home: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(pristine_home, tmp_path / "home", symlinks=True))
    secret = home / "proxy.secret"
    secret.touch(mode=0o600)
    secret.write_text("0123456789abcdef\n")
    port, settings = free_port(), Home(home).settings_file
    address = parse_local_address(f"127.0.0.1:{port}")
    changed = replace(read_settings(settings), forward_auth=address, forward_auth_secret_file="proxy.secret", workers=2)
    settings.write_text(render(changed))
    served = Served(home, tmp_path / "ready.json").start()
    assert served.endpoints["forward_auth"] == f"http://127.0.0.1:{port}"

    def answered(given: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        connection.request("GET", "/nginx", headers={"X-Proxy-Secret": given})
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        assert [answered("0123456789abcdef") for _ in range(4)] == [401] * 4
        assert [answered("0123456789abcdex") for _ in range(4)] == [403] * 4
        secret.write_text("0123456789abcdex\n")
        served.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while {answered("0123456789abcdef") for _ in range(4)} != {403}:
            assert time.monotonic() < deadline
        assert answered("0123456789abcdex") == 401
    finally:
        assert served.stop() == 0
    secret.chmod(0o644)
    said = program("fleet", "serve", "--home", str(home), *ANY_PORTS, expect=1).stderr
    assert "chmod 600" in said
    assert "bad-secret-file" in said
