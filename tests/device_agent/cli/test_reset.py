"""`device-agent reset`: what it erases and what it keeps, and what is left when it dies in the middle."""

import os
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from device_agent.cli import cli
from device_agent.cli.wiping import LOCKS, erase, exclusive, wipe
from device_agent.config.agent_config import read_config
from device_agent.store.identity_store import IdentityStore
from tests.device_agent.fleet_parts import Agent, Authority
from tests.device_agent.homes import DEVICE, make_home

pytestmark = pytest.mark.usefixtures("forked_programs")

KEPT = {"agent.toml", "ca.pem"}


@pytest.fixture
def home(tmp_path: Path, authority: Authority) -> Path:
    """With a little of everything that a home may hold, and a link out of it."""
    home = make_home(tmp_path / "a home", authority)
    store = IdentityStore(home)
    store.write_key(store.spare_slot(), b"a key for the next certificate")
    for name in ("waiting", "waiting-model", "hooks.json", "spool.sqlite", "spool.sqlite-wal"):
        (home / name).write_bytes(b"x" * 100_000)
    (home / "rejects").mkdir()
    (home / "rejects" / "1").write_text("refused")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("not ours")
    (home / "out").symlink_to(tmp_path / "precious")
    (home / "file").hardlink_to(tmp_path / "precious" / "file")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(home / "agent.sock"))
    return home


def call(home: Path, *words: str, expect: int = 0, give: str = "") -> Result:
    done = CliRunner().invoke(cli, ["reset", "--home", str(home), *words], input=give)
    assert done.exit_code == expect, done.output
    return done


def names(home: Path) -> set[str]:
    return {str(each.relative_to(home)) for each in home.rglob("*")} - set(LOCKS)


def test_all_goes_but_the_settings(home: Path, tmp_path: Path) -> None:
    assert "fleet device retire cam-7" in call(home, give=f"{DEVICE}\n").stdout
    assert names(home) == KEPT
    assert (tmp_path / "precious" / "file").read_text() == "not ours"
    assert read_config(home).device_id == DEVICE
    call(home, "--yes")  # nothing more to do
    assert names(home) == KEPT


def test_with_all_the_home_goes_too(home: Path, tmp_path: Path) -> None:
    call(home, "--all", "--yes")
    assert not home.exists()
    assert (tmp_path / "precious" / "file").exists()
    assert "not a device's home" in call(home, "--all", "--yes", expect=1).stderr


@pytest.mark.parametrize("give", ["\n", "y\n", "cam-8\n", ""])
def test_anything_but_the_device_id_changes_nothing(home: Path, give: str) -> None:
    before = names(home)
    call(home, give=give, expect=1)
    assert names(home) == before


def test_a_directory_that_is_no_home_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "not a device's home" in call(tmp_path, "--yes", "--all", expect=1).stderr
    assert (tmp_path / "thesis.txt").exists()


def test_a_home_whose_settings_are_broken_is_wiped_all_the_same(home: Path) -> None:
    (home / "agent.toml").write_text("device_id = ")
    said = call(home, give="a home\n")
    assert "Copies of hooks are not erased" in said.stderr
    assert names(home) == KEPT


def test_copies_of_hooks_go_as_well(home: Path, tmp_path: Path) -> None:
    pair, chain = tmp_path / "pair.pem", tmp_path / "chain.pem"
    with (home / "agent.toml").open("a") as file:
        file.write('[[hook]]\nname = "x"\n')
        for path in (pair, chain, tmp_path / "never.pem"):
            file.write(f'[[hook.copy]]\ncontent = "{"chain" if path == chain else "pair"}"\nto = "{path}"\n')
    pair.write_text("a key")
    chain.write_text("a chain")
    said = call(home, "--yes").stderr
    assert str(pair) in said
    assert not pair.exists()
    assert not chain.exists()


def test_a_wipe_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path, authority: Authority) -> None:
    model = make_home(tmp_path / "model", authority)
    steps: list[str] = []
    files = {path.relative_to(model): path.read_bytes() for path in model.rglob("*") if path.is_file()}

    def rebuilt(home: Path) -> Path:
        for name, data in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        return home

    class Died(Exception):
        pass

    wipe(rebuilt(tmp_path / "whole"), settings=True, checkpoint=steps.append)
    assert steps[:2] == ["slot-a/key.pem erased", "slot-b/key.pem erased"]  # what matters most goes first
    assert steps[-4:] == ["agent.toml erased", *(f"{name} erased" for name in LOCKS)]
    for settings in (False, True):
        for number in range(len(steps) - 5 * (not settings)):
            home = rebuilt(tmp_path / f"{settings}-{number}")
            left = [number]

            def die(_: str, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise Died

            with pytest.raises(Died):
                wipe(home, settings=settings, checkpoint=die)
            call(home, "--yes", *(["--all"] if settings else []))
            assert not home.exists() if settings else names(home) == KEPT


def test_what_is_erased_has_been_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"k" * 150_000)
    with path.open("rb") as opened:
        assert erase(path)
        assert opened.read() == bytes(150_000)
    assert not erase(path)


def test_a_hole_is_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with path.open("w+b") as opened:
        opened.write(b"k" * 100_000)
        opened.truncate(2**32)
        opened.seek(2**31)
        opened.write(b"k" * 100_000)
        opened.flush()
        assert erase(path)
        assert os.fstat(opened.fileno()).st_blocks * 512 < 2**20
        for begin in (0, 2**31):
            opened.seek(begin)
            assert opened.read(100_000) == bytes(100_000)


def test_a_running_agent_is_refused_or_asked_to_stop(home: Path) -> None:
    (home / "agent.sock").unlink()
    agent = Agent(home, ())
    try:
        agent.wait_for("started")
        assert "An agent is running" in call(home, "--yes", expect=1).stderr
        assert IdentityStore(home).current() is not None
        call(home, "--yes", "--stop")
        assert agent.wait() == 0
    finally:
        agent.kill()
    assert names(home) == KEPT


def test_locks_are_held_while_it_works(home: Path) -> None:
    with exclusive(home, stop=True):
        assert "An agent is running" in call(home, "--yes", expect=1).stderr
    call(home, "--yes")


def test_a_real_kill_in_the_middle(home: Path) -> None:
    child = os.fork()
    if child == 0:
        wipe(home, checkpoint=lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert IdentityStore(home).current() is None  # a key is gone already
    call(home, "--yes")
    assert names(home) == KEPT
