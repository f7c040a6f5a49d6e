"""`fleet db`, and homes whose registry is in PostgreSQL: by the commands, on a real server."""

import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result

from fleet.cli import main
from fleet.config.settings_file import read_settings
from fleet.home.layout import open_home, revocation_journal
from fleet.storage.sqlite import connection as sqlite_file
from tests.postgres_server import PASSWORD, PostgresServer
from tests.waiting import PATIENCE_SECONDS

RunFleet = Callable[..., Result]


@pytest.fixture
def run_fleet(tmp_path: Path) -> RunFleet:
    """Run `fleet …` with the home named by FLEET_HOME; `expect` is the exit code."""

    def run(*arguments: str, expect: int = 0, **environment: str) -> Result:
        done = CliRunner().invoke(main, arguments, env={"FLEET_HOME": str(tmp_path / "home"), **environment})
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        assert PASSWORD not in done.stdout + done.stderr
        assert quote(PASSWORD, safe="") not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    """A new and empty database, by its name."""
    return postgres_server.make_database()


@pytest.fixture
def url(postgres_server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where it is; its password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return postgres_server.tcp_url(database)


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


class TestSqlite:
    def test_status(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        run_fleet("init", str(tmp_path / "home"))
        newest = sqlite_file.migrations()[-1][0]
        found = parsed(run_fleet("db", "status", "-o", "json"))
        assert found.pop("size_bytes") == (tmp_path / "home" / "registry.db").stat().st_size
        assert found == {
            "engine": "sqlite",
            "where": str(tmp_path / "home" / "registry.db"),
            "schema": newest,
            "newest_schema": newest,
            "devices": 0,
            "certificates": 0,
            "audit_rows": 1,
            "events": 0,
        }
        assert "newest schema:" in run_fleet("db", "status").stdout

    def test_migrate(self, run_fleet: RunFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        run_fleet("init", str(tmp_path / "home"))
        registry = tmp_path / "home" / "registry.db"
        registry.unlink()
        with closing(sqlite3.connect(registry, isolation_level=None)) as db:
            marks = f"PRAGMA user_version = 1; PRAGMA application_id = {sqlite_file.APPLICATION_ID};"
            db.executescript(sqlite_file.migrations()[0][1] + marks)
        registry.chmod(0o600)
        newest = sqlite_file.migrations()[-1][0]
        assert parsed(run_fleet("db", "status", "-o", "json"))["schema"] == 1
        with caplog.at_level("WARNING"):
            done = parsed(run_fleet("db", "migrate", "-o", "json"))
        assert (done["schema_before"], done["schema"]) == (1, newest)
        said = f"event=registry.upgraded where={registry} schema_before=1 schema={newest}"
        assert [each.getMessage() for each in caplog.records] == [said]
        done = parsed(run_fleet("db", "migrate", "-o", "json"))
        assert (done["schema_before"], done["schema"]) == (newest, newest)

    def test_it_carries_no_driver_of_postgresql(self) -> None:
        loads = "import sys, fleet.runtime.serve, fleet.cli.db; sys.exit('asyncpg' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", loads], check=False).returncode == 0

    def test_without_a_registry(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        run_fleet("init", str(tmp_path / "home"))
        (tmp_path / "home" / "registry.db").unlink()
        for command in ("status", "migrate"):
            complaint = run_fleet("db", command, expect=1).stderr
            assert "there is no registry at" in complaint
            assert "fleet restore" in complaint
            assert "fleet init" not in complaint  # it would refuse the folder


class TestPostgres:
    def test_init_keeps_the_url_and_no_password(
        self, run_fleet: RunFleet, url: str, tmp_path: Path, postgres_server: PostgresServer
    ) -> None:
        home = tmp_path / "home"
        assert parsed(run_fleet("init", str(home), "--database", url, "-o", "json"))["database"] == url
        assert not (home / "registry.db").exists()
        assert str(read_settings(home / "fleet.toml").database) == url
        assert all(PASSWORD not in file.read_text() for file in home.rglob("*") if file.is_file())
        assert [m["name"] for m in parsed(run_fleet("model", "list", "-o", "json"))] == ["default"]
        found = parsed(run_fleet("db", "status", "-o", "json"))
        assert (found["engine"], found["where"], found["audit_rows"]) == ("postgresql", url, 1)
        done = parsed(run_fleet("db", "migrate", "-o", "json"))
        assert done["schema_before"] == done["schema"] == found["newest_schema"]

    def test_a_database_without_its_registry_is_told_at_once(
        self, run_fleet: RunFleet, url: str, database: str, tmp_path: Path, postgres_server: PostgresServer
    ) -> None:
        home = tmp_path / "home"
        run_fleet("init", str(home), "--database", url)
        postgres_server.run("DROP SCHEMA fleet CASCADE", database)
        for words in (("db", "status"), ("device", "list"), ("serve", "--est", "127.0.0.1:0")):
            command = [sys.executable, "-m", "fleet", *words, "--home", str(home)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
            assert (done.returncode, done.stderr.count("(no-registry)")) == (1, 1), done.stderr

    def test_a_restore_into_a_database_in_use_is_refused_at_once(
        self, run_fleet: RunFleet, url: str, tmp_path: Path
    ) -> None:
        home, file, new = tmp_path / "home", tmp_path / "pg.backup", tmp_path / "new"
        run_fleet("init", str(home), "--database", url)
        run_fleet("backup", str(file), "--plain")
        words = ("restore", str(file), str(new), "--no-revocations-after-backup", "--database", url)
        command = [sys.executable, "-m", "fleet", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert (done.returncode, done.stderr.count("(registry-exists)")) == (1, 1), done.stderr
        assert not new.exists()

    def test_a_password_in_argv_is_refused(self, run_fleet: RunFleet, url: str, tmp_path: Path) -> None:
        told = url.replace("fleet@", f"fleet:{quote(PASSWORD, safe='')}@")
        done = run_fleet("init", str(tmp_path / "home"), "--database", told, expect=2)
        assert "holds a password" in done.stderr
        assert "PGPASSWORD" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_file_may_hold_it(
        self, run_fleet: RunFleet, postgres_server: PostgresServer, database: str, tmp_path: Path
    ) -> None:
        secret = tmp_path / "database url"
        told = postgres_server.tcp_url(database).replace("fleet@", f"fleet:{quote(PASSWORD, safe='')}@")
        secret.write_text(f"{told}\n")
        home = str(tmp_path / "home")
        secret.chmod(0o644)
        assert "can be read by others" in run_fleet("init", home, "--database-file", str(secret), expect=1).stderr
        secret.chmod(0o600)
        run_fleet("init", home, "--database-file", str(secret))
        assert parsed(run_fleet("db", "status", "-o", "json"))["where"] == postgres_server.tcp_url(database)
        assert str(read_settings(tmp_path / "home" / "fleet.toml").database) == f"file:{secret}"
        secret.write_text("not a url")
        assert "The first line of" in run_fleet("model", "list", expect=1).stderr.replace("the first", "The first")
        secret.unlink()
        assert "cannot be read" in run_fleet("model", "list", expect=1).stderr

    def test_two_sources_are_one_too_many(self, run_fleet: RunFleet, url: str, tmp_path: Path) -> None:
        words = ("--database", url, "--database-file", str(tmp_path / "x"))
        assert "not both" in run_fleet("init", str(tmp_path / "home"), *words, expect=2).stderr

    def test_a_database_has_one_fleet(self, run_fleet: RunFleet, url: str, tmp_path: Path) -> None:
        run_fleet("init", str(tmp_path / "home"), "--database", url)
        done = run_fleet("init", str(tmp_path / "other"), "--database", url, expect=1)
        assert "a fleet's registry in" in done.stderr
        assert "copy its home" in done.stderr
        assert not (tmp_path / "other").exists()
        assert len(parsed(run_fleet("audit", "list", "-o", "json"))) == 1

    def test_the_environment_goes_before_fleet_toml(self, run_fleet: RunFleet, url: str, tmp_path: Path) -> None:
        run_fleet("init", str(tmp_path / "home"))
        told = url.replace("fleet@", f"fleet:{quote(PASSWORD, safe='')}@")
        assert "there is no registry in" in run_fleet("db", "status", expect=1, FLEET_DATABASE=told).stderr
        run_fleet("init", str(tmp_path / "home 2"), FLEET_DATABASE=told)
        assert parsed(run_fleet("db", "status", "-o", "json", FLEET_DATABASE=told))["where"] == url
        assert parsed(run_fleet("db", "status", "-o", "json"))["engine"] == "sqlite"
        assert "FLEET_DATABASE" in run_fleet("db", "status", expect=1, FLEET_DATABASE="nonsense").stderr

    def test_a_server_that_is_gone_is_one_sentence(self, run_fleet: RunFleet, url: str, tmp_path: Path) -> None:
        run_fleet("init", str(tmp_path / "home"), "--database", url)
        file = tmp_path / "home" / "fleet.toml"
        file.write_text(file.read_text().replace(url, "postgresql://fleet@127.0.0.1:1/fleet"))
        for command in (("device", "list"), ("db", "status"), ("audit", "verify")):
            assert "cannot be reached" in run_fleet(*command, expect=1).stderr

    def test_audit_verify_finds_what_was_changed(
        self, run_fleet: RunFleet, url: str, database: str, tmp_path: Path, postgres_server: PostgresServer
    ) -> None:
        run_fleet("init", str(tmp_path / "home"), "--database", url)
        for n in range(3):
            run_fleet("device", "add", f"cam-{n}", "--model", "default")
        head = parsed(run_fleet("audit", "verify", "-o", "json"))["head"]
        assert head.startswith("4:")
        run_fleet("device", "add", "cam-9", "--model", "default")
        assert parsed(run_fleet("audit", "verify", "--head", head, "-o", "json"))["rows"] == 5
        run_fleet("audit", "verify", "--head", f"4:{'0' * 64}", expect=1)
        postgres_server.run("UPDATE fleet.audit SET actor = 'nobody' WHERE seq = 3", database)
        assert "row 3 has been changed" in run_fleet("audit", "verify", expect=1).stderr
        postgres_server.run("DELETE FROM fleet.audit WHERE seq = 3", database)
        assert "row 3 is missing" in run_fleet("audit", "verify", expect=1).stderr

    def test_a_copied_home_is_another_node_of_the_same_fleet(
        self, run_fleet: RunFleet, url: str, tmp_path: Path
    ) -> None:
        run_fleet("init", str(tmp_path / "home"), "--database", url)
        copy = Path(shutil.copytree(tmp_path / "home", tmp_path / "copy"))
        run_fleet("device", "add", "cam-7", "--model", "default", FLEET_HOME=str(copy))
        assert parsed(run_fleet("device", "show", "cam-7", "-o", "json"))["id"] == "cam-7"
        assert stat.S_IMODE((copy / "fleet.toml").stat().st_mode) == 0o600


READING = (
    ("device", "list"),
    ("device", "show", "cam-1"),
    ("audit", "list"),
    ("audit", "verify"),
    ("crl", "list"),
    ("ca", "show"),
    ("status",),
)


@pytest.mark.parametrize("is_whole", [False, True], ids=["the journal", "all of state/"])
def test_a_home_whose_journal_is_lost_is_left_alone_until_one_is_begun(
    run_fleet: RunFleet, tmp_path: Path, is_whole: bool
) -> None:
    home = tmp_path / "home"
    run_fleet("init", str(home))
    run_fleet("device", "add", "cam-1", "--model", "default")
    run_fleet("device", "add", "cam-2", "--model", "default")
    run_fleet("device", "suspend", "cam-1")
    run_fleet("device", "resume", "cam-1")
    journal = revocation_journal(open_home(home)).path
    if is_whole:
        shutil.rmtree(journal.parent)
    else:
        journal.unlink()
    for command in (("device", "revoke", "cam-1"), ("serve", "--est", "localhost:0", "--mqtt", "localhost:0")):
        assert "fleet db begin-journal" in run_fleet(*command, expect=1).stderr
    for reading in READING:
        warned = run_fleet(*reading).stderr
        assert [line[:31] for line in warned.splitlines() if ":" in line] == ["Warning: The revocation journal"], (
            reading
        )
    assert "cam-1" in run_fleet("device", "list").stdout
    beginning = run_fleet("db", "begin-journal", "-o", "json")
    assert "device.suspend device cam-1" in beginning.stderr
    begun = parsed(beginning)
    assert (begun["journal"], begun["begun"], begun["after_event"] > 0) == (str(journal), True, True)
    run_fleet("device", "revoke", "cam-1")
    again = parsed(run_fleet("db", "begin-journal", "-o", "json"))
    assert (again["begun"], again["after_event"] > begun["after_event"]) == (False, True)
    rows = [row for row in parsed(run_fleet("audit", "list", "-o", "json")) if row["action"] == "journal.begin"]
    assert [(row["subject"], row["detail"]) for row in rows] == [
        ("revocation journal", {"event": str(begun["after_event"])})
    ]
