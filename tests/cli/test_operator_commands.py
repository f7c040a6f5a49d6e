"""`fleet operator`: its files, its roles, and what is refused."""

import asyncio
import getpass
import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from fleet.cli import main
from fleet.domain.access import Act
from fleet.services import inventory
from fleet.storage.sqlite.registry import SqliteRegistry

RunFleet = Callable[..., Result]

FILES = ["bob.key", "bob.p12", "bob.pem", "ca.pem"]


@pytest.fixture
def run_fleet(home: Path) -> RunFleet:
    """Run `fleet operator …` on the home; `expect` is the exit code."""

    def run(*arguments: str, expect: int = 0) -> Result:
        environment = {"FLEET_HOME": str(home), "P12_PASSWORD": "pass"}
        done = CliRunner().invoke(main, ["operator", *arguments], env=environment)
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        return done

    return run


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def add(
    run_fleet: RunFleet, out: Path, name: str = "bob", *options: str, role: str = "admin", expect: int = 0
) -> Result:
    words = ("add", name, "--role", role, "--out", str(out), "--password-env", "P12_PASSWORD", "-o", "json")
    return run_fleet(*words, *options, expect=expect)


def test_its_files(run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    added = parsed(add(run_fleet, out))
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert all((out / name).stat().st_mode & 0o077 == 0 for name in ("bob.key", "bob.p12"))
    assert (out / "ca.pem").read_bytes() == (home / "ca" / "root.pem").read_bytes()
    leaf, authority = x509.load_pem_x509_certificates((out / "bob.pem").read_bytes())
    assert authority == x509.load_pem_x509_certificate((home / "ca" / "operators.pem").read_bytes())
    leaf.verify_directly_issued_by(authority)
    key = load_pem_private_key((out / "bob.key").read_bytes(), None)
    assert leaf.public_key() == key.public_key()
    assert f"{leaf.serial_number:x}" == added["serial"]
    bundle = load_pkcs12((out / "bob.p12").read_bytes(), b"pass")
    assert bundle.cert is not None
    assert bundle.cert.certificate == leaf
    assert [each.certificate for each in bundle.additional_certs] == [authority]


def test_list_show_revoke(run_fleet: RunFleet, tmp_path: Path) -> None:
    add(run_fleet, tmp_path / "out")
    add(run_fleet, tmp_path / "out", "line", "--model", "default", "--model", "default", role="factory")
    bob, line = parsed(run_fleet("list", "-o", "json"))
    assert (bob["name"], bob["role"], bob["models"], bob["certificate"]) == ("bob", "admin", ["*"], "issued")
    assert (line["name"], line["role"], line["models"]) == ("line", "factory", ["default"])
    shown = parsed(run_fleet("show", "line", "-o", "json"))
    assert "token.create" in shown["permissions"]
    assert "device.write" not in shown["permissions"]
    assert parsed(run_fleet("revoke", "bob", "--reason", "left", "-o", "json")) == {
        "name": "bob",
        "certificate": "revoked",
    }
    assert parsed(run_fleet("list", "-o", "json"))[0]["certificate"] == "revoked"
    assert "no certificate that is not revoked" in run_fleet("revoke", "bob", expect=1).stderr
    run_fleet("revoke", "bob", "--crl-reason", "keyCompromise")
    assert "no operator" in run_fleet("revoke", "nobody", expect=1).stderr
    assert "no operator" in run_fleet("show", "nobody", expect=1).stderr
    done = CliRunner().invoke(main, ["audit", "list", "-o", "json"], env={"FLEET_HOME": str(tmp_path / "home")})
    rows = [(row["actor"], row["action"], row["subject"]) for row in json.loads(done.stdout)]
    user = f"user {getpass.getuser()}"
    assert rows[1:] == [
        (user, "operator.add", "operator bob"),
        (user, "operator.add", "operator line"),
        (user, "operator.revoke", "operator bob"),
        (user, "operator.revoke", "operator bob"),
    ]


def test_tokens_that_it_made_are_shown_and_revoked(run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
    add(run_fleet, tmp_path / "out")

    async def made() -> None:
        registry = await SqliteRegistry.open(home / "registry.db")
        for _ in range(2):
            await inventory.create_token(registry, model="default", act=Act("operator bob", datetime.now(UTC)))
        await registry.close()

    asyncio.run(made())
    assert parsed(run_fleet("show", "bob", "-o", "json"))["open_tokens"] == 2
    assert "2 tokens that 'bob' made can still be used" in run_fleet("revoke", "bob").stderr
    done = run_fleet("revoke", "bob", "--tokens", "-o", "json")
    assert (done.stderr, parsed(done)["revoked_tokens"]) == ("", 2)
    assert parsed(run_fleet("show", "bob", "-o", "json"))["open_tokens"] == 0


@pytest.mark.parametrize(
    ("name", "role", "options", "code", "says"),
    [
        ("../bob", "admin", (), 2, "not a name for a person or program"),
        ("bob", "factory", (), 2, "always restricted to models"),
        ("bob", "admin", ("--model", "pump"), 1, "no model 'pump'"),
        ("ca", "admin", (), 1, "ca.pem exists, or is reserved"),
    ],
)
def test_refused_and_nothing_left_behind(
    run_fleet: RunFleet, tmp_path: Path, name: str, role: str, options: tuple[str, ...], code: int, says: str
) -> None:
    out = tmp_path / "out"
    assert says in add(run_fleet, out, name, *options, role=role, expect=code).stderr
    assert not out.exists() or list(out.iterdir()) == []
    assert parsed(run_fleet("list", "-o", "json")) == []


def test_nothing_is_overwritten(run_fleet: RunFleet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    add(run_fleet, out)
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert "exists, or is reserved" in add(run_fleet, out, expect=1).stderr
    assert "exists already" in add(run_fleet, tmp_path / "other", expect=1).stderr
    add(run_fleet, out, "alice")
    assert {p: p.read_bytes() for p in before} == before
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "ca.pem").write_text("another fleet's root")
    assert "of another fleet" in add(run_fleet, tmp_path / "strange", "carol", expect=1).stderr


@pytest.mark.parametrize("name", ["bob.pem", "bob.key", "bob.p12"])
def test_a_planted_link_is_not_followed(run_fleet: RunFleet, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "elsewhere")
    assert "exists, or is reserved" in add(run_fleet, out, expect=1).stderr
    assert not (tmp_path / "elsewhere").exists()
    assert parsed(run_fleet("list", "-o", "json")) == []


def test_a_password_comes_from_somewhere(run_fleet: RunFleet, tmp_path: Path) -> None:
    done = run_fleet("add", "bob", "--role", "admin", "--out", str(tmp_path / "out"), expect=1)
    assert "--password-file" in done.stderr
    assert parsed(run_fleet("list", "-o", "json")) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_tells_the_two_cas_apart(run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
    add(run_fleet, tmp_path / "out")
    certificate = str(tmp_path / "out" / "bob.pem")
    for authority, expected in (("operators.pem", 0), ("root.pem", 2)):
        trust = ["-CAfile", str(home / "ca" / authority)]
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", *trust, certificate]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stderr


def test_a_password_file_with_a_byte_order_mark(run_fleet: RunFleet, tmp_path: Path) -> None:
    """An editor's mark is no part of the password; a file in UTF-16 is named."""
    file, out = tmp_path / "password", tmp_path / "out"
    file.write_text("pass\n", "utf-8-sig")
    words = ("add", "bob", "--role", "viewer", "--out", str(out), "--password-file", str(file))
    run_fleet(*words)
    assert load_pkcs12((out / "bob.p12").read_bytes(), b"pass").key is not None
    file.write_text("pass\n", "utf-16")
    assert "UTF-16" in run_fleet("add", "carol", *words[2:], expect=1).stderr
