"""The systemd unit: judged by systemd's own tools, and written where it belongs."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.cli import cli
from device_agent.config.agent_config import read_config
from device_agent.errors import AgentError
from device_agent.systemd.installation import Installation, run_command
from device_agent.systemd.unit import Unit
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.homes import make_home

ANALYZE = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze: not installed")
EXPOSURE_MAX = 1.3  # of 10; systemd's own services have 2 to 9
HOOKS = """
[[hook]]
name = "nginx"
run = ["systemctl", "reload", "nginx"]
[[hook.copy]]
content = "pair"
to = "/etc/nginx/my tls/pair.pem"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    return make_home(tmp_path_factory.mktemp("var") / "a 100% home", authority)


def call(home: Path, *words: str, expect: int = 0) -> str:
    done = CliRunner().invoke(cli, ["service", *words, "--home", str(home)])
    assert done.exit_code == expect, done.output
    return done.output


def unit_with(home: Path, more: str = "") -> Unit:
    text = (home / "agent.toml").read_text()
    (home / "agent.toml").write_text(text + HOOKS + more)
    try:
        return Unit("device-agent", ("/bin/sh", "-c", "a 'b' $HOME"), home, "device-agent", read_config(home).hooks)
    finally:
        (home / "agent.toml").write_text(text)


@ANALYZE
@pytest.mark.parametrize(("more", "exposure_max"), [("", EXPOSURE_MAX), ('owner = "root"\n', 2.3)])
def test_systemd_accepts_it_and_finds_little_exposed(
    home: Path, tmp_path: Path, more: str, exposure_max: float
) -> None:
    unit = unit_with(home, more)
    file = tmp_path / unit.file_name
    file.write_text(unit.text)
    verified = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert str(file) not in verified.stderr
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        f"--threshold={exposure_max * 10:.0f}",
        str(file),
    ]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-200:]
    exposure = re.search(r"Overall exposure level for .*: ([0-9.]+)", judged.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= exposure_max


def test_what_the_unit_says(home: Path) -> None:
    text = unit_with(home).text
    assert "ExecStart=/bin/sh -c \"a 'b' $$HOME\"\n" in text
    escaped = str(home).replace("%", "%%")
    assert f'ReadWritePaths="{escaped}" "-/etc/nginx/my tls"\n' in text
    assert "CapabilityBoundingSet=\n" in text
    assert "PrivateUsers=yes\n" in text
    with_owner = unit_with(home, 'group = "www-data"\n').text
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE\n" in with_owner
    assert "PrivateUsers" not in with_owner
    assert "ProtectHome=read-only" in Unit("a", ("/home/pi/venv/bin/python",), home, "a").text


def test_print_shows_what_install_writes(home: Path, tmp_path: Path) -> None:
    shown = call(home, "print")
    assert call(home, "install", "--print") == shown
    assert not list(tmp_path.iterdir())
    said = call(home, "install", "--root", str(tmp_path))
    unit = tmp_path / "etc/systemd/system/device-agent.service"
    assert unit.read_text() == shown
    assert unit.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "etc/sysusers.d/device-agent.conf").read_text().startswith("u device-agent - ")
    assert "systemctl enable device-agent.service" in said
    assert "chown -hR device-agent:device-agent" in said
    assert f"In that system, once it has {home} and the program:\n  systemd-sysusers /etc/sysusers.d/" in said
    assert "Unchanged" in call(home, "install", "--root", str(tmp_path))
    state = call(home, "status", "--root", str(tmp_path), expect=1)
    assert re.search(r"unit +installed\n", state)
    with unit.open("a") as file:
        file.write("# changed\n")
    assert "run install again" in call(home, "status", "--root", str(tmp_path), expect=1)
    assert "Removed" in call(home, "uninstall", "--root", str(tmp_path))
    assert not unit.exists()
    assert call(home, "uninstall", "--root", str(tmp_path)) == "Not installed.\n"
    assert "not installed" in call(home, "status", "--root", str(tmp_path), expect=1)


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="systemd-sysusers: not installed")
def test_its_user_is_one_that_systemd_makes(home: Path, tmp_path: Path) -> None:
    call(home, "install", "--root", str(tmp_path))
    for name in ("passwd", "group", "shadow", "gshadow"):
        (tmp_path / "etc" / name).touch()
    command = ["systemd-sysusers", f"--root={tmp_path}", "device-agent.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, _, uid, _, title, folder, shell = (tmp_path / "etc/passwd").read_text().strip().split("\n")[-1].split(":")
    assert (name, title, folder, shell) == ("device-agent", "Device agent", str(home), "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000


class Live(Installation):
    """As on a machine that systemd runs."""

    @property
    def is_live(self) -> bool:
        return True


def test_where_systemd_runs_the_service_is_started_and_stopped(home: Path, tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str]) -> str:
        ran.append(argv)
        return {"is-active": "active", "is-enabled": "enabled"}.get(argv[1], "")

    installation = Live(unit_with(home), tmp_path, run)
    assert list(installation.install())[-1] == "Started device-agent.service."
    assert [step[:2] for step in ran] == [
        ["systemd-sysusers", "/etc/sysusers.d/device-agent.conf"],
        ["chown", "-hR"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable"],
        ["systemctl", "restart"],
    ]
    assert installation.state() == {"unit": "installed", "enabled": "enabled", "active": "active"}
    ran.clear()
    list(installation.uninstall())
    assert ran == [["systemctl", "disable", "--now", "device-agent.service"], ["systemctl", "daemon-reload"]]
    ran.clear()
    assert list(installation.install(start=False))[-1].startswith("To start it: systemctl enable")
    assert len(ran) == 3


def test_the_home_that_is_given_to_the_user_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    home, another = tmp_path / "home", tmp_path / "another"
    home.mkdir()
    another.mkdir()
    before, given = home.stat(), []

    def run(argv: list[str]) -> str:
        if argv[0] == "systemd-sysusers":
            home.rename(home.with_name("moved"))
            home.symlink_to(another)
        elif argv[0] == "chown":
            subprocess.run(["chown", "-hR", f"{os.geteuid()}", argv[-1]], check=True)
            given.append(Path(argv[-1]).stat())
        return ""

    list(Live(Unit("device-agent", ("true",), home, "device-agent"), tmp_path, run).install())
    assert [os.path.samestat(each, before) for each in given] == [True]


def test_a_device_that_is_not_enrolled_is_not_started(home: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.mkdir(0o700)
    shutil.copy(home / "agent.toml", blank)
    shutil.copy(home / "ca.pem", blank)
    (tmp_path / "root").mkdir()
    said = call(blank, "install", "--root", str(tmp_path / "root"))
    assert "not enrolled" in said
    assert "systemctl restart" not in said


def test_names_that_are_no_units_are_refused(home: Path, tmp_path: Path) -> None:
    for name in ("../x", "a.service", "", "-x"):
        assert "Names of units" in call(home, "install", "--root", str(tmp_path), "--name", name, expect=2)
    assert "not a device's home" in call(tmp_path, "print", expect=1)


def test_a_step_that_fails_is_told() -> None:
    with pytest.raises(AgentError, match="failed"):
        run_command(["sh", "-c", "exit 3"])
    with pytest.raises(AgentError, match="No such file"):
        run_command(["/no/such/program"])
    assert json.loads(run_command(["echo", "1"])) == 1
