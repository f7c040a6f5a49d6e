"""Tenants and rollovers at a served fleet, as its engineer and its devices meet them: two workers, real agents."""

import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.end_to_end.live_device import mqtt_answer, mqtt_connected
from tests.serving import ANY_PORTS, Served, program, run_agent, run_fleet
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def served(home: Path, tmp_path: Path) -> Iterator[Served]:
    serving = Served(home, tmp_path / "ready.json", [*ANY_PORTS, "--workers", "2"]).start()
    yield serving
    serving.stop()


class Agent:
    """A device's agent, in a home of its own."""

    def __init__(self, served: Served, folder: Path, name: str, model: str, *, label: str = "", ca: str = "") -> None:
        self.name, self.home, self.served = name, folder / name, served
        host, port = served.address("mqtt")
        run_fleet(served.home, "device", "add", name, "--model", model)
        token = run_fleet(served.home, "token", "create", "--device", name)
        est = f"{served.est}/.well-known/est/{label}" if label else served.est
        ca_file = ca or str(served.ca_file)
        self.call("init", "--device-id", name, "--est", est, "--mqtt", f"{host}:{port}", "--ca", ca_file)
        self.call("enroll", give=token)

    def call(self, *words: str, give: str | None = None) -> str:
        return run_agent(self.home, *words, give=give)

    def renew(self) -> None:
        """As the agent does by itself when it is time; tried at the gateway before it takes the old one's place."""
        self.call("renew")

    @property
    def pair(self) -> tuple[Path, Path]:
        return self.home / "current" / "cert.pem", self.home / "current" / "key.pem"

    @property
    def chain(self) -> list[str]:
        """Issuers, from the leaf up, as the device sends them."""
        found = x509.load_pem_x509_certificates(self.pair[0].read_bytes())
        return [each.issuer.rfc4514_string().removeprefix("CN=") for each in found]

    def connects(self) -> bool:
        """At both workers, as the kernel spreads them."""
        return {mqtt_answer(self.served, self.pair, self.name) for _ in range(6)} == {0}


@contextmanager
def keeping_alive(served: Served, pair: tuple[Path, Path]) -> Iterator[http.client.HTTPSConnection]:
    """A connection to the HTTP API with the device's certificate, made once."""
    context = ssl.create_default_context(cafile=served.ca_file)
    context.load_cert_chain(*pair)
    host, port = served.address("http")
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=PATIENCE_SECONDS)
    yield connection
    connection.close()


def status_of(connection: http.client.HTTPSConnection) -> int:
    """What whoever holds the connection's certificate is answered."""
    connection.request("GET", "/v1/whoami")
    answer = connection.getresponse()
    answer.read()
    return answer.status


def shown(home: Path, *words: str) -> Any:
    return json.loads(run_fleet(home, *words, "-o", "json"))


def test_a_tenant_comes_while_the_fleet_is_served(served: Served, tmp_path: Path) -> None:
    home = served.home
    made = shown(home, "tenant", "add", "acme2")
    assert made["issuing"] == "CN=acme acme2 Issuing CA"
    run_fleet(home, "model", "add", "cam", "--tenant", "acme2")
    assert shown(home, "tenant", "list")[0]["models"] == ["cam"]
    # With a label, and without: then it is told of the CA when it has shown who it is.
    for name, label in (("cam-1", "acme2"), ("cam-2", "cam"), ("cam-3", "")):
        agent = Agent(served, tmp_path, name, "cam", label=label)
        assert agent.chain == ["acme acme2 Issuing CA", "acme Root CA"]
        assert agent.connects()
    own = Agent(served, tmp_path, "d-1", "default")
    assert own.chain == ["acme Issuing CA", "acme Root CA"]
    audit = [row["action"] for row in shown(home, "audit", "list")]
    assert "tenant.add" in audit


def test_a_tenant_with_a_root_of_its_own(served: Served, tmp_path: Path) -> None:
    home = served.home
    shown(home, "tenant", "add", "apart", "--own-root")
    run_fleet(home, "model", "add", "cam", "--tenant", "apart")
    run_fleet(home, "ca", "export", "--tenant", "apart", str(tmp_path / "apart.pem"))
    agent = Agent(served, tmp_path, "cam-1", "cam", ca=str(tmp_path / "apart.pem"))
    assert agent.chain == ["acme apart Issuing CA", "acme apart Root CA"]
    assert agent.connects()
    agent.renew()
    assert agent.connects()


def test_a_fleet_becomes_tenants_without_touching_its_devices(served: Served, tmp_path: Path) -> None:
    home = served.home
    run_fleet(home, "model", "add", "cam")
    agent, late = (Agent(served, tmp_path, name, "cam") for name in ("cam-1", "cam-2"))
    run_fleet(home, "tenant", "add", "new")
    moved = shown(home, "model", "set", "cam", "--tenant", "new")
    assert (moved["tenant"], moved["former_tenants"]) == ("new", [""])
    assert agent.connects()
    agent.renew()
    assert agent.chain == ["acme new Issuing CA", "acme Root CA"]
    assert agent.connects()
    assert late.connects()
    run_fleet(home, "model", "set", "cam", "--end-former-tenants")
    assert not late.connects()
    assert agent.connects()


def test_a_rollover_under_load_of_two_workers(served: Served, tmp_path: Path) -> None:
    home = served.home
    agent = Agent(served, tmp_path, "d-1", "default")
    before = shown(home, "ca", "show")
    after = shown(home, "ca", "rollover")
    assert after["issuing"] == "CN=acme Issuing CA 2"
    assert agent.connects()
    agent.renew()
    assert agent.chain == ["acme Issuing CA 2", "acme Root CA"]
    assert agent.connects()
    roles = [(row["role"], row["sha256"]) for row in shown(home, "ca", "show")]
    assert ("former", after["former"]) in roles
    assert "\nformer issuing  " in run_fleet(home, "ca", "show")
    assert {row["role"] for row in before} == {"root", "issuing", "operators"}
    host, port = served.address("est")
    shows = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(served.ca_file), "-verify_return_error"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert "i:CN = acme Issuing CA 2" in shows.stdout  # the server's own certificate is of the new CA too
    run_fleet(home, "ca", "forget", after["former"])  # its last certificate was superseded by the renewal
    assert agent.connects()
    assert "former" not in {row["role"] for row in shown(home, "ca", "show")}


def test_a_root_is_rolled_over_and_devices_that_trust_either_go_on(served: Served, tmp_path: Path) -> None:
    home = served.home
    run_fleet(home, "tenant", "add", "acme2")
    run_fleet(home, "model", "add", "cam", "--tenant", "acme2")
    (tmp_path / "old.pem").write_bytes(served.ca_file.read_bytes())
    olds = [
        Agent(served, tmp_path, name, model, ca=str(tmp_path / "old.pem"))
        for name, model in (("d-1", "default"), ("cam-1", "cam"))
    ]
    run_fleet(home, "ca", "rollover", "--root")
    assert (tmp_path / "old.pem").read_bytes() != served.ca_file.read_bytes()
    news = [Agent(served, tmp_path, name, model) for name, model in (("d-2", "default"), ("cam-2", "cam"))]
    for agent in (*olds, *news):
        assert agent.connects()
        agent.renew()
        assert agent.connects()
    for agent in (*olds, *news):  # who trusted the old root trusts both by now: the old one has said so itself
        known = x509.load_pem_x509_certificates((agent.home / "ca.pem").read_bytes())
        assert len(known) == (2 if agent in olds else 1)
        assert known[-1] == x509.load_pem_x509_certificate(served.ca_file.read_bytes())
    # Both roots have signed the fleet's issuing CA; the tenant's only the old one, which the new one has signed.
    leaf = ["acme Issuing CA 2", "acme Root CA"]
    assert [agent.chain for agent in olds] == [leaf, ["acme acme2 Issuing CA", "acme Root CA"]]
    assert [agent.chain for agent in news] == [leaf, ["acme acme2 Issuing CA", "acme Root CA", "acme Root CA"]]
    roles = [row["role"] for row in shown(home, "ca", "show")]
    assert roles == ["root", "former root", "issuing", "former", "issuing", "operators"]
    again = shown(home, "ca", "rollover")  # and it goes on as before, below the new root
    assert again["issuing"] == "CN=acme Issuing CA 3"
    for agent in (*olds, *news):
        assert agent.connects()


def test_a_former_ca_whose_certificates_are_in_use_is_kept(served: Served, tmp_path: Path) -> None:
    home = served.home
    agent = Agent(served, tmp_path, "d-1", "default")
    former = shown(home, "ca", "rollover")["former"]
    refused = program("fleet", "ca", "forget", former, home=home, expect=1)
    assert "that of device d-1" in refused.stderr
    assert agent.connects()
    with mqtt_connected(served, agent.pair, "d-1") as (session, code), keeping_alive(served, agent.pair) as est:
        assert (code, status_of(est)) == (0, 200)
        run_fleet(home, "ca", "forget", former.upper(), "--force")
        assert session.recv(1) == b""  # within the timeout of the connection
        assert status_of(est) == 403
    assert "former" not in {row["role"] for row in shown(home, "ca", "show")}
    actions = [row["action"] for row in shown(home, "audit", "list")]
    assert actions.count("ca.forget") == 1
    assert actions.count("ca.rollover") == 1
