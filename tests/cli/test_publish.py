"""`fleet publish`: a folder for relying parties, and the command that has them read it."""

import subprocess
from pathlib import Path

from tests.serving import run_fleet


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
