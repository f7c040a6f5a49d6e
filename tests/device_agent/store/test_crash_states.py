"""Power is lost at every file-system operation of an enrollment and of a renewal, in every way that a disk allows.

After each, the agent starts again on what the disk holds, against a server that has forgotten nothing, and ends
enrolled, with a pair that works and at most one certificate more than it needed; and the next renewal works, too.
"""

import collections
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from device_agent import enroll_child
from device_agent.enrollment.enrollment import EnrollmentJob
from device_agent.store.atomic_files import write_atomically
from device_agent.store.identity_store import IdentityStore
from fleet.ca.authority import succeed_root
from fleet.est_client.errors import EstRefused
from tests.device_agent.fleet_parts import Authority
from tests.device_agent.store import crash_life
from tests.device_agent.store.crash_disk import CrashState, crash_states, many_bytes, recording, some_bytes
from tests.device_agent.store.crash_life import ModelServer, enroll, in_process, recover, run
from tests.tiers import Tier


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a folder: each state is a home of its own."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name).resolve()


@dataclass(frozen=True, slots=True)
class Scenario:
    prepare: Callable[[Path, ModelServer], None]
    act: Callable[[Path, ModelServer], None]
    needed: int
    """Certificates that it takes without a crash."""


def nothing(home: Path, server: ModelServer) -> None:
    pass


def first(home: Path, server: ModelServer) -> None:
    enroll(home)


def enrolled(home: Path, server: ModelServer) -> None:
    enroll(home)
    run(home)


def renewal(home: Path, server: ModelServer) -> None:
    run(home, renew=True)


def twice_renewed(home: Path, server: ModelServer) -> None:
    enrolled(home, server)
    renewal(home, server)


def refused_once(home: Path, server: ModelServer) -> None:
    server.refusals = [EstRefused("refused (weak-key)", status=400)]
    with pytest.raises(Exception, match="weak-key"):
        enroll(home)
    enroll(home)


def copied_without_links(home: Path, server: ModelServer) -> None:
    enrolled(home, server)
    follow_link(home)


def follow_link(home: Path) -> None:
    target = (home / "current").readlink()
    (home / "current").unlink()
    shutil.copytree(home / target, home / "current")


def with_maker(home: Path, server: ModelServer) -> None:
    server.maker = server.authority.client("maker")


def first_and_kept(home: Path, server: ModelServer) -> None:
    enroll(home, server.maker, keep=True)


def revoked(home: Path, server: ModelServer) -> None:
    with_maker(home, server)
    first_and_kept(home, server)
    server.change(ended=frozenset({crash_life.fingerprint_of(server.registry.issued[0])}))


def recovery(home: Path, server: ModelServer) -> None:
    run(home)


def root_rolled_over(home: Path, server: ModelServer) -> None:
    enrolled(home, server)
    step = succeed_root(server.authority.root, server.authority.root_key, crash_life.NOW)
    server.extra_cas = (step.certified[0], step.new_with_old)


SCENARIOS = {
    "a first enrollment": Scenario(nothing, first, 1),
    "a first enrollment whose first key is refused": Scenario(nothing, refused_once, 1),
    "a renewal": Scenario(enrolled, renewal, 2),
    "the next renewal": Scenario(twice_renewed, renewal, 3),
    "a renewal with a new root": Scenario(root_rolled_over, renewal, 2),
    "a first enrollment whose credential is kept": Scenario(with_maker, first_and_kept, 1),
    "an enrollment with the bootstrap credential": Scenario(revoked, recovery, 2),
    "a renewal in a home copied without links": Scenario(copied_without_links, renewal, 2),
}


def states_of(
    scenario: Scenario, folder: Path, server: ModelServer, cuts: Callable[[int], Iterator[int]]
) -> list[CrashState]:
    """Each disk that a crash in `scenario` may leave, with what the server knew by then."""
    home = folder / "home"
    crash_life.new_home(home, server.authority)
    with in_process(server):
        scenario.prepare(home, server)
        with recording(home, server.registry) as record:
            server.on_change = record.elsewhere
            scenario.act(home, server)
            server.on_change = lambda _: None
        crash_life.working_identity(home, server)
    assert len(server.registry.issued) == scenario.needed
    return list(crash_states(record, cuts))


def survive(state: CrashState, home: Path, server: ModelServer, needed: int, number: int = 0) -> str:
    """Start again on `state`; what became of it, in a word. By `number`, the agent runs or `enroll` is repeated first,
    and a renewal follows.
    """
    server.registry, server.refusals = state.elsewhere, []
    issued = len(server.registry.issued)
    state.put(home)
    with in_process(server):
        found = "+".join(sorted(IdentityStore(home).slots().values()))
        recover(home, by_enroll=number % 2 == 1)
        before = crash_life.working_identity(home, server)
        used = len(server.registry.issued)
        assert used <= needed + 1, f"{used} certificates"
        if number % 3 == 0:
            run(home, renew=True)  # and life goes on
            assert crash_life.working_identity(home, server) != before
            assert len(server.registry.issued) <= used + 1
    return f"{found}: {used - issued} issued after it"


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_lost_at_any_operation(
    name: str, folder: Path, authority: Authority, tier: Tier, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, server = SCENARIOS[name], ModelServer(authority)
    states = states_of(scenario, folder, server, many_bytes if tier is Tier.ALL else some_bytes)
    count = tier.times(8, all=len(states))
    chosen = states if count >= len(states) else random.Random(name).sample(states, count)
    extra_cas, outcomes = server.extra_cas, collections.Counter[str]()
    for number, state in enumerate(chosen):
        server.extra_cas = extra_cas
        home = folder / str(number)
        try:
            outcomes[survive(state, home, server, scenario.needed, number)] += 1
        except BaseException as error:
            error.add_note(f"crashed after {state.after} operations, number {number}")
            raise
        shutil.rmtree(home)
    if tier is Tier.ALL:
        with capsys.disabled():
            print(f"\n{name}: {sum(outcomes.values())} crash states, all enrolled again")
            for outcome, times in outcomes.most_common():
                print(f"  {times:6} {outcome}")


@pytest.mark.parametrize("name", ["a first enrollment", "a renewal"])
def test_power_lost_again_while_it_recovers(name: str, folder: Path, authority: Authority, tier: Tier) -> None:
    scenario, server, chance = SCENARIOS[name], ModelServer(authority), random.Random(name)
    states = states_of(scenario, folder, server, some_bytes)
    for number, state in enumerate(chance.sample(states, tier.times(1, all=min(60, len(states))))):
        home = folder / str(number)
        server.registry = state.elsewhere
        state.put(home)
        with in_process(server), recording(home, server.registry) as record:
            server.on_change = record.elsewhere
            recover(home)
            server.on_change = lambda _: None
        again = list(crash_states(record, some_bytes))
        for each in chance.sample(again, min(len(again), tier.times(4, all=25))):
            second = folder / "again"
            survive(each, second, server, scenario.needed)
            shutil.rmtree(second)
        shutil.rmtree(home)


def test_a_write_that_the_disk_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    write_atomically(tmp_path / "ca.pem", b"certificate " * 100)
    assert (tmp_path / "ca.pem").read_bytes() == b"certificate " * 100


@pytest.mark.parametrize("taken", [0, 1, 500])
def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """A write is taken in part, and the next one not at all. What was drafted gives its space back."""
    file = tmp_path / "ca.pem"
    write_atomically(file, b"the good one")
    write, left = os.write, taken

    def until_full(descriptor: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(descriptor, data[:left])
        left -= count
        return count

    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"x" * 4096)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("ca.pem", b"the good one")]


def test_what_the_disk_keeps_otherwise_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ca.pem"
    write_atomically(file, b"the good one")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(len(data))))
    with pytest.raises(OSError, match="cannot be read back"):
        write_atomically(file, b"another")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("ca.pem", b"the good one")]


@pytest.mark.parametrize("copied", ["directory", "file"])
def test_a_home_copied_without_links_renews(
    tmp_path: Path, authority: Authority, copied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `cp -rL`, scp or zip `current` is a directory, or a file with the link's text. On FAT it stays a file."""
    home, server = tmp_path / "home", ModelServer(authority)
    crash_life.new_home(home, authority)
    with in_process(server):
        enrolled(home, server)
        if copied == "directory":
            follow_link(home)
        else:
            name = (home / "current").readlink()
            (home / "current").unlink()
            (home / "current").write_text(f"{name}\n")
            monkeypatch.setattr(os, "symlink", mock.Mock(side_effect=PermissionError(errno.EPERM, "no links here")))
        assert sorted(IdentityStore(home).slots().values()) == ["current", "empty"]
        run(home, renew=True)
        current = crash_life.working_identity(home, server)
    assert len(server.registry.issued) == 2
    pointer = home / "current"
    assert (pointer.read_text() if copied == "file" else str(pointer.readlink())) == current.slot


def test_an_enrollment_that_was_interrupted_after_the_certificate_came_is_finished_by_the_same_command(
    tmp_path: Path, authority: Authority
) -> None:
    """Its token is spent, and its key is in the slot beside: another attempt would be refused."""
    home, server = tmp_path / "home", ModelServer(authority)
    crash_life.new_home(home, authority)
    with in_process(server):
        job = EnrollmentJob(home, "enroll", crash_life.TOKEN)
        assert enroll_child.outcome_of(job, crash_life.NOW).ok
        assert IdentityStore(home).current() is None
        enroll(home)
        crash_life.working_identity(home, server)
    assert len(server.registry.issued) == 1
