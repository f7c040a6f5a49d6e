"""Commands that root runs on a home of another user: that user's rights are all that they use."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.apps.bridge import Bridge
from device_agent.cli import cli
from device_agent.cli.wiping import exclusive
from device_agent.config.agent_config import read_config
from device_agent.config.hooks import Copy
from device_agent.errors import AgentError
from device_agent.hooks.copies import place
from device_agent.store.bootstrap import keep_token
from device_agent.store.identity_store import IdentityStore
from fleet.est_client.errors import BadConfig
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.forking import forked
from tests.device_agent.homes import make_home
from tests.device_agent.other_users import let_others_run_python
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("forked_programs")

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
NOBODY = 65534
NEW = ("--device-id", "cam-7", "--est", "https://localhost:8443", "--mqtt", "localhost", "--ca", "CA")


@pytest.fixture
def tmp_path(open_folder: Path) -> Path:
    """As this module has it, nobody may pass through."""
    return open_folder


@pytest.fixture
def home(tmp_path: Path, authority: Authority) -> Path:
    return make_home(tmp_path / "home", authority)


def add(home: Path, text: str) -> None:
    with (home / "agent.toml").open("a") as file:
        file.write(text)


def give_away(home: Path) -> None:
    """To nobody."""
    for path in [home, *home.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def call(home: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of a command, as root runs it."""

    def run() -> tuple[int, str]:
        let_others_run_python()
        done = CliRunner().invoke(cli, ["--home", str(home), *words])
        return done.exit_code, done.output

    return forked(run)


@ROOT_ONLY
def test_hooks_of_another_users_home_do_not_run_as_root(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    add(home, f'[[hook]]\nname = "x"\nrun = ["sh", "-c", "id -u > {tmp_path}/out/said"]\n')
    give_away(home)
    code, said = call(home, "deploy")
    assert (code, said) == (0, "Hook x: done.\n")
    assert (tmp_path / "out" / "said").read_text() == f"{NOBODY}\n"
    assert {path.lstat().st_uid for path in home.rglob("*")} == {NOBODY}


@ROOT_ONLY
@pytest.mark.parametrize(
    "more", ['run = ["true"]\nuser = "root"\n', '[[hook.copy]]\ncontent = "chain"\nto = "TO"\nowner = "root"\n']
)
def test_a_hook_that_needs_root_says_whose_the_home_must_be(home: Path, tmp_path: Path, more: str) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    add(home, '[[hook]]\nname = "x"\n' + more.replace("TO", str(tmp_path / "out" / "x")))
    give_away(home)
    code, said = call(home, "deploy")
    assert code == 1
    assert "a home of root's" in said
    assert not list((tmp_path / "out").iterdir())


@ROOT_ONLY
def test_run_leaves_nothing_of_roots(home: Path) -> None:
    give_away(home)
    assert call(home, "run", "--stdin", "--exit-at-eof")[0] == 0
    assert (home / "agent.lock").exists()
    assert {path.lstat().st_uid for path in home.rglob("*")} == {NOBODY}


@ROOT_ONLY
def test_the_token_file_is_roots_to_read(home: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x y")  # of no server
    token.chmod(0o600)
    give_away(home)
    (home / "current").unlink()
    assert str(token) not in call(home, "enroll", "--again", "--token-file", str(token))[1]


@ROOT_ONLY
def test_settings_of_another_user_are_not_roots(home: Path) -> None:
    os.chown(home / "agent.toml", NOBODY, NOBODY)
    with pytest.raises(BadConfig, match="belongs to user 65534"):
        read_config(home)


@pytest.mark.parametrize("name", ["", "agent.toml"])
def test_settings_that_every_user_may_write_are_refused(home: Path, name: str) -> None:
    (home / name).chmod(0o766)
    with pytest.raises(BadConfig, match="Others may write into"):
        read_config(home)


@ROOT_ONLY
def test_a_reset_erases_only_what_the_homes_owner_may(home: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.write_text("root's")
    add(home, f'[[hook]]\nname = "x"\n[[hook.copy]]\ncontent = "pair"\nto = "{shadow}"\n')
    give_away(home)
    code, said = call(home, "reset", "--yes")
    assert code == 1
    assert f"may not erase the copies {shadow}" in said
    assert shadow.read_text() == "root's"
    assert not (home / "slot-a").exists()


def test_a_reset_does_not_follow_a_slot_that_is_a_link(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "key.pem").write_text("another's")
    (home / "slot-b").symlink_to(other)
    assert CliRunner().invoke(cli, ["reset", "--home", str(home), "--yes"]).exit_code == 0
    assert (other / "key.pem").read_text() == "another's"
    assert not (home / "slot-b").is_symlink()


FAKE_AGENT = """
import json, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
connection, _ = server.accept()
connection.sendall(json.dumps({"ok": True, "pid": int(sys.argv[2])}).encode() + b"\\n")
signal.pause()
"""
"""It answers with another process's number."""


@ROOT_ONLY
@pytest.mark.parametrize("words", [("reset", "--yes"), ("status",), ("init", *NEW)])
@pytest.mark.parametrize("leads", ["folder", "link"])
def test_a_home_of_roots_to_which_another_user_leads_is_not_for_its_commands(
    tmp_path: Path, authority: Authority, leads: str, words: tuple[str, ...]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "roots").mkdir()
    (theirs / "way").symlink_to(tmp_path / "roots")
    home = theirs / "home" if leads == "folder" else theirs / "way" / "home"
    if words[0] != "init":
        make_home(home, authority)
    before = sorted(home.rglob("*"))
    for each in (theirs, theirs / "way"):
        os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    code, said = call(home, *(str(authority.ca_file) if each == "CA" else each for each in words))
    assert (code, sorted(home.rglob("*"))) == (1, before)
    assert f"belongs to user {NOBODY}" in said


def test_a_reset_stops_the_process_that_answers_and_no_other(home: Path) -> None:
    bystander = subprocess.Popen(["sleep", "infinity"])
    fake = subprocess.Popen([sys.executable, "-c", FAKE_AGENT, str(home / "agent.sock"), str(bystander.pid)], stdout=-1)
    assert fake.stdout is not None
    assert fake.stdout.readline() == b"ready\n"
    try:
        with exclusive(home, stop=True):
            assert fake.wait(PATIENCE_SECONDS) == -signal.SIGTERM
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        fake.kill()
        fake.communicate()


def test_nothing_is_written_through_a_link_in_a_folders_place(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "meta.json").write_text("another's")
    store = IdentityStore(home)
    slot = store.spare_slot()
    for name in (slot, "bootstrap"):
        if (home / name).exists():
            (home / name).rmdir()
        (home / name).symlink_to(other)
    with pytest.raises(NotADirectoryError, match="no link"):
        store.clear(slot)
    with pytest.raises(NotADirectoryError, match="no link"):
        store.write_key(slot, b"key")
    with pytest.raises(NotADirectoryError, match="no link"):
        keep_token(home, "token")
    assert [path.name for path in other.iterdir()] == ["meta.json"]


@ROOT_ONLY
def test_no_other_user_has_a_part_in_the_configuration_of_a_bridge(home: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    before = (home / "agent.toml").read_bytes()
    with pytest.raises(AgentError, match="who could replace it"):
        Bridge(read_config(home), tmp_path / "out", user="nobody").install()
    assert (home / "agent.toml").read_bytes() == before
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("host", ["h\\nconnection evil", "h x", "[::1]", "h\\u001b"])
def test_a_host_that_is_no_host(home: Path, host: str) -> None:
    text = (home / "agent.toml").read_text()
    (home / "agent.toml").write_text(text.replace('host = "localhost"', f'host = "{host}"'))
    with pytest.raises(BadConfig):
        read_config(home)


def test_a_bridge_has_no_line_of_another(home: Path) -> None:
    bad = Bridge(read_config(home), home / "bridge", publish=("devices/cam-7/up/\nlistener",))
    with pytest.raises(BadConfig):
        bad.mosquitto()


def test_status_does_not_control_the_terminal(home: Path) -> None:
    refusal = {"since": "2026-01-01T00:00:00", "message": "\x1b]0;title\x07", "advice": "\x9b2J", "final": False}
    (home / "last-refusal.json").write_text(json.dumps(refusal))
    shown = CliRunner().invoke(cli, ["--home", str(home), "status"]).stdout
    assert "title" in shown
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(
    "name", ["agent.toml", "ca.pem", "clock.json", "clock", "hooks.json", "last-refusal.json", "waiting"]
)
def test_a_fifo_is_not_waited_for(home: Path, name: str) -> None:
    (home / name).unlink(missing_ok=True)
    os.mkfifo(home / name)
    signal.alarm(PATIENCE_SECONDS)  # it would be waited for, for ever
    try:
        done = CliRunner().invoke(cli, ["--home", str(home), "status"])
    finally:
        signal.alarm(0)
    assert done.exit_code in (0, 1), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


@ROOT_ONLY
def test_a_service_is_installed_for_homes_of_root_and_of_its_user(home: Path, tmp_path: Path) -> None:
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\nuser = "root"\n')
    assert call(home, "service", "install", "--print")[0] == 0
    (tmp_path / "image").mkdir()
    give_away(home)
    code, said = call(home, "service", "install", "--root", str(tmp_path / "image"))
    assert code == 1
    assert "belongs" in said
    assert not list((tmp_path / "image").iterdir())


@ROOT_ONLY
def test_a_service_is_not_installed_for_a_home_that_another_user_leads_to(home: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, NOBODY, NOBODY)
    (foreign / "link").symlink_to(home)
    (tmp_path / "link").symlink_to(home)
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    for led in (foreign / "link", tmp_path / "link"):
        code, said = call(led, "service", "install", "--print", "--user", "daemon")
        assert code == 1
        assert "who could replace it" in said


@ROOT_ONLY
def test_capabilities_are_granted_by_roots_settings_alone(home: Path, tmp_path: Path) -> None:
    from device_agent.cli.service import _unit
    from device_agent.systemd.installation import approve, check_capabilities

    give_away(home)
    check_capabilities(_unit(home, "x", "nobody", {0, NOBODY}))
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\nuser = "root"\n')
    with pytest.raises(AgentError, match="is not root's"):
        check_capabilities(_unit(home, "x", "nobody", {0, NOBODY}))
    os.chown(home / "agent.toml", 0, 0)
    with (home / "agent.toml").open("ab") as formerly:  # nobody's, from before
        with pytest.raises(AgentError, match="is not root's"):
            check_capabilities(_unit(home, "x", "nobody", {0, NOBODY}))
        copy = tmp_path / "copy"
        copy.write_bytes((home / "agent.toml").read_bytes())
        for folder in (copy, tmp_path):
            os.chown(folder, NOBODY, NOBODY)
            with pytest.raises(AgentError):
                approve(copy, home, {0, NOBODY})
            os.chown(folder, 0, 0)
        approve(copy, home, {0, NOBODY})
        formerly.write(b"[[hook]]\n")
    check_capabilities(_unit(home, "x", "nobody", {0, NOBODY}, {0}), approved=True)
    assert (home / "agent.toml").read_bytes() == copy.read_bytes()
    found = (home / "agent.toml").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)


@ROOT_ONLY
def test_no_other_user_has_a_part_in_the_way_to_a_copy(tmp_path: Path) -> None:
    real, foreign = tmp_path / "real", tmp_path / "foreign"
    for folder in (real, foreign, foreign / "inner"):
        folder.mkdir()
    os.chown(foreign, NOBODY, NOBODY)
    (tmp_path / "ours").symlink_to("real")
    (tmp_path / "theirs").symlink_to(real)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY, follow_symlinks=False)
    for bad in ("foreign", "foreign/inner", "theirs"):
        with pytest.raises(AgentError, match="who could replace it"):
            place(Copy("chain", tmp_path / bad / "x", "pem", 0o644), b"x")
    assert not list(real.iterdir())
    assert place(Copy("chain", tmp_path / "ours" / "x", "pem", 0o644), b"x")
    assert not place(Copy("chain", real / "x", "pem", 0o644), b"x")
    assert [each.name for each in real.iterdir()] == ["x"]
    assert place(Copy("chain", foreign / "x", "pem", 0o600, "nobody"), b"x")  # it is theirs
    assert (foreign / "x").stat().st_uid == NOBODY
    (foreign / "link").symlink_to(real)
    os.chown(foreign / "link", NOBODY, NOBODY, follow_symlinks=False)
    for led in ("link", "inner"):  # into folders of root's
        with pytest.raises(AgentError, match="who leads to it"):
            place(Copy("chain", foreign / led / "y", "pem", 0o600, "nobody"), b"y")
    assert [each.name for each in real.iterdir()] == ["x"]


@ROOT_ONLY
@pytest.mark.parametrize("words", [("reset", "--yes"), ("bridge", "mosquitto", "--remove", "--out", "OUT")])
def test_copies_are_erased_where_they_were_made(home: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    above, roots = tmp_path / "above", tmp_path / "roots"
    above.mkdir()
    roots.mkdir()
    for name in ("ca.pem", "cert.pem", "key.pem", "bridge.conf"):
        (roots / name).write_text("root's")
    Bridge(read_config(home), above / "out", user="nobody").install()
    os.chown(above, NOBODY, NOBODY)
    (above / "out").rename(above / "other")
    (above / "out").symlink_to(roots)
    os.chown(above / "out", NOBODY, NOBODY, follow_symlinks=False)
    code, said = call(home, *(str(above / "out") if word == "OUT" else word for word in words))
    assert code == 1
    assert str(above / "out" / "key.pem") in said
    assert {each.read_text() for each in roots.iterdir()} == {"root's"}
    assert len(list(roots.iterdir())) == 4
