"""The audit of a serving fleet: sealed while it runs and when it ends, and proved to somebody with only the key."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from tests.serving import Served, program, run_fleet
from tests.waiting import PATIENCE_SECONDS


def verified(home: Path) -> Any:
    return json.loads(run_fleet(home, "audit", "verify", "-o", "json"))


def test_a_running_server_seals_what_others_write(served: Served) -> None:
    run_fleet(served.home, "device", "add", "cam-7", "--model", "default")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := verified(served.home))["unsealed"]:
        assert time.monotonic() < deadline, found
    assert found["rows"] == found["sealed"] == 2
    assert found["heads_checked"] >= 1


def test_what_came_in_last_is_sealed_when_it_stops(served: Served) -> None:
    for number in range(5):
        run_fleet(served.home, "device", "add", f"cam-{number}", "--model", "default")
    assert served.stop() == 0
    found = verified(served.home)
    assert (found["rows"], found["unsealed"]) == (6, 0)


def test_one_that_was_killed_leaves_sound_heads_and_the_next_one_goes_on(served: Served) -> None:
    run_fleet(served.home, "device", "add", "cam-7", "--model", "default")
    served.kill()
    verified(served.home)
    served.start()
    run_fleet(served.home, "device", "add", "cam-8", "--model", "default")
    assert served.stop() == 0
    assert verified(served.home)["unsealed"] == 0


def test_an_auditor_with_the_key_and_nothing_else(served: Served, tmp_path: Path) -> None:
    proof, desk = tmp_path / "proof.json", tmp_path / "desk"
    desk.mkdir()
    run_fleet(served.home, "audit", "seal")  # beside the server: whoever is first
    run_fleet(served.home, "audit", "prove", "1", "--out", str(proof))
    shutil.copy(served.home / "ca" / "audit.pub", desk)
    served.stop()
    shutil.rmtree(served.home)
    words = ("audit", "check-proof", str(proof), "--public-key", str(desk / "audit.pub"))
    assert json.loads(program("fleet", *words, "-o", "json").stdout)["action"] == "model.add"
    proof.write_text(proof.read_text().replace("model.add", "model.set"))
    assert "does not hold" in program("fleet", *words, expect=1).stderr
