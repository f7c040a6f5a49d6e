"""The commands on a home: model, device, token, station, audit. Each runs on a real one, made by `fleet init`."""

import asyncio
import getpass
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace

from fleet.cli import main
from fleet.config.settings_file import read_settings
from fleet.domain.device import DeviceId, DeviceState
from fleet.domain.model_rules import DEFAULT_RULES, rules_json
from fleet.domain.writes import AddCredential, MoveDevice
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.storage.samples import change, credential

RunFleet = Callable[..., Result]


@pytest.fixture
def run_fleet(home: Path) -> RunFleet:
    """Run `fleet …` on the home, named by FLEET_HOME; `expect` is the exit code."""

    def run(*arguments: str, expect: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments, env={"FLEET_HOME": str(home)})
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        assert (expect == 0) == ("Error" not in done.stderr)
        return done

    return run


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


class TestModel:
    def test_add_show_list_set(self, run_fleet: RunFleet) -> None:
        added = parsed(run_fleet("model", "add", "cam2", "--lifetime", "30d", "--publish", "a/{id}/#", "-o", "json"))
        assert added == {
            "name": "cam2",
            "lifetime": 30 * 86400,
            "key_types": ["EC-P256", "EC-P384"],
            "publish": ["a/{id}/#"],
            "subscribe": ["devices/{id}/down/#"],
            "retain": False,
            **rules_json(DEFAULT_RULES),
        }
        assert parsed(run_fleet("model", "show", "cam2", "-o", "json")) == added
        changed = parsed(run_fleet("model", "set", "cam2", "--subscribe", "x", "--subscribe", "y", "-o", "json"))
        assert changed == {**added, "subscribe": ["x", "y"]}
        retaining = {**changed, "retain": True}
        assert parsed(run_fleet("model", "set", "cam2", "--retain", "-o", "json")) == retaining
        assert parsed(run_fleet("model", "set", "cam2", "--lifetime", "30d", "-o", "json")) == retaining
        assert parsed(run_fleet("model", "list", "-o", "json"))[0] == retaining
        assert parsed(run_fleet("model", "set", "cam2", "--no-retain", "-o", "json")) == changed
        assert [m["name"] for m in parsed(run_fleet("model", "list", "-o", "json"))] == ["cam2", "default"]
        assert "30d" in run_fleet("model", "list").stdout

    def test_one_of_applications(self, run_fleet: RunFleet) -> None:
        added = run_fleet("model", "add", "backend", "--application", "--max-sessions", "8")
        assert added.stderr == ""
        assert re.search("^kind: +application$", added.stdout, re.MULTILINE)
        assert run_fleet("model", "list").stdout.splitlines()[1].split()[:2] == ["backend", "application"]
        run_fleet("device", "add", "app-1", "--model", "backend")
        run_fleet("device", "add", "cam-1", "--model", "default")
        for kind, listed in (("application", "app-1"), ("device", "cam-1")):
            found = parsed(run_fleet("device", "list", "--kind", kind, "-o", "json"))
            assert [(each["id"], each["kind"]) for each in found] == [(listed, kind)]
        assert re.search("^kind: +application$", run_fleet("device", "show", "app-1").stdout, re.MULTILINE)
        assert "--admit token" in run_fleet("model", "set", "backend", "--admit", "claim", expect=1).stderr
        run_fleet("model", "add", "b", "--application", "--admit", "station", expect=2)

    def test_a_model_of_devices_with_the_topics_of_applications_is_told_of_them(self, run_fleet: RunFleet) -> None:
        for wide in ("devices/+/up/#", "devices/#", "#", "+/+/up", "+/#"):
            assert f": {wide}." in run_fleet("model", "set", "default", "--subscribe", wide).stderr
        said = run_fleet("model", "set", "default", "--publish", "devices/cam-9/up/x").stderr
        assert "has a topic of device cam-9 now: devices/cam-9/up/x." in said
        assert ": devices/#." in run_fleet("model", "override", "default", "a=b", "--subscribe", "devices/#").stderr
        for narrow in ("devices/{id}/#", "news/#", "devices", "devices/{tag:site}/+", "+"):
            assert run_fleet("model", "set", "default", "--publish", narrow).stderr == ""

    def test_policy(self, home: Path, run_fleet: RunFleet) -> None:
        def ask(*words: str) -> Result:
            return CliRunner().invoke(main, ("policy", "test", "cam-7", *words), env={"FLEET_HOME": str(home)})

        run_fleet("device", "add", "cam-7", "--model", "default")
        denied = ask("publish", "devices/cam-7/up/a", "--retain", "--size", "1KiB")
        assert (denied.exit_code, denied.stderr) == (1, "")
        assert "device-registered" in denied.stdout
        shown = ask("subscribe", "a", "-o", "json")
        assert (shown.exit_code, parsed(shown)["allowed"]) == (1, False)
        with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as db:
            db.execute("UPDATE device SET state = 'active'")
        allowed = ask("publish", "devices/cam-7/up/a", "--size", "1KiB")
        assert (allowed.exit_code, allowed.stderr) == (0, "")
        assert "rule:      devices/{id}/up/#" in allowed.stdout
        assert "advice" not in allowed.stdout
        misused = ask("subscribe", "a", "--retain")
        assert (misused.exit_code, "are those of a message" in misused.stderr) == (2, True)
        wrong = ask("publish", "a/+")
        assert (wrong.exit_code, "(bad-topic)" in wrong.stderr) == (1, True)

    def test_override(self, run_fleet: RunFleet) -> None:
        def overrides(*words: str) -> Any:
            return parsed(run_fleet("model", "override", "cam2", *words, "-o", "json"))["mqtt"]["overrides"]

        run_fleet("model", "add", "cam2")
        gold, oslo = {"tag": "tier=gold", "qos_max": 1, "publish": ["gold/{id}"]}, {"tag": "site=oslo", "retain": True}
        assert overrides("tier=gold", "--max-qos", "1", "--publish", "gold/{id}") == [gold]
        assert overrides("site=oslo", "--retain") == [gold, oslo]
        assert overrides("site=oslo", "--first") == [oslo, gold]
        gold["packet_size_max"] = 2048
        assert overrides("tier=gold", "--max-packet-size", "2KiB") == [oslo, gold]
        shown = run_fleet("model", "show", "cam2").stdout
        assert "tier=gold: publish=gold/{id} qos_max=1 packet_size_max=2048\n" in shown
        assert overrides("site=oslo", "--remove") == [gold]
        assert (
            "no override for site=oslo"
            in run_fleet("model", "override", "cam2", "site=oslo", "--remove", expect=1).stderr
        )
        for words in (
            ["tier=gold"],
            ["tier=gold", "--remove", "--retain"],
            ["gold", "--retain"],
            ["a=b", "--publish", "#a"],
        ):
            run_fleet("model", "override", "cam2", *words, expect=2)
        assert parsed(run_fleet("model", "set", "cam2", "--max-qos", "0", "-o", "json"))["mqtt"]["overrides"] == [gold]

    def test_rules(self, run_fleet: RunFleet) -> None:
        run_fleet("tenant", "add", "acme")
        options = (
            "--admit",
            "claim",
            "--admit",
            "token",
            "--grace",
            "7d",
            "--uri",
            "urn:x:{id}",
            "--binding",
            "--on-denied",
            "close",
            "--messages-per-second",
            "50",
            "--max-subscriptions",
            "7",
            "--max-packet-size",
            "2KiB",
            "--no-check-response-topic",
            "--max-qos",
            "0",
            "--no-shared-subscriptions",
            "--publish",
            "sites/{tag:site}/{id}",
        )
        added = parsed(run_fleet("model", "add", "cam2", *options, "--tenant", "acme", "-o", "json"))
        assert added["tenant"] == "acme"
        assert added["admission"]["paths"] == ["claim", "token"]
        assert (added["renewal"]["grace_seconds"], added["profile"]["binding"]) == (604_800, True)
        changed = parsed(run_fleet("model", "set", "cam2", "--no-binding", "--tenant", "", "-o", "json"))
        profile = {**added["profile"], "binding": False}
        assert changed == {**added, "tenant": "", "former_tenants": ["acme"], "profile": profile}
        ended = parsed(run_fleet("model", "set", "cam2", "--end-former-tenants", "-o", "json"))
        assert ended == {**changed, "former_tenants": []}
        changes = {"on_denied": "close", "messages_per_second": 50, "check_response_topic": False}
        changes |= {"subscriptions_max": 7, "packet_size_max": 2_048, "qos_max": 0, "shared_subscriptions": False}
        assert added["mqtt"] == {**rules_json(DEFAULT_RULES)["mqtt"], **changes}
        table = " ".join(run_fleet("model", "show", "cam2").stdout.split())
        assert "mqtt on denied: close mqtt messages per second: 50" in table
        assert "mqtt bytes per second: 4194304 mqtt burst seconds: 10" in table
        assert "mqtt subscriptions max: 7 mqtt packet size max: 2048" in table
        run_fleet(
            "model", "set", "cam2", "--max-subscriptions", "0", "--max-packet-size", "0", "--bytes-per-second", "0"
        )
        table = " ".join(run_fleet("model", "show", "cam2").stdout.split())
        assert "mqtt bytes per second: no limit" in table
        assert "mqtt client id: exact mqtt sessions max: 4" in table
        usual = " ".join(run_fleet("model", "show", "default").stdout.split())
        assert "mqtt qos max: 2 mqtt shared subscriptions: yes" in usual
        assert "mqtt on denied: acknowledge" in usual
        assert "mqtt subscriptions max: fleet.toml's (filters_per_device_max)" in table
        assert "mqtt packet size max: fleet.toml's (packet_size_max)" in table
        assert "admission paths:" in table
        assert "claim" in table
        assert "renewal grace seconds: 604800" in table
        assert "server keygen" not in table
        refused = run_fleet("model", "set", "cam2", "--webhook", "http://x/", expect=2)
        assert "A webhook is an https URL" in refused.stderr or "a webhook is an https URL" in refused.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("add", "default"), 1, "adding model 'default': model default exists already"),
            (("add", "a/b"), 2, "is not a name for a model"),
            (("add", "m", "--publish", "a/#/b"), 2, "is not a topic filter"),
            (("add", "m", "--publish", "a/{ID}"), 2, "holds braces other than {id}, {model}, {tenant} and {tag:KEY}"),
            (("add", "m", "--publish", "a/{tag:model}"), 2, "'model' cannot be a tag's key"),
            (("add", "m", "--max-qos", "3"), 2, "3 is not in the range 0<=x<=2"),
            (("add", "m", "--lifetime", "soon"), 2, "'soon' is not a duration; write 90s, 15m, 1h or 30d"),
            (("add", "m", "--lifetime", "0s"), 2, "greater than zero"),
            (("add", "m", "--key-type", "RSA-1024"), 2, "RSA-1024"),
            (("add", "m", "--end-former-tenants"), 2, "No such option"),
            (("add", "m", "--max-packet-size", "64KB"), 2, "'64KB' is not a size: write bytes, or 64KiB, 1MiB."),
            (("add", "m", "--bytes-per-second", "3GiB"), 2, "'3GiB' is too large: at most 2147483647"),
            (("set", "default"), 2, "Nothing to change"),
            (("set", "m", "--lifetime", "1h"), 1, "there is no model 'm'. See: fleet model list"),
            (("show", "m"), 1, "there is no model 'm'. See: fleet model list"),
        ],
    )
    def test_refused(self, run_fleet: RunFleet, arguments: tuple[str, ...], code: int, says: str) -> None:
        assert says.lower() in run_fleet("model", *arguments, expect=code).stderr.lower()
        assert len(parsed(run_fleet("model", "list", "-o", "json"))) == 1


class TestDevice:
    def test_a_life(self, run_fleet: RunFleet) -> None:
        added = parsed(run_fleet("device", "add", "cam-7", "--model", "default", "--serial", "SN 1", "-o", "json"))
        assert (added["id"], added["state"], added["hardware_serial"]) == ("cam-7", "registered", "SN 1")
        assert parsed(run_fleet("device", "show", "cam-7", "-o", "json")) == {**added, "certificates": []}
        for command, state in (("suspend", "suspended"), ("resume", "registered"), ("revoke", "revoked")):
            moved = parsed(run_fleet("device", command, "cam-7", "--reason", "why not", "-o", "json"))
            assert moved == {**added, "state": state}
            shown = parsed(run_fleet("device", "show", "cam-7", "-o", "json"))
            assert shown.get("state_change", {}).get("reason") == (None if command == "resume" else "why not")
        table = run_fleet("device", "show", "cam-7").stdout
        assert re.search(r"^revoked at: +20\d\d-\d\d-\d\d [0-9:]{8}Z$", table, re.MULTILINE)
        assert re.search(r"^revoked by: +user \S+$", table, re.MULTILINE)
        assert re.search(r"^reason: +why not$", table, re.MULTILINE)
        assert "revoked, not suspended" in run_fleet("device", "resume", "cam-7", expect=1).stderr
        again = run_fleet("device", "add", "cam-7", "--model", "default", expect=1)
        assert "exists already" in again.stderr
        assert "retired" in run_fleet("device", "retire", "cam-7").stdout

    def test_list(self, run_fleet: RunFleet) -> None:
        run_fleet("model", "add", "cam2")
        for id_, model in (("a", "cam2"), ("b", "default"), ("c", "cam2")):
            run_fleet("device", "add", id_, "--model", model)
        run_fleet("device", "suspend", "c")

        def ids(*options: str) -> list[str]:
            return [d["id"] for d in parsed(run_fleet("device", "list", "-o", "json", *options))]

        assert ids() == ["a", "b", "c"]
        assert ids("--model", "cam2") == ["a", "c"]
        assert ids("--state", "suspended") == ["c"]
        assert ids("--after", "a") == ["b", "c"]
        assert ids("--limit", "2") == ["a", "b"]
        assert "--after b" in run_fleet("device", "list", "--limit", "2").stderr
        assert run_fleet("device", "list").stdout.splitlines()[0].split() == [
            "ID",
            "MODEL",
            "KIND",
            "STATE",
            "HARDWARE",
            "SERIAL",
            "CREATED",
            "AT",
            "EXPIRES",
            "AT",
            "TAGS",
            "GROUPS",
        ]

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("add", "a/b", "--model", "default"), 2, "is not a device id"),
            (("add", "a", "--model", "pump"), 1, "there is no model 'pump'"),
            (("add", "a"), 2, "--model"),
            (("show", "a"), 1, "there is no device 'a'. See: fleet device list"),
            (("revoke", "a"), 1, "revoking device 'a': there is no device 'a'. See: fleet device list"),
            (("list", "--state", "dead"), 2, "dead"),
        ],
    )
    def test_refused(self, run_fleet: RunFleet, arguments: tuple[str, ...], code: int, says: str) -> None:
        assert says.lower() in run_fleet("device", *arguments, expect=code).stderr.lower()


class TestToken:
    def test_it_stands_alone_on_stdout(self, run_fleet: RunFleet) -> None:
        run_fleet("device", "add", "cam-7", "--model", "default")
        made = run_fleet("token", "create", "--device", "cam-7", "--ttl", "1h30m")
        (text,) = made.stdout.splitlines()
        id_, _, secret = text.partition(".")
        assert len(secret) >= 43
        assert "valid once within 1h30m" in made.stderr
        assert secret not in made.stderr
        (listed,) = parsed(run_fleet("token", "list", "-o", "json"))
        assert (listed["id"], listed["device"], listed["model"], listed["state"]) == (id_, "cam-7", None, "open")
        for command in (("token", "list"), ("audit", "list"), ("audit", "list", "-o", "json")):
            assert secret not in run_fleet(*command).output

    def test_into_a_file_of_its_own(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "t"
        made = run_fleet("token", "create", "--model", "default", "--out", str(out), "-o", "json")
        assert out.stat().st_mode & 0o777 == 0o600
        text = out.read_text().strip()
        assert text.startswith(parsed(made)["id"] + ".")
        assert text not in made.output
        planted = tmp_path / "planted"
        planted.symlink_to(tmp_path / "elsewhere")
        for taken in (out, planted):
            words = ("token", "create", "--model", "default", "--out", str(taken))
            assert "there already" in run_fleet(*words, expect=1).stderr
        assert len(parsed(run_fleet("token", "list", "-o", "json"))) == 1
        assert not (tmp_path / "elsewhere").exists()

    def test_json_and_revoke(self, run_fleet: RunFleet) -> None:
        options = ("--model", "default", "--uses", "3", "--ttl", "7d", "-o", "json")
        made = parsed(run_fleet("token", "create", *options))
        assert sorted(made) == ["expires_at", "id", "token"]
        assert made["token"].startswith(made["id"] + ".")
        assert parsed(run_fleet("token", "revoke", made["id"], "-o", "json")) == {"id": made["id"], "state": "revoked"}
        (listed,) = parsed(run_fleet("token", "list", "-o", "json"))
        assert (listed["state"], listed["uses"], listed["uses_max"]) == ("revoked", 0, 3)
        assert "revoked already" in run_fleet("token", "revoke", made["id"], expect=1).stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("create",), 2, "Give one of --device, --devices and --model"),
            (("create", "--device", "a", "--model", "default"), 2, "Give one of --device, --devices and --model"),
            (("create", "--device", "a"), 1, "Register it with: fleet device add a"),
            (("create", "--model", "pump"), 1, "there is no model 'pump'"),
            (("create", "--model", "default", "--uses", "0"), 2, "--uses"),
            (("create", "--model", "default", "--ttl", "91d"), 2, "at most 90d"),
            (("create", "--model", "default", "--ttl", "999999999w"), 2, "too long"),
            (("revoke", "nobody"), 2, "is not the id of a token"),
            (("revoke", "0123456789ab"), 1, "there is no token '0123456789ab'. See: fleet token list"),
            (("revoke", "id.secret"), 2, "the part before the dot"),
        ],
    )
    def test_refused(self, run_fleet: RunFleet, arguments: tuple[str, ...], code: int, says: str) -> None:
        assert says.lower() in run_fleet("token", *arguments, expect=code).stderr.lower()


class TestStation:
    def test_its_files(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        out = tmp_path / "st1"
        added = parsed(run_fleet("station", "add", "st1", "--model", "default", "--out", str(out), "-o", "json"))
        assert {p.name: p.stat().st_mode & 0o077 for p in out.iterdir() if p.name == "station.key"} == {
            "station.key": 0
        }
        assert sorted(p.name for p in out.iterdir()) == ["ca.pem", "station.key", "station.pem"]
        assert (out / "ca.pem").read_bytes() == (home / "ca" / "root.pem").read_bytes()
        leaf, issuing = x509.load_pem_x509_certificates((out / "station.pem").read_bytes())
        leaf.verify_directly_issued_by(issuing)
        key = load_pem_private_key((out / "station.key").read_bytes(), None)
        assert leaf.public_key() == key.public_key()
        assert f"{leaf.serial_number:x}" == added["serial"]
        (listed,) = parsed(run_fleet("station", "list", "-o", "json"))
        assert (listed["name"], listed["models"], listed["certificate"]) == ("st1", ["default"], "issued")
        revoked = parsed(run_fleet("station", "revoke", "st1", "--crl-reason", "superseded", "-o", "json"))
        assert revoked == {"name": "st1", "certificate": "revoked"}
        assert "revoked" in run_fleet("station", "list").stdout

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
    def test_openssl_accepts_its_chain(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "st1"
        run_fleet("station", "add", "st1", "--model", "default", "--out", str(out), "--days", "3")
        pem = str(out / "station.pem")
        command = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", str(out / "ca.pem"), "-untrusted", pem, pem]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("name", ["ca.pem", "station.pem", "station.key"])
    def test_a_planted_link_is_not_followed(self, run_fleet: RunFleet, tmp_path: Path, name: str) -> None:
        out = tmp_path / "st"
        out.mkdir()
        (out / name).symlink_to(tmp_path / "elsewhere")
        assert "exists" in run_fleet("station", "add", "st1", "--model", "default", "--out", str(out), expect=1).stderr
        assert not (tmp_path / "elsewhere").exists()
        assert parsed(run_fleet("station", "list", "-o", "json")) == []

    def test_nothing_is_overwritten_and_no_key_is_left_behind(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "st"
        run_fleet("station", "add", "st1", "--model", "default", "--out", str(out))
        before = {p: p.read_bytes() for p in out.iterdir()}
        assert "exists" in run_fleet("station", "add", "st2", "--model", "default", "--out", str(out), expect=1).stderr
        assert {p: p.read_bytes() for p in out.iterdir()} == before
        other = tmp_path / "other"
        assert (
            "exists already"
            in run_fleet("station", "add", "st1", "--model", "default", "--out", str(other), expect=1).stderr
        )
        assert "no model" in run_fleet("station", "add", "st3", "--model", "pump", "--out", str(other), expect=1).stderr
        assert list(other.iterdir()) == []
        assert len(parsed(run_fleet("station", "list", "-o", "json"))) == 1
        assert "no station" in run_fleet("station", "revoke", "st9", expect=1).stderr


class TestAudit:
    def test_list(self, run_fleet: RunFleet) -> None:
        for n in range(5):
            run_fleet("device", "add", f"d{n}", "--model", "default")
        rows = parsed(run_fleet("audit", "list", "-o", "json"))
        user = f"user {getpass.getuser()}"
        assert [(r["seq"], r["actor"], r["action"]) for r in rows[-2:]] == [
            (5, user, "device.add"),
            (6, user, "device.add"),
        ]
        assert rows[-1]["subject"] == "device d4"
        assert rows[-1]["detail"] == {"model": "default"}
        assert [r["seq"] for r in parsed(run_fleet("audit", "list", "-o", "json", "--limit", "2"))] == [5, 6]
        after = parsed(run_fleet("audit", "list", "-o", "json", "--after", "1", "--limit", "2"))
        assert [r["seq"] for r in after] == [2, 3]
        assert "device d4" in run_fleet("audit", "list").stdout

    def test_verify_the_home_and_a_copy(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        run_fleet("device", "add", "d1", "--model", "default")
        run_fleet("device", "revoke", "d1", "--reason", "lost")
        verified = parsed(run_fleet("audit", "verify", "-o", "json"))
        assert (verified["ok"], verified["rows"]) == (True, 3)
        copy = Path(shutil.copy(home / "registry.db", tmp_path / "copy.db"))
        key = ("--public-key", str(home / "ca" / "audit.pub"))
        assert parsed(run_fleet("audit", "verify", "--file", str(copy), *key, "-o", "json")) == verified
        mistaken = run_fleet("audit", "verify", "--file", str(copy), "--key", key[1], expect=2)
        assert "--key is for a served fleet" in mistaken.stderr
        content = bytearray(copy.read_bytes())
        content[content.index(b"device.revoke")] ^= 1
        copy.write_bytes(content)
        assert "row 3 has been changed" in run_fleet("audit", "verify", "--file", str(copy), expect=1).stderr
        run_fleet("audit", "verify")

    def test_a_cut_tail_shows_against_a_noted_head(self, run_fleet: RunFleet, home: Path) -> None:
        run_fleet("device", "add", "d1", "--model", "default")
        head = parsed(run_fleet("audit", "verify", "-o", "json"))["head"]
        run_fleet("device", "add", "d2", "--model", "default")
        run_fleet("audit", "verify", "--head", head)
        with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as db:
            db.execute("DELETE FROM audit WHERE seq > 1")
        run_fleet("audit", "verify")
        assert "its first 2 rows are not those noted" in run_fleet("audit", "verify", "--head", head, expect=1).stderr
        assert "--head" in run_fleet("audit", "verify", "--head", "2:abc", expect=2).stderr

    def test_needs_no_home_for_a_copy(self, home: Path) -> None:
        done = CliRunner().invoke(main, ["audit", "verify", "--file", str(home / "registry.db")])
        assert done.exit_code == 0, done.output
        assert CliRunner().invoke(main, ["audit", "verify"]).exit_code == 2


def test_without_a_home_every_command_says_so(tmp_path: Path) -> None:
    for command in (("model", "list"), ("device", "list"), ("token", "list"), ("station", "list"), ("audit", "list")):
        unset = {"FLEET_HOME": ""}
        assert CliRunner().invoke(main, [*command, "--home", str(tmp_path)], env=unset).exit_code == 1
        done = CliRunner().invoke(main, command, env=unset)
        assert done.exit_code == 2
        assert "FLEET_HOME" in done.stderr


@pytest.mark.parametrize("group", ["model", "device", "token", "station", "operator", "audit"])
def test_help_teaches(group: str) -> None:
    top = CliRunner().invoke(main, [group, "--help"])
    assert top.exit_code == 0
    listed = top.stdout.partition("Commands:")[2].split("\n")
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert names
    for name in names:
        done = CliRunner().invoke(main, [group, name, "--help"])
        assert done.exit_code == 0
        assert "--home" in done.stdout or name == "check-proof"  # which is for people without one
        assert "--output" in done.stdout


def test_as_a_process_it_leaves_no_thread_and_no_trace_behind(home: Path, tmp_path: Path) -> None:
    """An error while the registry is opened must not end in a thread that reports to a loop that is gone."""
    (home / "registry.db").chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "device", "list"],
        env={**os.environ, "FLEET_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: listing the devices:")
    assert "chmod 600" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class TestRenewal:
    def test_a_campaign_is_called_shown_and_ended(self, run_fleet: RunFleet) -> None:
        called = parsed(run_fleet("renewal", "campaign", "--model", "default", "--before", "now", "-o", "json"))
        assert called["before"] == called["start"]
        assert (called["devices"], called["renewed"]) == (0, 0)
        assert parsed(run_fleet("renewal", "progress", "--model", "default", "-o", "json")) == called
        assert parsed(run_fleet("renewal", "list", "-o", "json")) == [called]
        model = parsed(run_fleet("model", "show", "default", "-o", "json"))
        assert model["renewal"]["campaign"]["spread_seconds"] == 21_600
        assert "renewal.campaign" in run_fleet("audit", "list").stdout
        ago = parsed(run_fleet("renewal", "campaign", "--model", "default", "--before", "12h", "-o", "json"))
        assert datetime.fromisoformat(ago["start"]) - datetime.fromisoformat(ago["before"]) > timedelta(hours=11)
        run_fleet("renewal", "stop", "--model", "default")
        assert parsed(run_fleet("renewal", "list", "-o", "json")) == []
        assert "none" in run_fleet("renewal", "progress", "--model", "default").stdout

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("--model", "m", "--before", "now"), 1, "there is no model 'm'"),
            (("--model", "default", "--before", "soon"), 2, "'soon' is not a time"),
            (("--model", "default", "--before", "2099-01-01"), 2, "must be in the past"),
            (("--model", "default"), 2, "--before"),
        ],
    )
    def test_refusals(self, run_fleet: RunFleet, arguments: tuple[str, ...], code: int, says: str) -> None:
        assert says in run_fleet("renewal", "campaign", *arguments, expect=code).stderr


@pytest.mark.parametrize(
    ("hosts", "listens"),
    [((), "127.0.0.1"), (("localhost", "::1"), "127.0.0.1"), (("localhost", "iot.example"), "0.0.0.0")],
)
def test_a_home_listens_on_all_interfaces_only_for_a_host_beyond_this_machine(
    tmp_path: Path, hosts: tuple[str, ...], listens: str
) -> None:
    named = [word for host in hosts for word in ("--host", host)]
    assert CliRunner().invoke(main, ["init", str(tmp_path / "home"), *named]).exit_code == 0
    settings = read_settings(tmp_path / "home" / "fleet.toml")
    assert {settings.est.host, settings.mqtt.host, settings.http.host} == {listens}


def test_one_certificate_of_a_device_is_revoked_by_its_serial_number(run_fleet: RunFleet, home: Path) -> None:
    run_fleet("device", "add", "cam-7", "--model", "default")
    old, new = credential("cam-7", serial="a1b2"), credential("cam-7", serial="c3d4")

    async def given() -> None:
        registry = await SqliteRegistry.open(home / "registry.db")
        await registry.commit(change(AddCredential(old), AddCredential(new)))
        await registry.close()

    asyncio.run(given())
    done = run_fleet("device", "revoke-certificate", "cam-7", "00:A1:B2", "--crl-reason", "superseded", "-o", "json")
    assert (json.loads(done.stdout)["serial"], json.loads(done.stdout)["state"]) == ("a1b2", "revoked")
    shown = json.loads(run_fleet("device", "show", "cam-7", "-o", "json").stdout)
    assert {each["serial"]: each["state"] for each in shown["certificates"]} == {"a1b2": "revoked", "c3d4": "issued"}
    again = run_fleet("device", "revoke-certificate", "cam-7", "0xa1b2", expect=1).stderr
    assert "revoked already" in again
    assert "only keyCompromise" in again
    assert "fleet device show cam-7" in run_fleet("device", "revoke-certificate", "cam-7", "a1", expect=1).stderr


def test_a_serial_number_may_be_given_by_its_beginning(run_fleet: RunFleet, home: Path) -> None:
    run_fleet("device", "add", "cam-7", "--model", "default")
    end = datetime(2099, 1, 1, tzinfo=UTC)
    held = [replace(credential("cam-7", serial=serial), not_after=end) for serial in ("abcdef11", "abcdef22")]

    async def given() -> None:
        registry = await SqliteRegistry.open(home / "registry.db")
        states = frozenset({DeviceState.REGISTERED})
        moved = MoveDevice(DeviceId("cam-7"), states, DeviceState.ACTIVE, expires_at=held[0].not_after)
        await registry.commit(change(moved, *map(AddCredential, held)))
        await registry.close()

    asyncio.run(given())
    assert "begin with abcdef" in run_fleet("device", "revoke-certificate", "cam-7", "abcdef", expect=1).stderr
    for serial, left in (("abcdef1", 1), ("abcdef2", 0)):
        run_fleet("device", "revoke-certificate", "cam-7", serial)
        assert parsed(run_fleet("device", "show", "cam-7", "-o", "json"))["usable_certificates"] == left
        text = run_fleet("device", "show", "cam-7").stdout
        assert ("no valid certificate" in text) == ("expires at" not in text) == (left == 0)
        [listed] = parsed(run_fleet("device", "list", "-o", "json"))
        assert (listed["expires_at"], listed["state"]) == ("2099-01-01T00:00:00Z", "active")
        assert listed["usable_until"] == (listed["expires_at"] if left else None)
        assert ("2099-01-01" in run_fleet("device", "list").stdout) == (left == 1)
    assert "serial number" in run_fleet("device", "revoke-certificate", "cam-7", "cam", expect=2).stderr
    assert "2099" not in run_fleet("device", "revoke", "cam-7").stdout
    assert "That is final" in run_fleet("device", "resume", "cam-7", expect=1).stderr


def test_lists_without_rows_and_lost_admission_say_so(run_fleet: RunFleet) -> None:
    assert "There are no such devices." in run_fleet("device", "list").stderr
    assert run_fleet("device", "list", "-o", "json").stderr == ""
    assert "There are none." in run_fleet("claim", "list").stderr
    assert "No longer admitted: token, station." in run_fleet("model", "set", "default", "--admit", "claim").stderr
