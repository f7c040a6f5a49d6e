"""The registry tells the truth after many kill -9: the bench's own run in small, and proof that its proofs can fail."""

import asyncio
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from hw_bench.drivers.crash import Clients, Received, Tokens
from hw_bench.peers.home import MODEL, FleetHome
from hw_bench.peers.killable_server import KillableServer
from hw_bench.processes import BenchError, pick_cores
from hw_bench.scenarios import crash
from hw_bench.scenarios.crash import Crash, new_tokens, prove
from hw_bench.turns import Plan
from tests.tiers import Tier

pytestmark = pytest.mark.usefixtures("forked_programs")
SEED = 20260392  # the first to be killed is the supervisor


def test_every_certificate_token_and_event_is_accounted_for_after_many_kills(tier: Tier) -> None:
    said: list[str] = []
    kills = tier.times(12, all=100)
    report = Crash().run(Plan(kills=kills, seed=SEED), said.append)
    checks = "\n".join(report.checks)
    found = re.match(rf"{kills} kills, (\d+) of them of the supervisor; seed {SEED}\n", checks)
    assert found
    assert 1 <= int(found[1]) < kills / 4
    assert "certificates received are in the registry; no serial twice" in checks
    assert "none too often, and uses = certificates issued by each" in checks
    assert "events without a gap, one of them for each certificate issued" in checks
    assert "the audit's chain verifies" in checks
    assert f"--seed {SEED}" in said[0]
    assert any(line.startswith(f"{kills} of {kills} kills") for line in said)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[FleetHome, tuple[Received, ...]]:
    """A home that was served for a moment, and what its clients hold."""
    folder = tmp_path_factory.mktemp("lived")
    home = FleetHome(folder / "home")
    home.fleet("init", str(home.path))
    with KillableServer(home, folder, 2, pick_cores().all) as serve:
        with Clients(serve.est, MODEL, 2, Tokens(lambda: new_tokens(home))) as clients:
            clients.wait_for(30)
        assert serve.stop() == 0
    return home, tuple(clients.received)


@pytest.fixture
def copy(lived: tuple[FleetHome, tuple[Received, ...]], tmp_path: Path) -> tuple[FleetHome, list[Received]]:
    home, received = lived
    return FleetHome(Path(shutil.copytree(home.path, tmp_path / "home"))), list(received)


def test_a_home_that_nobody_killed_proves_well(copy: tuple[FleetHome, list[Received]]) -> None:
    assert len(prove(*copy)) == 4


DAMAGES = {
    "that is not in the registry": "DELETE FROM credential WHERE seq = 5",
    "counts 1 uses, and": "UPDATE token SET uses = 1 WHERE uses > 1",
    "The feed of events has a gap": "DELETE FROM event WHERE seq = 7",
    "the events recorded for them differ": "UPDATE event SET detail = '' WHERE seq = (SELECT max(seq) FROM event"
    " WHERE kind = 'credential.issued')",
    "fleet audit verify failed": "UPDATE audit SET subject = 'device other' WHERE seq = 9",
    "is in the registry as that of": "UPDATE credential SET holder = 'crash-0-1' WHERE holder = 'crash-1-2'",
    "and was served by": "UPDATE credential SET earned_by = 'token other' WHERE seq IN"
    " (SELECT min(seq) FROM credential WHERE kind = 'device');"
    "UPDATE token SET uses = uses - 1 WHERE id = (SELECT substr(earned_by, 7) FROM credential WHERE seq = 2)",
}


@pytest.mark.parametrize("says", DAMAGES)
def test_what_is_wrong_is_found(copy: tuple[FleetHome, list[Received]], says: str) -> None:
    home, received = copy
    db = sqlite3.connect(home.files.registry)
    db.executescript(DAMAGES[says])
    db.close()
    with pytest.raises(BenchError, match=says):
        prove(home, received)


def test_a_certificate_that_was_never_issued_is_found(copy: tuple[FleetHome, list[Received]]) -> None:
    home, received = copy
    with pytest.raises(BenchError, match="that is not in the registry"):
        prove(home, [*received, replace(received[0], fingerprint="00" * 32)])


def test_a_serial_given_twice_and_a_token_used_too_often_are_found(
    copy: tuple[FleetHome, list[Received]],
) -> None:
    issued, tokens, _ = asyncio.run(crash.read(copy[0]))
    with pytest.raises(BenchError, match="A serial was given twice"):
        crash.prove_certificates([*issued, structs.replace(issued[0], fingerprint=bytes(32))], ())
    spent = next(token for token in tokens if token.uses)
    with pytest.raises(BenchError, match="was used"):
        crash.prove_tokens(issued, [structs.replace(spent, uses_max=spent.uses - 1)], ())


def test_all_clients_draw_on_one_token_until_it_is_spent() -> None:
    made = iter((["b", "a"], ["c"]))
    tokens = Tokens(lambda: next(made))
    assert tokens.current() == "a"
    assert tokens.current() == "a"
    assert tokens.current(spent="a") == "b"
    assert tokens.current(spent="a") == "b"  # another client has put it aside already
    assert tokens.current(spent="b") == "c"
