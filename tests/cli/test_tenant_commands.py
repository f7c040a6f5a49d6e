"""`fleet tenant` and the tenants' half of `fleet ca`, as a person types them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli import main
from fleet.home.home_cas import root_keys_here
from fleet.home.layout import Home


def run_fleet(home: Path, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"FLEET_HOME": str(home)})
    assert done.exit_code == expect, (done.stdout, done.stderr, done.exception)
    return done


def parsed(home: Path, *words: str) -> Any:
    return json.loads(run_fleet(home, *words, "-o", "json").stdout)


def test_add_list_show(home: Path) -> None:
    made = parsed(home, "tenant", "add", "acme")
    assert made == parsed(home, "tenant", "show", "acme")
    assert (made["name"], made["own_root"], made["former"]) == ("acme", False, [])
    assert parsed(home, "tenant", "add", "apart", "--own-root")["root"] == "CN=fleet apart Root CA"
    run_fleet(home, "model", "add", "cam", "--tenant", "acme")
    found = {row["name"]: row for row in parsed(home, "tenant", "list")}
    assert (found["acme"]["models"], found["acme"]["root"]) == (["cam"], "the fleet's")
    assert (found["apart"]["models"], found["apart"]["root"]) == ([], "own")
    assert "acme" in run_fleet(home, "tenant", "list").stdout
    assert "tenant:" in run_fleet(home, "model", "show", "cam").stdout
    rows = [(row["role"], row["tenant"]) for row in parsed(home, "ca", "show")]
    tenants = [("issuing", "acme"), ("root", "apart"), ("issuing", "apart")]
    assert rows == [("root", None), ("issuing", None), *tenants, ("operators", None)]


def test_refusals_are_one_sentence(home: Path) -> None:
    run_fleet(home, "tenant", "add", "acme")
    run_fleet(home, "model", "add", "cam")
    for words, sentence in (
        (("tenant", "add", "acme"), "there is a tenant acme already"),
        (("tenant", "add", "cam"), "there is a model cam"),
        (("tenant", "add", "cacerts"), "is an operation of EST"),
        (("tenant", "show", "nobody"), "there is no tenant 'nobody'"),
        (("model", "add", "acme"), "there is a tenant acme"),
        (("model", "add", "new", "--tenant", "nobody"), "there is no tenant nobody"),
        (("model", "set", "cam", "--tenant", "nobody"), "there is no tenant nobody"),
        (("ca", "rollover", "--tenant", "nobody"), "there is no tenant 'nobody'"),
        (("ca", "export", "--tenant", "nobody"), "there is no tenant 'nobody'"),
        (("ca", "forget", "00" * 32), "there is no former CA '0000"),
    ):
        refused = run_fleet(home, *words, expect=1)
        assert sentence in refused.stderr.lower().replace("est", "EST").replace(" ca ", " CA "), refused.stderr
        assert refused.stderr.count("\n") == 1
    assert [row["name"] for row in parsed(home, "tenant", "list")] == ["acme"]
    assert not list((home / "ca" / "tenants").glob(".*"))
    assert parsed(home, "model", "show", "cam")["tenant"] == ""


@pytest.mark.parametrize(
    "words",
    [
        ("forget", "abc"),
        ("forget", "00" * 31),
        ("forget", "zz" * 32),
        ("forget", "00" * 32, "--tenant", "a/b"),
        ("export", "--tenant", "a/b"),
        ("rollover", "--tenant", "a b"),
    ],
)
def test_what_no_ca_can_have_is_wrong_use(home: Path, words: tuple[str, ...]) -> None:
    run_fleet(home, "ca", *words, expect=2)


def test_every_act_is_in_the_audit_and_what_was_refused_is_not_there(home: Path) -> None:
    made = parsed(home, "tenant", "add", "acme")
    run_fleet(home, "ca", "rollover", "--tenant", "acme")
    run_fleet(home, "ca", "forget", "--tenant", "acme", made["sha256"])
    rows = {row["action"]: row for row in parsed(home, "audit", "list")}
    assert rows["tenant.add"]["subject"] == "tenant acme"
    assert rows["tenant.add"]["detail"] == {"sha256": made["sha256"], "root": "the fleet's"}
    assert rows["ca.rollover"]["detail"] == {"ends": made["sha256"]}
    assert rows["ca.forget"]["detail"] == {"sha256": made["sha256"]}


def test_the_root_may_be_offline(home: Path) -> None:
    (home / "ca" / "root.key").rename(home / "root.key.away")
    for words in (("tenant", "add", "acme"), ("ca", "rollover")):
        assert "the root's key is not here" in run_fleet(home, *words, expect=1).stderr
    assert {row["role"] for row in parsed(home, "ca", "show")} == {"root", "issuing", "operators"}


def test_export_writes_what_devices_trust(home: Path, tmp_path: Path) -> None:
    run_fleet(home, "tenant", "add", "acme")
    run_fleet(home, "tenant", "add", "apart", "--own-root")

    def exported(*words: str) -> list[str]:
        pem = run_fleet(home, "ca", "export", *words).stdout_bytes
        found = x509.load_pem_x509_certificates(pem)
        return [each.subject.rfc4514_string().removeprefix("CN=fleet ") for each in found]

    assert exported() == exported("--tenant", "acme") == ["Root CA"]
    assert exported("--chain") == ["Root CA", "Issuing CA"]
    assert exported("--tenant", "acme", "--chain") == ["Root CA", "acme Issuing CA"]
    assert exported("--tenant", "apart") == ["apart Root CA", "Root CA"]
    run_fleet(home, "ca", "rollover", "--tenant", "acme")
    assert exported("--tenant", "acme", "--chain") == ["Root CA", "acme Issuing CA 2", "acme Issuing CA"]


def test_a_damaged_tenant_is_told_of(home: Path) -> None:
    run_fleet(home, "tenant", "add", "acme")
    (home / "ca" / "tenants" / "acme" / "issuing.pem").write_text("nonsense")
    assert "cannot be read" in run_fleet(home, "tenant", "list").stderr
    assert "cannot be read" in run_fleet(home, "tenant", "show", "acme", expect=1).stderr


def test_a_backup_holds_the_tenants(home: Path, tmp_path: Path) -> None:
    run_fleet(home, "tenant", "add", "apart", "--own-root")
    run_fleet(home, "ca", "rollover", "--tenant", "apart")
    rolled = parsed(home, "ca", "rollover", "--root")
    root = x509.load_pem_x509_certificate((home / "ca" / "root.pem").read_bytes())
    assert rolled["root_sha256"] == root.fingerprint(hashes.SHA256()).hex()
    run_fleet(home, "model", "add", "cam", "--tenant", "apart")
    file = tmp_path / "fleet.backup"
    password = tmp_path / "password"
    password.write_text("a long passphrase\n")
    run_fleet(home, "backup", str(file), "--password-file", str(password))
    other = tmp_path / "restored"
    words = ("--password-file", str(password), "--no-revocations-after-backup")
    run_fleet(home, "restore", str(file), str(other), *words)
    assert parsed(other, "ca", "show") == parsed(home, "ca", "show")
    assert parsed(other, "tenant", "list") == parsed(home, "tenant", "list")
    before = sorted(path.relative_to(home) for path in (home / "ca").rglob("*"))
    assert sorted(path.relative_to(other) for path in (other / "ca").rglob("*")) == before
    for key in (other / "ca").rglob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    run_fleet(other, "ca", "rollover", "--tenant", "apart")


def test_a_forecast_knows_the_tenants(home: Path) -> None:
    run_fleet(home, "tenant", "add", "acme")
    run_fleet(home, "model", "add", "old", "--tenant", "acme", "--lifetime", "3650d")
    (warning,) = [w for w in parsed(home, "forecast")["warnings"] if w["code"] == "authority-cuts-certificates"]
    assert "the issuing CA of acme has" in warning["message"]
    assert "model old" in warning["message"]


def test_a_tenants_home_can_be_copied_to_another_node(home: Path, tmp_path: Path) -> None:
    node = Path(shutil.copytree(home, tmp_path / "node"))
    run_fleet(home, "tenant", "add", "acme")
    shutil.copytree(home / "ca", node / "ca", dirs_exist_ok=True)
    assert parsed(node, "ca", "show") == parsed(home, "ca", "show")


def test_a_name_that_no_tenant_can_have_is_wrong_use(home: Path) -> None:
    for words in (("tenant", "add", "../x"), ("tenant", "show", "a b")):
        assert "is not a name for a tenant" in run_fleet(home, *words, expect=2).stderr
    assert parsed(home, "tenant", "list") == []


def test_names_complete_in_the_shell(home: Path) -> None:
    for name in ("acme", "apart"):
        run_fleet(home, "tenant", "add", name)
    environment = {"FLEET_HOME": str(home), "_MAIN_COMPLETE": "bash_complete", "COMP_WORDS": "main tenant show ac"}
    done = CliRunner().invoke(main, [], env={**environment, "COMP_CWORD": "3"}, prog_name="main")
    assert done.stdout == "plain,acme\n"


def test_a_former_root_is_forgotten_once_no_tenant_is_below_it(home: Path) -> None:
    run_fleet(home, "tenant", "add", "acme")
    first = {row["role"]: row["sha256"] for row in parsed(home, "ca", "show") if not row["tenant"]}
    run_fleet(home, "ca", "rollover", "--root")
    served = home / "server" / "server.pem"
    both = served.read_bytes()
    refused = run_fleet(home, "ca", "forget", first["root"], expect=1).stderr
    assert "it has signed the issuing CA of tenant acme" in refused
    assert "fleet ca rollover --tenant acme" in refused
    run_fleet(home, "ca", "forget", first["root"], "--force", expect=1)
    now = next(row["sha256"] for row in parsed(home, "ca", "show") if row["role"] == "root")
    assert "only a former CA can be forgotten" in run_fleet(home, "ca", "forget", now, expect=1).stderr
    rolled = next(row for row in parsed(home, "audit", "list") if row["action"] == "ca.rollover")
    assert rolled["detail"]["ends_root"] == first["root"]
    run_fleet(home, "ca", "rollover", "--tenant", "acme")
    assert parsed(home, "ca", "forget", first["root"])["state"] == "forgotten"
    assert "former root" not in {row["role"] for row in parsed(home, "ca", "show")}
    assert not list((home / "ca" / "roots").iterdir())
    leaf, issuing = x509.load_pem_x509_certificates(served.read_bytes())
    assert len(x509.load_pem_x509_certificates(both)) == 3
    [root] = x509.load_pem_x509_certificates(run_fleet(home, "ca", "export").stdout_bytes)
    issuing.verify_directly_issued_by(root)
    leaf.verify_directly_issued_by(issuing)
    run_fleet(home, "ca", "forget", first["root"], expect=1)
    run_fleet(home, "ca", "rollover", "--root")
    assert sorted(file.name for file in (home / "ca" / "roots").iterdir())[0] == "1-issuing.pem"


def _listed_by_roots(home: Path, folder: Path) -> dict[str, set[int]]:
    """Serial numbers in the published CRL of each root, by its SHA-256."""
    run_fleet(home, "crl", "issue")
    run_fleet(home, "publish", str(folder))
    roots = [row for row in parsed(home, "ca", "show") if "root" in row["role"]]
    crls = {row["sha256"]: (folder / "crl" / f"{row['key_id']}.crl").read_bytes() for row in roots}
    return {of: {each.serial_number for each in x509.load_der_x509_crl(crl)} for of, crl in crls.items()}


def _ca(home: Path, role: str) -> x509.Certificate:
    [row] = [row for row in parsed(home, "ca", "show") if row["role"] == role and not row["tenant"]]
    return x509.load_pem_x509_certificate(row["pem"].encode())


def test_a_forgotten_issuing_ca_is_in_the_crl_of_the_root_that_has_signed_it(home: Path, tmp_path: Path) -> None:
    """Who has a copy of its key signs certificates of new serial numbers, and its CRLs."""
    gone, before = _ca(home, "issuing"), _ca(home, "root").fingerprint(hashes.SHA256()).hex()
    run_fleet(home, "ca", "rollover", "--root")
    done = run_fleet(home, "ca", "forget", gone.fingerprint(hashes.SHA256()).hex())
    assert not done.stderr
    now = _ca(home, "root").fingerprint(hashes.SHA256()).hex()
    assert _listed_by_roots(home, tmp_path / "pki") == {before: {gone.serial_number}, now: set()}


def test_a_ca_is_revoked_by_the_former_root_that_has_signed_it(home: Path, tmp_path: Path) -> None:
    stolen, before = _ca(home, "issuing"), _ca(home, "root")
    (tmp_path / "stolen.pem").write_bytes(stolen.public_bytes(Encoding.PEM))
    run_fleet(home, "ca", "rollover", "--root")
    signed = run_fleet(home, "ca", "crl", "--revoke", str(tmp_path / "stolen.pem")).stdout_bytes
    crl = x509.load_pem_x509_crl(signed)
    assert crl.is_signature_valid(before.public_key())  # type: ignore[arg-type]
    assert {each.serial_number for each in crl} == {stolen.serial_number}


def test_where_the_roots_key_is_away_a_forgotten_ca_is_named_for_its_crl(home: Path) -> None:
    gone = _ca(home, "issuing")
    run_fleet(home, "ca", "rollover")
    (home / "ca" / "root.key").rename(home / "root.key.away")
    said = run_fleet(home, "ca", "forget", gone.fingerprint(hashes.SHA256()).hex()).stderr
    assert f"{gone.serial_number:x}" in said
    assert "fleet ca crl --revoke" in said


def test_show_says_which_keys_are_here(home: Path) -> None:
    run_fleet(home, "ca", "rollover", "--root")
    assert all(row["key_here"] for row in parsed(home, "ca", "show"))
    (home / "ca" / "root.key").unlink()
    (home / "ca" / "roots" / "1-root.key").unlink()
    shown = {row["role"]: row["key_here"] for row in parsed(home, "ca", "show")}
    assert shown == {"root": False, "former root": False, "issuing": True, "former": True, "operators": True}
    assert root_keys_here(Home(home)) == []


def test_check_says_what_is_not_there(home: Path) -> None:
    done = run_fleet(home, "ca", "check")
    assert "set [publish] url" in done.stderr
    settings = home / "fleet.toml"
    settings.write_text(settings.read_text().replace('url = ""', 'url = "http://127.0.0.1:1"', 1))
    rows = json.loads(run_fleet(home, "ca", "check", "-o", "json", expect=1).stdout)
    assert {(row["what"], row["state"]) for row in rows} == {(each, "unreachable") for each in ("crl", "ocsp", "ca")}


def test_a_request_travels_to_a_root_and_back(home: Path, tmp_path: Path) -> None:
    asked, answer = tmp_path / "request.pem", tmp_path / "answer.pem"
    run_fleet(home, "tenant", "add", "apart", "--own-root")
    said = run_fleet(home, "ca", "csr", "--tenant", "apart", str(asked)).stderr
    assert "fleet ca import --tenant apart" in said
    run_fleet(home, "ca", "crl", str(tmp_path / "root.crl"))
    signed = run_fleet(home, "ca", "sign", str(asked), str(answer), "--days", "30").stderr
    assert said.splitlines()[0] == signed.splitlines()[0]  # the key
    made = parsed(home, "ca", "import", "--tenant", "apart", str(answer))
    assert f"SHA-256 of the certificate: {made['sha256']}" in signed
    assert made["chain"] == ["CN=fleet Root CA"]
    refused = run_fleet(home, "ca", "import", "--tenant", "apart", str(answer), expect=1)
    assert "there is no request that this could answer" in refused.stderr
    assert "is no root" in run_fleet(home, "ca", "cross-sign", str(home / "ca" / "issuing.pem"), expect=1).stderr
    actions = [row["action"] for row in parsed(home, "audit", "list")]
    assert (actions.count("ca.sign"), actions.count("ca.import")) == (1, 1)
