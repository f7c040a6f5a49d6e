"""`fleet distrust` on a home: dry run, confirmation, progress, and its end."""

import asyncio
import json
import re
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from fleet.cli import distrust, main, options
from fleet.domain.credential import Credential
from fleet.domain.device import DeviceState
from fleet.domain.distrust import KEY_MARKS
from fleet.domain.errors import Conflict
from fleet.domain.writes import AddCredential, Insert
from fleet.storage.engines import open_engine
from tests.storage.samples import change, credential, device

AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


def issued(holder: str) -> Credential:
    made = credential(holder)
    return replace(
        made, issued_at=AN_HOUR_AGO, not_after=AN_HOUR_AGO + timedelta(days=30), der=made.der + KEY_MARKS["EC-P256"]
    )


@pytest.fixture
def enrolled(home: Path) -> Path:
    """Two devices of the model default have a certificate."""

    async def add() -> None:
        registry = await open_engine(home / "registry.db")
        for name in ("cam-1", "cam-2"):
            held = issued(name)
            made = replace(device(name, DeviceState.ACTIVE, "default"), hardware_serial="", expires_at=held.not_after)
            await registry.commit(change(Insert(made), AddCredential(held)))
        await registry.close()

    asyncio.run(add())
    return home


def fleet(home: Path, *words: str, give: str | None = None) -> Result:
    return CliRunner().invoke(main, words, input=give, env={"FLEET_HOME": str(home)})


def test_a_dry_run_then_the_rule_its_progress_and_its_end(enrolled: Path) -> None:
    terms = ("--model", "default", "--key-type", "EC-P256", "--issued-between", "2h", "now")
    dry = fleet(enrolled, "distrust", *terms, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "default 2" in dry.stdout
    assert re.search(r"issued before: +20[0-9-]+ [0-9:]{8}Z", dry.stdout)
    assert "cam-1, cam-2" in dry.stdout
    assert "2 devices; nothing was changed." in dry.stderr
    assert json.loads(fleet(enrolled, "distrust", "list", "-o", "json").stdout) == []
    for words, give in ((("--count", "3"), None), ((), "7\n"), ((), "")):
        refused = fleet(enrolled, "distrust", *terms, *words, give=give)
        assert refused.exit_code == 1, refused.output
        assert "nothing was changed" in refused.stderr
    made = fleet(enrolled, "distrust", *terms, "--reason", "leak", "-o", "json", give="2\n")
    assert made.exit_code == 0, made.output
    rule = json.loads(made.stdout)["distrust"]
    assert (rule["model"], rule["devices"], rule["spread_seconds"], rule["reason"]) == ("default", 2, 600, "leak")
    [listed] = json.loads(fleet(enrolled, "distrust", "list", "-o", "json").stdout)
    assert listed == rule
    shown = json.loads(fleet(enrolled, "distrust", "show", rule["id"], "-o", "json").stdout)
    assert (shown["left"], shown["left_by_model"], shown["first"]) == (2, {"default": 2}, ["cam-1", "cam-2"])
    assert "default 2" in fleet(enrolled, "distrust", "show", rule["id"]).stdout
    cam = json.loads(fleet(enrolled, "device", "show", "cam-1", "-o", "json").stdout)
    assert cam["distrusted_by"] == [{"id": rule["id"], "refuses": True, "reason": "leak"}]
    assert (cam["usable_certificates"], cam["usable_until"]) == (0, None)
    assert f"{rule['id']} (leak)" in (text := fleet(enrolled, "device", "show", "cam-1").stdout)
    assert "no valid certificate" in text
    assert fleet(enrolled, "distrust", "undo", rule["id"], "--reason", "false alarm").exit_code == 0
    text = fleet(enrolled, "device", "show", "cam-1").stdout
    assert "distrusted" not in text
    assert "no valid certificate" not in text
    gone = fleet(enrolled, "distrust", "show", rule["id"])
    assert gone.exit_code == 1
    assert "no-such-distrust" in gone.stderr
    assert fleet(enrolled, "distrust", "show", "xyz").exit_code == 2


def test_a_ca_is_named_by_its_fingerprint_or_its_beginning(enrolled: Path) -> None:
    authorities = json.loads(fleet(enrolled, "ca", "show", "-o", "json").stdout)
    issuing, root = (
        next(each["sha256"] for each in authorities if each["role"] == role) for role in ("issuing", "root")
    )
    for text in (issuing, issuing[:8].upper(), ":".join(issuing[n : n + 2] for n in range(0, 64, 2))):
        done = fleet(enrolled, "distrust", "--ca", text, "--dry-run", "-o", "json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["matched"] == 0
    for text in (issuing[:7], root, "no-such-tenant", ""):
        assert fleet(enrolled, "distrust", "--ca", text, "--dry-run").exit_code in (1, 2), text


def test_wrong_uses(enrolled: Path) -> None:
    for words in ((), ("--yes",), ("--model", "default", "--no-renewal", "--renew-only"), ("--issued-between", "now")):
        assert fleet(enrolled, "distrust", *words).exit_code == 2, words
    nothing = fleet(enrolled, "distrust", "--key-type", "Ed25519", "--renew-only", "--yes", "-o", "json")
    assert nothing.exit_code == 0, nothing.output
    assert json.loads(nothing.stdout)["distrust"]["refuses"] is False
    nowhere = CliRunner().invoke(main, ["distrust", "--model", "default"], env={"FLEET_HOME": "", "FLEET_URL": ""})
    assert nowhere.exit_code == 2


def test_devices_that_do_not_come_back_are_revoked(enrolled: Path) -> None:
    made = json.loads(fleet(enrolled, "distrust", "--model", "default", "--yes", "-o", "json").stdout)["distrust"]["id"]
    for words, give in ((("--count", "3"), None), ((), "1\n")):
        refused = fleet(enrolled, "distrust", "revoke", made, *words, give=give)
        assert refused.exit_code == 1
        assert "nothing was changed" in refused.stderr
    done = fleet(enrolled, "distrust", "revoke", made, "--reason", "stolen", "-o", "json", give="2\n")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"id": made, "done": 2, "certificates": 0, "left": 0, "failed": []}
    states = json.loads(fleet(enrolled, "device", "list", "-o", "json").stdout)
    assert [each["state"] for each in states] == ["revoked", "revoked"]
    assert json.loads(fleet(enrolled, "distrust", "revoke", made, "--yes", "-o", "json").stdout)["done"] == 0


def test_certificates_of_devices_that_have_others_are_revoked_when_their_number_is_confirmed(enrolled: Path) -> None:
    made = json.loads(fleet(enrolled, "distrust", "--model", "default", "--yes", "-o", "json").stdout)["distrust"]["id"]
    assert all(fleet(enrolled, "device", "suspend", f"cam-{n}").exit_code == 0 for n in (1, 2))
    shown = json.loads(fleet(enrolled, "distrust", "show", made, "-o", "json").stdout)
    assert (shown["left"], shown["certificates"]) == (0, 2)
    refused = fleet(enrolled, "distrust", "revoke", made, give="1\n")
    assert refused.exit_code == 1
    assert "nothing was changed" in refused.stderr
    done = fleet(enrolled, "distrust", "revoke", made, "--crl-reason", "keyCompromise", "-o", "json", give="2\n")
    assert json.loads(done.stdout) == {"id": made, "done": 0, "certificates": 2, "left": 0, "failed": []}


class RenewingFleet:
    """An API under whose rule as many devices are left as `lefts` says, look by look, and in truth one."""

    def __init__(self, *lefts: int) -> None:
        self._lefts = iter(lefts)
        self.expected: list[int] = []

    def get(self, path: str) -> dict[str, int]:
        return {"left": next(self._lefts), "certificates": 0}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.expected.append(body["expected"])
        if body["expected"] != 1:
            raise Conflict("count-differs", "Others match.")
        return {"done": 1, "left": 0, "failed": [], "certificates": 0, "certificates_left": 0}


@pytest.mark.parametrize(("lefts", "expected", "exit_code"), [((3, 1), [3, 1], 0), ((3, 4), [3], 1)])
def test_devices_that_renew_after_the_confirmation_are_left_out_and_no_more_come_in(
    monkeypatch: pytest.MonkeyPatch, lefts: tuple[int, ...], expected: list[int], exit_code: int
) -> None:
    api = RenewingFleet(*lefts)
    for module in (options, distrust):  # commands are loaded when they are first used
        monkeypatch.setattr(module, "client_at", lambda **_: nullcontext(api))
    run = CliRunner().invoke(main, ["distrust", "revoke", "0" * 12, "--yes"])
    assert (api.expected, run.exit_code) == (expected, exit_code), run.output
