"""Traefik and Envoy in front of an HTTP API, as the page of forward authentication configures them, ask a served fleet
about every request. Their programs are packages of PyPI (the extra `proxies`).
"""

import base64
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from textwrap import indent
from urllib.parse import quote

import pytest

from tests.end_to_end.proxied_api import IDENTITY, PATH, Client, Site, block, identity, served_site, serving
from tests.free_ports import free_port
from tests.serving import run_fleet
from tests.waiting import wait_until

pytestmark = pytest.mark.long

MINE = {"X-Device-Id": ["cam-1"], "X-Device-Model": ["default"], "X-Device-Tenant": [], "X-Device-Serial": ["SN 1"]}
SECRET = "0123456789abcdef"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


@contextmanager
def traefik(site: Site, folder: Path) -> Iterator[int]:
    port, dynamic = free_port(), folder / "dynamic"
    dynamic.mkdir()
    shown = block("yaml", "Traefik").replace("SECRET", SECRET).replace("api.example.com", "localhost")
    shown = shown.replace("http://127.0.0.1:9180", site.listener)
    (dynamic / "page.yaml").write_text(shown)
    (dynamic / "rest.yaml").write_text(f"""http:
  services:
    api: {{ loadBalancer: {{ servers: [ {{ url: http://127.0.0.1:{site.api} }} ] }} }}
tls:
  certificates: [ {{ certFile: {site.certificate}, keyFile: {site.certificate} }} ]
""")
    argv = ["traefik", "--global.checknewversion=false", "--global.sendanonymoususage=false"]
    argv += [f"--entrypoints.api.address=127.0.0.1:{port}", f"--providers.file.directory={dynamic}"]
    with serving(argv, port, folder):
        wait_until(lambda: _status(site, port) == 401, "traefik does not read its configuration")
        yield port


def _status(site: Site, port: int) -> int:
    """What a client gets whose certificate is no device's; 0: no connection."""
    with suppress(OSError), closing(Client(port, site.certificate, host="localhost")) as nobody:
        return nobody.get("/v1/things")[0]
    return 0


@contextmanager
def envoy(site: Site, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "envoy.yaml").write_text(f"""static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": {TLS}
          require_client_certificate: true
          common_tls_context:
            tls_certificates:
            - certificate_chain: {{ filename: {site.certificate} }}
              private_key: {{ filename: {site.certificate} }}
            validation_context: {{ trust_chain_verification: ACCEPT_UNTRUSTED }}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {MANAGER}
          stat_prefix: api
          route_config:
            virtual_hosts:
            - name: api
              domains: ["*"]
              routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: api }} }} ]
{indent(block("yaml", "Envoy"), " " * 10)}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {ROUTER} }}
  clusters:
{_cluster("api", f"socket_address: {{ address: 127.0.0.1, port_value: {site.api} }}")}
{_cluster("fleet_auth", f"pipe: {{ path: {site.listener.removeprefix('unix:')} }}")}
""")
    argv = ["envoy", "-c", str(folder / "envoy.yaml"), "--use-dynamic-base-id", "--concurrency", "1"]
    with serving(argv, port, folder):
        yield port


def _cluster(name: str, address: str) -> str:
    return f"""  - name: {name}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints: [ {{ endpoint: {{ address: {{ {address} }} }} }} ]"""


Proxy = Callable[[Site, Path], AbstractContextManager[int]]


@pytest.fixture(scope="module", params=[traefik, envoy], ids=["traefik", "envoy"])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = request.param
    if shutil.which(found.__name__) is None:
        pytest.skip(f"{found.__name__} is not installed")
    return found


@pytest.fixture(scope="module")
def site(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    run_fleet(folder / "pristine", "init", str(folder / "pristine"), "--name", "acme", "--host", "localhost")
    listener = f"http://127.0.0.1:{free_port()}" if proxy is traefik else f"unix:{folder / 'auth.sock'}"
    with served_site(folder / "pristine", folder, listener, SECRET if proxy is traefik else "") as site:
        yield site


def test_a_device_goes_on_by_its_certificate_until_it_is_revoked(site: Site, proxy: Proxy, tmp_path: Path) -> None:
    device = site.device("cam-1", serial="SN 1")
    with proxy(site, tmp_path) as port:
        assert _status(site, port) == 401
        client = Client(port, device, host="localhost")
        status, arrived = client.get("/v1/things?x=1")
        assert (status, _shown(arrived)) == (200, MINE)
        assert SECRET not in json.dumps(arrived)
        assert client.post("/v1/things", b"x" * 300_000) == (200, 300_000)
        site.fleet("device", "suspend", "cam-1")
        assert client.get("/v1/things")[0] == 403
        site.fleet("device", "resume", "cam-1")
        assert client.get("/v1/things")[0] == 200
        site.fleet("device", "revoke", "cam-1")
        assert client.get("/v1/things")[0] == 403
        client.close()


def test_what_a_client_says_of_itself_is_not_believed(site: Site, proxy: Proxy, tmp_path: Path) -> None:
    device, other = site.device("cam-2", serial="SN 2"), site.device("cam-3").read_text()
    pem = other[other.index("-----BEGIN CERTIFICATE") :]
    der = base64.b64encode(ssl.PEM_cert_to_DER_cert(pem)).decode()
    with proxy(site, tmp_path) as port:
        client = Client(port, device, host="localhost")
        for value in (quote(pem, safe=""), der, f'Cert="{quote(pem, safe="")}"'):
            names = ("X-Forwarded-Tls-Client-Cert", "X-Forwarded-Client-Cert", "X-Client-Cert")
            forged = {**dict.fromkeys(names, value), **dict.fromkeys(IDENTITY, "forged")}
            status, arrived = client.get("/v1/things", {**forged, "Connection": "X-Device-Id, keep-alive"})
            assert (status, _shown(arrived)) == (200, MINE | {"X-Device-Id": ["cam-2"], "X-Device-Serial": ["SN 2"]})
        client.close()
        client = Client(port, device, host="localhost")
        if proxy is envoy:
            assert client.refused("/v1/things", {"X_Device_Id": "forged"}) == 400
        else:
            status, arrived = client.get("/v1/things", {"X_Device_Id": "as the page says"})
            assert (status, [value for _, value in arrived].count("as the page says")) == (200, 1)
        client.close()


def test_the_rules_of_a_model_judge_the_path_that_the_api_gets(site: Site, proxy: Proxy, tmp_path: Path) -> None:
    site.fleet("model", "add", "api", "--http-allow", "GET /v1/{id}/**")
    device = site.device("cam-4", model="api")
    with proxy(site, tmp_path) as port:
        client = Client(port, device, host="localhost")
        assert client.get("/v1/cam-4/a%20b/?x=/../")[0] == 200
        for target in ("/v1/other/a", "/v1/cam-4/../other", "/v1/cam-4/%2e%2E/other", "/v1/cam-4//a", "/v1/cam-4;/"):
            status, arrived = client.get(target)
            # Traefik passes on some of them as the path that we have judged and that they mean.
            assert status == 403 or dict(arrived)[PATH] == "/v1/cam-4/a", target
        assert client.post("/v1/cam-4/a", b"x") == (403, 0)
        client.close()


def _shown(arrived: list[list[str]]) -> dict[str, list[str]]:
    """Identity headers that the API got and that say something."""
    return {name: [value for value in values if value] for name, values in identity(arrived).items()}
