"""`fleet publish`: a folder for relying parties, and the command that has them read it."""

import json
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.imported_crl import number_of
from fleet.ca.key_identifiers import identifier_of
from fleet.home.layout import certificate_in
from tests.home.corporate import below, corporate_root
from tests.serving import run_fleet, start
from tests.waiting import PATIENCE_SECONDS


def test_the_command_is_run_when_files_have_changed_and_only_then(tmp_path: Path) -> None:
    home, folder, ran = tmp_path / "home", tmp_path / "pki", tmp_path / "ran"
    run_fleet(home, "init")
    run_fleet(home, "crl", "issue")
    words = ("publish", str(folder), "--run", f"echo again >>'{ran}'")
    run_fleet(home, *words)
    run_fleet(home, *words)
    assert ran.read_text() == "again\n"
    assert (folder / "trust.pem").read_text() == (folder / "ca.pem").read_text() + (folder / "crl.pem").read_text()


def test_a_command_that_fails_is_reported_with_the_files_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run_fleet(home, "init")
    run_fleet(home, "publish", str(tmp_path / "pki"), "--run", "exit 3", expect=1)
    assert (tmp_path / "pki" / "ca.pem").exists()


def test_a_root_has_one_crl_whichever_command_signed_it_last(home: Path, tmp_path: Path) -> None:
    asked, answer, revoked = tmp_path / "asked.pem", tmp_path / "answer.pem", tmp_path / "revoked.pem"
    run_fleet(home, "tenant", "add", "apart", "--own-root")
    run_fleet(home, "ca", "csr", "--tenant", "apart", str(asked))
    run_fleet(home, "ca", "sign", str(asked), str(answer))
    revoked.write_text(answer.read_text().partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n")
    numbers = [0]
    root = identifier_of(certificate_in(home / "ca/root.pem")).hex()
    for command in (("ca", "crl", "--revoke", str(revoked), str(tmp_path / "1.crl")), ("crl", "issue"), ("ca", "crl")):
        run_fleet(home, *command)
        run_fleet(home, "publish", str(tmp_path / "pki"))
        files = [tmp_path / "pki/crl" / name for name in (f"{root}.crl", f"{root}/plain.crl")]
        full, plain = (x509.load_der_x509_crl(file.read_bytes()) for file in files)
        assert full == plain
        assert [each.serial_number for each in full] == [certificate_in(revoked).serial_number]
        assert full.next_update_utc is not None
        assert (full.next_update_utc - full.last_update_utc).days == 365
        numbers.append(number_of(full))
        every = x509_crls(tmp_path / "pki/crl.pem")
        assert [number_of(each) for each in every if each.issuer == full.issuer] == numbers[-1:]
    assert numbers == sorted(set(numbers))


def x509_crls(file: Path) -> list[x509.CertificateRevocationList]:
    end = "-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl((each + end).encode()) for each in file.read_text().split(end)[:-1]]


def test_a_command_that_did_not_succeed_is_run_again_though_no_file_has_changed(tmp_path: Path) -> None:
    home, folder, ran = tmp_path / "home", tmp_path / "pki", tmp_path / "ran"
    run_fleet(home, "init")
    words = ("publish", str(folder), "--run")
    run_fleet(home, *words, "exit 3", expect=1)
    run_fleet(home, *words, "exit 3", expect=1)
    run_fleet(home, *words, f"echo again >>'{ran}'")
    run_fleet(home, *words, f"echo once more >>'{ran}'")
    assert ran.read_text() == "again\n"
    run_fleet(home, "crl", "issue")
    run_fleet(home, "publish", str(folder))  # by hand, without the command that its reader needs
    run_fleet(home, *words, f"echo once more >>'{ran}'")
    assert ran.read_text() == "again\nonce more\n"


def test_a_kill_before_the_command_has_ended_does_not_lose_it(tmp_path: Path) -> None:
    home, folder, ran = tmp_path / "home", tmp_path / "pki", tmp_path / "ran"
    run_fleet(home, "init")
    words = ("-m", "fleet", "publish", "--home", str(home), str(folder), "--run")
    assert start("killed", *words, "kill -9 $PPID").process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    again = f"echo again >>'{ran}'; kill -TERM $PPID"
    assert start("following", *words, again, "--follow").process.wait(PATIENCE_SECONDS) == 0
    assert ran.read_text() == "again\n"


def test_the_crl_of_an_offline_root_is_published_with_the_others(home: Path, tmp_path: Path) -> None:
    crl, folder = tmp_path / "root.crl", tmp_path / "pki"
    run_fleet(home, "ca", "crl", "--days", "365", str(crl))
    (home / "ca/root.key").unlink()
    run_fleet(home, "ca", "import", str(crl))
    run_fleet(home, "crl", "issue")
    run_fleet(home, "publish", str(folder))
    command = ["openssl", "verify", "-crl_check_all", "-CAfile", str(folder / "trust.pem")]
    done = subprocess.run([*command, str(home / "server/server.pem")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_below_a_corporate_root_every_ca_above_is_published_with_its_crl(home: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    root = corporate_root("Corp Root", now)
    policy = below(root, "Corp Policy CA", now, path_length=2)
    between = below(policy, "Corp Devices CA", now, path_length=1)
    asked = x509.load_pem_x509_csr(run_fleet(home, "ca", "csr").encode())
    issuing = between.signed(asked.subject, asked.public_key(), now)
    answer, folder, crls = tmp_path / "answer.pem", tmp_path / "pki", tmp_path / "crls.pem"
    chain = [issuing, between.certificate, policy.certificate, root.certificate]
    came_along = [ca.crl(now).public_bytes(Encoding.PEM) for ca in (root, policy)]
    answer.write_bytes(b"".join([*(each.public_bytes(Encoding.PEM) for each in chain), *came_along]))
    run_fleet(home, "ca", "import", str(answer))
    crls.write_bytes(between.crl(now).public_bytes(Encoding.PEM))
    assert json.loads(run_fleet(home, "ca", "import", str(crls), "-o", "json"))["crl"] == "CN=Corp Devices CA"
    shown = json.loads(run_fleet(home, "ca", "show", "-o", "json"))
    assert [each["subject"] for each in shown if each["role"] == "intermediate"] == [
        "CN=Corp Devices CA",
        "CN=Corp Policy CA",
    ]
    run_fleet(home, "crl", "issue")
    run_fleet(home, "publish", str(folder))
    command = ["openssl", "verify", "-crl_check_all", "-CAfile", str(folder / "ca.pem")]
    done = subprocess.run(
        [*command, "-CRLfile", str(folder / "crl.pem"), str(home / "server/server.pem")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_ca_is_told_by_its_key_identifier_or_its_beginning(home: Path) -> None:
    run_fleet(home, "crl", "issue")
    cas = {each["key_id"]: each["subject"] for each in json.loads(run_fleet(home, "ca", "show", "-o", "json"))}
    listed = json.loads(run_fleet(home, "crl", "list", "-o", "json"))
    assert {each["ca"]: each["subject"] for each in listed} == cas
    for key_id in cas:
        shown = run_fleet(home, "crl", "show", key_id, "plain", "-o", "json")
        assert json.loads(shown)["ca"] == key_id
        assert run_fleet(home, "crl", "show", key_id[:8], "plain", "-o", "json") == shown
    run_fleet(home, "crl", "show", "0" * 8, expect=1)
    run_fleet(home, "crl", "show", next(iter(cas))[:7], expect=2)
