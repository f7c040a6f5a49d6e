"""The same commands at a home and from afar: what they print, what they refuse, and how they end, is the same."""

import asyncio
import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.cli import main
from fleet.cli.key_files import request_for
from fleet.domain.changes import AuditEntry, Change
from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.writes import Insert
from fleet.storage.engines import open_engine
from tests.servers.makers import new_maker
from tests.serving import Served, asked_to_wait, interrupted, run_fleet

Said = tuple[int, str, str]
USER = f"user {getpass.getuser()}"

# What differs from run to run: times, and what is drawn by lot.
TIMES = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?")
TOOK = re.compile(r"""\b(seconds|peak.rss.mb|peak memory, MB)("?: *)[0-9.]+""")
DRAWN = re.compile(r"\b[0-9a-f]{36,40}\b|\b[0-9a-f]{12}\b(\.[\w-]{43})?|\b[0-9a-f]{64}\b")

COMMANDS = """
model list
model add cam --lifetime 30d --publish up/{id} --retain
model add cam
model add a/b
model add valve --publish a/#/b
model show cam
model show pump
model set cam --no-retain --key-type Ed25519
model set pump --retain
model list -o json
device add cam-1 --model cam --serial SN-1
device add cam:2 --model cam
device add cam-1 --model cam
device add cam-3 --model pump
device add a/b --model cam
device add cam-4 --model cam --tag lot=L7 --tag site=Oslo --group pilot --group canary -o json
device add cam-5 --model cam --tag lot=L7
device add cam-6 --model cam --tag model=x
device add cam-6 --model cam --group a/b
device list
device list --tag lot=L7
device list --tag lot=L7 --tag site=Oslo --group pilot -o json
device list --group nobody
device list --expires-before 30d
device list --expires-before 30d --after 2026-12-01T00:00:00Z/cam-1
device list --expires-before soon
device tag cam-5 lot=L8 site=Bergen --group pilot --ungroup canary --reason moved -o json
device tag cam-5 lot=L8
device tag cam-4 --remove lot --remove site
device tag cam-4 lot=L7 --remove lot
device tag cam-9 lot=L7
device list --tag lot=L8
device list --model cam --limit 1
device list --after cam-1 -o json
device list --state suspended
device show cam-1
device show cam:2 -o json
device show cam-9
device show a/b
device suspend cam-1 --reason odd
device suspend cam-1
device resume cam-1
device resume cam-1
device revoke cam:2 -o json
device resume cam:2
device retire cam:2
device retire cam-9
device suspend --filter lot=L7 --dry-run
device suspend --filter lot=L7 --dry-run -o json
device suspend --filter lot=L7 --count 7
device suspend --filter lot=L7
device suspend --filter lot
device suspend --filter lot=L7 --reason leaks --count 1
device suspend --filter lot=L7 --yes -o json
device suspend --filter lot=none --yes
device resume --filter state=suspended --yes
device tag --filter model=cam site=Oslo --group recall --reason moved --yes
device tag --filter group=recall --remove site --ungroup recall --yes -o json
device tag --filter expires<30d lot=x --yes
device retire --filter model=pump --yes
token create --device cam-1
token create --model cam --uses 3 --ttl 7d -o json
token create --device cam-9
token create --device cam:2
token create
token list
token list -o json
token revoke nobody
token revoke 000000000000
request list
request list --state pending --model default -o json
request list --device nobody
request show {request}
request show 0000000000000000
request show nobody
request approve {request} --reason seen
request approve {request}
request deny {request} -o json
request deny {request}
request deny nobody
request list --limit 1
audit list --after 5 --limit 4
""".strip().splitlines()


AT_HOME = """
init elsewhere
serve
backup take b.fleet
restore b.fleet elsewhere
db status
db migrate
retention run
retention check
audit seal
webhook key
ca rollover
ca forget ab
tenant add acme
""".strip().splitlines()


@dataclass(frozen=True)
class Afar:
    """A served home, and an operator's files by which it is reached."""

    served: Served
    folder: Path

    def environment(self, name: str = "bob") -> dict[str, str]:
        return {
            "FLEET_URL": self.served.endpoints["http"],
            "FLEET_CERT": str(self.folder / f"{name}.pem"),
            "FLEET_CA": str(self.folder / "ca.pem"),
        }


@pytest.fixture
def afar(tmp_path: Path, served: Served) -> Afar:
    return afar_of(served, tmp_path)


@pytest.fixture(scope="module")
def shared(pristine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Afar]:
    """One served home for all tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("shared")
    home = Path(shutil.copytree(pristine_home, folder / "a home", symlinks=True))
    serving = Served(home, folder / "ready.json").start()
    try:
        yield afar_of(serving, folder)
    finally:
        serving.stop()


def afar_of(served: Served, folder: Path) -> Afar:
    """With the files of bob, an admin, and eve, a viewer."""
    password = folder / "password"
    password.write_text("secret\n")
    for name, role in (("bob", "admin"), ("eve", "viewer")):
        words = ("operator", "add", name, "--role", role, "--password-file", str(password))
        run_fleet(served.home, *words, "--out", str(folder / "files"))
    return Afar(served, folder / "files")


def said(words: str, environment: dict[str, str]) -> Said:
    """Exit code, output and complaints, without what differs from run to run."""
    unset = {name: None for name in os.environ if name.startswith("FLEET_")}
    done = CliRunner().invoke(main, words.split(), env={**unset, **environment})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

    def same(text: str) -> str:
        return TOOK.sub(r"\1\2TOOK", DRAWN.sub("DRAWN", TIMES.sub("TIME", text)))

    return done.exit_code, same(done.stdout), same(done.stderr)


def test_every_command_says_the_same(afar: Afar, home: Path, tmp_path: Path) -> None:
    request = asked_to_wait(afar.served, home, "new-1")
    copy = shutil.copytree(home, tmp_path / "here", ignore=shutil.ignore_patterns("*.sock"))
    here = {"FLEET_HOME": str(copy)}
    for template in COMMANDS:
        words = template.replace("{request}", request)
        there, at_home = said(words, afar.environment()), said(words, here)
        if words.startswith("audit"):  # who, and from where, is the difference that must be
            assert "operator bob" in there[1], there
            assert "127.0.0.1" in there[1]
            nowhere = "" if "json" in words else "-"
            there = (there[0], there[1].replace("operator bob", USER).replace("127.0.0.1", nowhere), there[2])
            assert (there[0], there[1].split(), there[2]) == (at_home[0], at_home[1].split(), at_home[2]), words
            continue
        if words.startswith(("request", "device show")):  # likewise
            there = (there[0], there[1].replace("operator bob", USER), there[2])
        if words.startswith("token list"):  # and a column is as wide as what is in it
            there, at_home = (
                (code, " ".join(text.replace("operator bob", USER).split()), complaint)
                for code, text, complaint in (there, at_home)
            )
        assert there == at_home, words


HOLDERS = """
ca show
ca show -o json
ca export -
ca export --chain -
station list
station add line-1 --model default --out {out}
station add line-1 --model default --out {out}
station add line-1 --model default --out {out}/2
station add line-2 --model pump --out {out}/2
station add a/b --model default --out {out}/2
station add line-3 --model default --days 7 --out {out}/3 -o json
station set line-1 --quota 20
station set line-1 --quota 20 -o json
station set nobody --quota 1
station list
station list -o json
station revoke line-1 --reason stolen
station revoke line-1
station revoke nobody
station revoke a/b
operator add carol --role factory --model default --out {out} --password-file {password}
operator add carol --role viewer --out {out}/2 --password-file {password}
operator add dan --role factory --out {out}/2 --password-file {password}
operator add erin --role viewer --model pump --out {out}/2 --password-file {password}
operator add a/b --role viewer --out {out}/2 --password-file {password}
operator show carol
operator show carol -o json
operator show nobody
operator show a/b
operator list
operator revoke carol -o json
operator revoke carol
operator revoke nobody
retention status
retention status -o json
claim create lot-7 --model default --quota 2 --expires 30d --out {out}/claim
claim create lot-7 --model default --quota 2 --expires 30d --out {out}/claim
claim create lot-7 --model default --quota 2 --expires 30d --out {out}/claim2
claim create lot-8 --model pump --quota 2 --expires 30d --out {out}/claim2
claim create a/b --model default --quota 2 --expires 30d --out {out}/claim2
claim create lot-8 --model default --quota 2 --expires 3d --out {out}/claim3 --csr {csr} -o json
claim create lot-9 --model default --quota 2 --expires 3d --out {out}/claim4 --csr {csr} -o json
claim list
claim list -o json
claim show lot-7
claim show lot-7 -o json
claim show nobody
claim release lot-7
claim quarantine lot-7 --reason odd -o json
claim quarantine lot-7
claim show lot-7
claim release lot-7
claim revoke lot-7 --reason over
claim revoke lot-7
claim quarantine lot-7
claim revoke nobody
claim list
anchor add acme {maker} --model default
anchor add acme {maker} --model default
anchor add other {maker} --model default
anchor add other {maker} --model pump
anchor add other {csr} --model default
anchor add other nowhere.pem --model default
anchor add other {root} --model default
anchor list
anchor list -o json
anchor remove acme --reason over
anchor remove acme
anchor remove a/b
tenant list
tenant list -o json
tenant show acme
tenant show acme -o json
tenant show nobody
device import {manifest}
device import {manifest} -o json
device import {csr}
device import nowhere.csv
device list
device show m-1
audit list --limit 8
audit list --action claim.* --limit 20
""".strip().splitlines()


MANIFEST = """device_id,model,hardware_serial,key_sha256,tags,groups
m-1,default,SN-1,,lot=L7;site=Oslo,pilot
m-2,default,,{key},,
m-3,pump,SN-3,,,
m/4,default,SN-4,,,
m-5,default,SN-1,,,
m-6,default,,{key},,
""".format(key="ab" * 32)


def test_stations_operators_and_cas_are_the_same(afar: Afar, home: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / file for name, file in (("maker", "maker.pem"), ("csr", "k.csr"), ("manifest", "m.csv"))}
    files["maker"].write_bytes(new_maker().pem)
    files["csr"].write_bytes(request_for("whoever", generate_key()))
    files["manifest"].write_text(MANIFEST)
    files["root"] = Path(shutil.copy(home / "ca" / "root.pem", tmp_path / "root.pem"))
    run_fleet(home, "tenant", "add", "acme", "--own-root")
    copy = shutil.copytree(home, tmp_path / "here", ignore=shutil.ignore_patterns("*.sock"))
    for template in HOLDERS:
        heard = []
        for side, environment in (("far", afar.environment()), ("near", {"FLEET_HOME": str(copy)})):
            out = str(tmp_path / side)
            words = template.format(out=out, password=tmp_path / "password", **files)
            code, output, complaint = said(words, environment)
            heard.append((code, output.replace(out, "OUT").split(), complaint.replace(out, "OUT")))
        if template.startswith("audit"):
            output = " ".join(heard[0][1]).replace("operator bob", USER).replace("127.0.0.1", "-")
            heard[0] = (heard[0][0], output.split(), heard[0][2])
        assert heard[0] == heard[1], template


def test_the_audit_is_exported_and_verified_from_afar(afar: Afar, home: Path, tmp_path: Path) -> None:
    """Row for row the same; the key of its heads is the auditor's own to bring."""
    here, there = {"FLEET_HOME": str(home)}, afar.environment()
    asyncio.run(written(home, 300))  # a block, and more
    assert said("audit seal", here)[0] == 0
    exported = [said_exactly("audit export --after 3", environment) for environment in (there, here)]
    rows = [[line for line in text.splitlines() if '"seq"' in line] for text in exported]
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 300
    key = shutil.copy(home / "ca" / "audit.pub", tmp_path / "audit.pub")
    state = tmp_path / "state.json"
    whole = json.loads(said_exactly(f"audit verify --public-key {key} --state {state} -o json", there))
    assert (whole["ok"], whole["read_from"], whole["signatures"]) == (True, 1, "verified")
    assert whole["rows"] == whole["sealed"] > 300
    assert said("model add one-more --lifetime 30d", here)[0] == 0
    assert said("audit seal", here)[0] == 0
    since = json.loads(said_exactly(f"audit verify --public-key {key} --state {state} -o json", there))
    assert (since["read_from"], since["rows"]) == (whole["rows"] + 1, whole["rows"] + 1)
    assert json.loads(said_exactly("audit verify -o json", there))["signatures"] == "not verified: give --public-key"
    other = tmp_path / "other.pub"
    other.write_bytes(generate_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    code, _, complaint = said(f"audit verify --public-key {other}", there)
    assert (code, "key" in complaint) == (1, True)
    with sqlite3.connect(home / "registry.db") as db:  # somebody with the server's files edits a row
        db.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 7")
    code, _, complaint = said(f"audit verify --public-key {key}", there)
    assert (code, "row 7 has been changed" in complaint) == (1, True), complaint


def test_a_key_made_afar_opens_its_doors(afar: Afar, tmp_path: Path) -> None:
    """A station's and an operator's, and neither is on the server; each is closed again by revoking it."""
    out = tmp_path / "far"
    there = afar.environment()
    assert said(f"station add line-1 --model default --out {out}", there)[0] == 0
    words = f"operator add carol --role viewer --out {out} --password-file {tmp_path / 'password'}"
    assert said(words, there)[0] == 0
    for name in ("station", "carol"):
        assert (out / f"{name}.key").stat().st_mode & 0o777 == 0o600
    station = {**there, "FLEET_CERT": str(out / "station.pem"), "FLEET_CA": str(out / "ca.pem")}
    assert "is not accepted for this path" in said("model list", station)[2]
    assert "uptime" in said("status", station)[1]
    carol = {**there, "FLEET_CERT": str(out / "carol.pem"), "FLEET_CA": str(out / "ca.pem")}
    assert said("model list", carol)[0] == 0
    assert "does not have the permission operator.write" in said(words.replace("carol", "dan"), carol)[2]
    assert not (out / "dan.key").exists()
    assert said("operator revoke carol", there)[0] == 0
    assert "is revoked" in said("model list", carol)[2]
    assert said("station revoke line-1", there)[0] == 0
    assert "is revoked" in said("status", station)[2]


def test_without_the_operators_key_the_server_adds_no_operator(afar: Afar, home: Path, tmp_path: Path) -> None:
    (home / "ca" / "operators.key").rename(tmp_path / "away.key")
    words = f"operator add carol --role viewer --out {tmp_path / 'far'} --password-file {tmp_path / 'password'}"
    code, _, complaint = said(words, afar.environment())
    assert code == 1
    assert "the key of the operators' CA is not on this server" in complaint
    assert not (tmp_path / "far" / "carol.key").exists()
    assert "carol" not in said("operator list", afar.environment())[1]
    (tmp_path / "away.key").rename(home / "ca" / "operators.key")
    assert said(words, afar.environment())[0] == 0


def test_ctrl_c_ends_an_act_on_many_between_two_steps(afar: Afar, home: Path) -> None:
    """And running it again does the rest."""
    asyncio.run(filled(home, 3000))
    words = ["device", "suspend", "--filter", "state=active", "--yes", "-o", "json"]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("FLEET_")} | afar.environment()
    command = [sys.executable, "-m", "fleet", *words]
    result = interrupted(command, environment, 3000)
    assert result["done"] > 0
    assert result["done"] % 500 == 0
    again = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert (again["done"], again["failed"]) == (3000 - result["done"], [])


async def written(home: Path, count: int) -> None:
    """So many rows of audit."""
    registry = await open_engine(home / "registry.db", create=False)
    for number in range(count):
        await registry.commit(Change(AuditEntry(datetime.now(UTC), "test", "prepare", f"row {number}", "ok")))
    await registry.close()


async def filled(home: Path, count: int) -> None:
    registry = await open_engine(home / "registry.db", create=False)
    device = Device(DeviceId(""), "default", DeviceState.ACTIVE, datetime.now(UTC))
    writes = tuple(Insert(replace(device, id=DeviceId(f"d{n:04}"))) for n in range(count))
    await registry.commit(Change(AuditEntry(device.created_at, "test", "prepare", "", "ok"), writes))
    await registry.close()


def test_forecasts_and_proofs_are_the_same(shared: Afar, tmp_path: Path) -> None:
    """A proof is of a row, and whoever asks for it gets a head of its own time: the row is what must be the same."""
    for word in ("--weeks 4", "--weeks 30 --cliff 12.5 -o json", "--check", "--weeks 520 --check"):
        there = said(f"forecast {word}", shared.environment())
        assert there == said(f"forecast {word}", {"FLEET_HOME": str(shared.served.home)}), word
        assert there[0] in (0, 1)
    serial = json.loads(said_exactly("operator show bob -o json", shared.environment()))["serial"]
    run_fleet(shared.served.home, "audit", "seal")
    for what in ("1", serial):
        proof = tmp_path / f"{what}.json"
        there = json.loads(said_exactly(f"audit prove {what}", shared.environment()))
        here = json.loads(said_exactly(f"audit prove {what}", {"FLEET_HOME": str(shared.served.home)}))
        assert (there["seq"], there["entry"], there["leaf"]) == (here["seq"], here["entry"], here["leaf"])
        assert said(f"audit prove {what} --out {proof}", shared.environment())[0] == 0
        key = shutil.copy(shared.served.home / "ca" / "audit.pub", tmp_path / "audit.pub")
        assert said(f"audit check-proof {proof} --public-key {key}", {})[0] == 0
    for what in ("99999", "0xabc", "abcdefg"):
        there = said(f"audit prove {what}", shared.environment())
        assert there == said(f"audit prove {what}", {"FLEET_HOME": str(shared.served.home)})
        assert there[0] in (1, 2)


def said_exactly(words: str, environment: dict[str, str]) -> str:
    done = CliRunner().invoke(main, words.split(), env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_status(shared: Afar) -> None:
    there = json.loads(said("status -o json", shared.environment())[1])
    here = json.loads(said("status -o json", {"FLEET_HOME": str(shared.served.home)})[1])
    assert there["registry"] == here["registry"]
    assert (here["registry"]["models"], here["registry"]["operators"]) == (1, 2)
    assert there["uptime_seconds"] > 0
    assert "tls" in there
    assert here["registry"]["devices"] == 0
    assert "broker" in there["upstream"]
    again = json.loads(said("status -o json", shared.environment())[1])
    assert again["http"]["200"] > there["http"].get("200", 0)  # the answer before is counted
    for environment in (shared.environment(), {"FLEET_HOME": str(shared.served.home)}):
        lines = [line.split() for line in said("status", environment)[1].splitlines()]
        assert lines[0] == ["PART", "WHAT", "VALUE"]
        assert ["registry", "devices", "0"] in lines
        assert all(len(line) >= 3 for line in lines), lines
    assert said("status", shared.environment())[0] == 0


def test_what_a_role_lacks_is_told(shared: Afar) -> None:
    code, _, complaint = said("device add cam-1 --model default", shared.environment("eve"))
    assert code == 1
    assert "the role viewer does not have the permission device.create" in complaint
    assert said("device list", shared.environment("eve"))[0] == 0


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"FLEET_CERT": None}, 2, "--cert"),
        ({"FLEET_CERT": "nowhere.pem"}, 1, "no such file or directory (nowhere.pem)"),
        ({"FLEET_CA": None}, 1, "is not trusted"),
        ({"FLEET_URL": "http://localhost:1"}, 2, "Write https://HOST:PORT"),
        ({"FLEET_URL": "https://localhost:1"}, 1, "cannot be reached: Connection refused"),
        ({"FLEET_HOME": "nowhere"}, 2, "and not both"),
    ],
)
def test_what_is_wrong_with_the_way_there(shared: Afar, changes: dict[str, str | None], code: int, says: str) -> None:
    merged = {**shared.environment(), **changes}
    environment = {name: value for name, value in merged.items() if value is not None}
    found, _, complaint = said("model list", environment)
    assert (found, "Traceback" in complaint) == (code, False), complaint
    assert says in complaint
    assert len(complaint.splitlines()) == 1 or code == 2


@pytest.mark.parametrize("words", AT_HOME)
def test_what_works_at_the_home_alone_says_so(words: str) -> None:
    code, _, complaint = said(f"{words} --url https://localhost:1 --cert bob.pem --ca ca.pem", {})
    assert code == 2
    text = " ".join(complaint.split())
    assert "works at the home itself and not over --url: " in text, complaint
    assert "Run it on the machine that has the home." in text


def test_nothing_found_in_the_audit_gives_a_hint(shared: Afar) -> None:
    for environment in (shared.environment(), {"FLEET_HOME": str(shared.served.home)}):
        code, output, complaint = said("audit list --action device", environment)
        assert (code, len(output.splitlines())) == (0, 1)
        assert "a * at the end matches any rest" in complaint
        assert "after row 9000" in said("audit list --after 9000", environment)[2]


def test_the_command_line_counts_before_the_environment(shared: Afar) -> None:
    assert (
        said(f"model list --url {shared.served.endpoints['http']}", {**shared.environment(), "FLEET_HOME": "x"})[0] == 0
    )
    code, _, complaint = said("model list --home nowhere", shared.environment())
    assert code == 1
    assert "nowhere is not a fleet home" in complaint


def test_the_crl_of_an_offline_root_is_published_from_afar_too(shared: Afar, tmp_path: Path) -> None:
    home, crl, away = shared.served.home, tmp_path / "root.crl", tmp_path / "root.key"
    run_fleet(home, "ca", "crl", "--days", "365", str(crl))
    shutil.move(home / "ca/root.key", away)
    run_fleet(home, "ca", "import", str(crl))
    der = ssl.PEM_cert_to_DER_cert(crl.read_text().replace("X509 CRL", "CERTIFICATE"))
    try:
        for folder, environment in (
            (tmp_path / "1", {"FLEET_HOME": str(home)}),
            (tmp_path / "2", shared.environment()),
        ):
            assert said(f"publish {folder}", environment)[0] == 0
            assert crl.read_bytes() in (folder / "crl.pem").read_bytes()
            published = {each.name for each in folder.rglob("*.crl") if each.read_bytes() == der}
            assert len(published) == 2
            assert "plain.crl" in published
    finally:
        shutil.move(away, home / "ca/root.key")


def test_a_revoked_operator_is_told_so(afar: Afar, home: Path) -> None:
    run_fleet(home, "operator", "revoke", "bob")
    code, _, complaint = said("model list", afar.environment())
    assert code == 1
    assert "the certificate presented is revoked" in complaint


@pytest.mark.parametrize(("listener", "lets_in"), [("est", False), ("mqtt", False), ("http", True)])
def test_an_operators_certificate_opens_no_other_door(shared: Afar, listener: str, lets_in: bool) -> None:
    context = ssl.create_default_context(cafile=shared.folder / "ca.pem")
    context.load_cert_chain(shared.folder / "bob.pem", shared.folder / "bob.key")
    host, port = shared.served.address(listener)
    heard = b""
    with (
        socket.create_connection((host, port), 10) as raw,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        tls.sendall(b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        heard = tls.recv(4096)
    assert heard.startswith(b"HTTP/1.1 200 OK") == lets_in
    assert bool(heard) == lets_in
    if not lets_in:
        shared.served.wait_for_line("event=tls.refused")
