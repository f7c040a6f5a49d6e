"""`fleet audit`: seal, verify, prove, check-proof, export and list, on a home of one's own."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fleet.cli import main
from fleet.domain.audit_proof import read_proof
from fleet.domain.merkle import EMPTY

RunFleet = Callable[..., Result]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with four rows in its audit, none sealed."""
    home = tmp_path_factory.mktemp("fleet") / "home"
    for command in (["init", str(home)], *(["device", "add", f"d{n}", "--model", "default"] for n in range(3))):
        done = CliRunner().invoke(main, command, env={"FLEET_HOME": str(home)})
        assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "home"))


@pytest.fixture
def run_fleet(home: Path) -> RunFleet:
    """Run `fleet …` on the home, named by FLEET_HOME; `expect` is the exit code."""

    def run(*arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> Result:
        done = CliRunner().invoke(main, arguments, env={"FLEET_HOME": str(home)} if env is None else env)
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        return done

    return run


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def edit(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as db:
        db.execute(statement)


def leaf_of_page(seq: int, entry: dict[str, Any]) -> bytes:
    """What is hashed, as fleet/AUDIT.md says it."""
    since_1970 = datetime.fromisoformat(entry["at"]) - datetime(1970, 1, 1, tzinfo=UTC)
    names = ("actor", "action", "subject", "outcome", "address", "detail")
    value = [seq, since_1970 // timedelta(microseconds=1), *(entry[name] for name in names)]
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")


class TestTheHomesNote:
    """The home knows that it had an audit: the registry's own tables may all be emptied."""

    TABLES = ("audit", "audit_head", "audit_node", "audit_frontier")

    def test_an_emptied_audit_that_has_begun_again(self, run_fleet: RunFleet, home: Path) -> None:
        run_fleet("audit", "seal")
        run_fleet("audit", "verify")
        for table in self.TABLES:
            edit(home, f"DELETE FROM {table}")  # noqa: S608
        assert "audit-removed" in run_fleet("audit", "verify", "-o", "json", expect=1).stderr
        run_fleet("device", "add", "d9", "--model", "default")
        assert "rows 2 to 4 are missing" in run_fleet("audit", "verify", expect=1).stderr
        assert "audit-removed" in run_fleet("audit", "seal", expect=1).stderr  # and the note stays
        for n in range(10, 14):
            run_fleet("device", "add", f"d{n}", "--model", "default")
        assert "audit-rewritten" in run_fleet("audit", "seal", expect=1).stderr
        assert "its first 4 rows are not those noted" in run_fleet("audit", "verify", expect=1).stderr
        (home / "state" / "audit-note.json").unlink()
        run_fleet("audit", "verify")

    def test_it_is_of_how_the_audit_began(self, run_fleet: RunFleet, home: Path) -> None:
        for n in range(10, 13):
            run_fleet("device", "add", f"d{n}", "--model", "default")
            run_fleet("audit", "seal")
            assert json.loads((home / "state" / "audit-note.json").read_text())["size"] == 5
        run_fleet("audit", "verify")
        (ids := home / "many.csv").write_text(
            "device_id,model,hardware_serial,key_sha256,tags,groups\n"
            + "".join(f"m{n},default,S{n},,,\n" for n in range(300))
        )
        run_fleet("device", "import", str(ids))
        run_fleet("device", "tag", "--filter", "model=default", "lot=L7", "--yes")
        run_fleet("audit", "seal")
        assert json.loads((home / "state" / "audit-note.json").read_text())["size"] == 256
        run_fleet("audit", "verify")
        run_fleet("device", "add", "last", "--model", "default")
        run_fleet("audit", "seal")

    @pytest.mark.parametrize("text", ["", "{}", '{"size":0,"root":""}', "x" * 5000, '{"size":4,"root":"é"}'])
    def test_one_that_is_damaged(self, run_fleet: RunFleet, home: Path, text: str) -> None:
        run_fleet("audit", "seal")
        (home / "state" / "audit-note.json").write_text(text)
        assert "bad-audit-note" in run_fleet("audit", "verify", expect=1).stderr


class TestSealAndVerify:
    def test_seal_once(self, run_fleet: RunFleet) -> None:
        before = parsed(run_fleet("audit", "verify", "-o", "json"))
        assert (before["rows"], before["sealed"], before["unsealed"], before["sealed_head"]) == (4, 0, 4, None)
        sealed = parsed(run_fleet("audit", "seal", "-o", "json"))
        assert (sealed["sealed"], sealed["new"], sealed["head"]) == (4, True, before["head"])
        assert parsed(run_fleet("audit", "seal", "-o", "json")) == {**sealed, "new": False}
        after = parsed(run_fleet("audit", "verify", "-o", "json"))
        assert after == {
            **before,
            "sealed": 4,
            "unsealed": 0,
            "sealed_head": sealed["head"],
            "sealed_at": sealed["at"],
            "heads_checked": 1,
        }
        run_fleet("device", "add", "d9", "--model", "default")
        last = parsed(run_fleet("audit", "verify", "-o", "json"))
        assert (last["rows"], last["sealed"], last["unsealed"]) == (5, 4, 1)

    def test_an_older_home_gets_its_key_when_it_seals(self, run_fleet: RunFleet, home: Path) -> None:
        for file in ("audit.key", "audit.pub"):
            (home / "ca" / file).unlink()
        assert parsed(run_fleet("audit", "verify", "-o", "json"))["rows"] == 4
        run_fleet("audit", "seal")
        assert (home / "ca" / "audit.key").stat().st_mode & 0o777 == 0o600
        run_fleet("audit", "verify")

    def test_a_home_without_its_public_key_verifies_nothing_sealed(self, run_fleet: RunFleet, home: Path) -> None:
        run_fleet("audit", "seal")
        (home / "ca" / "audit.pub").rename(home / "old.pub")
        assert "names another key" in run_fleet("audit", "verify", expect=1).stderr
        run_fleet("audit", "verify", "--public-key", str(home / "old.pub"))

    def test_a_copy_with_nothing_but_the_key(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        run_fleet("audit", "seal")
        shutil.copy(home / "registry.db", tmp_path / "copy.db")
        shutil.copy(home / "ca" / "audit.pub", tmp_path / "audit.pub")
        shutil.rmtree(home)
        words = ("audit", "verify", "--file", str(tmp_path / "copy.db"))
        signed = parsed(run_fleet(*words, "--public-key", str(tmp_path / "audit.pub"), "-o", "json", env={}))
        unsigned = parsed(run_fleet(*words, "-o", "json", env={}))
        assert (signed["signatures"], unsigned["signatures"]) == ("verified", "not verified: give --public-key")
        (tmp_path / "audit.pub").write_text("hello")
        refused = run_fleet(*words, "--public-key", str(tmp_path / "audit.pub"), expect=1, env={})
        assert "holds no public key in PEM. Give the home's ca/audit.pub" in refused.stderr

    def test_since_a_head(self, run_fleet: RunFleet) -> None:
        run_fleet("audit", "seal")
        head = parsed(run_fleet("audit", "verify", "-o", "json"))["sealed_head"]
        run_fleet("device", "add", "d9", "--model", "default")
        since = parsed(run_fleet("audit", "verify", "--since-head", head, "-o", "json"))
        assert (since["read_from"], since["rows"], since["heads_checked"]) == (5, 5, 0)
        wrong = head[:-1] + ("0" if head[-1] != "0" else "1")
        assert (
            "its first 4 rows are not those noted"
            in run_fleet("audit", "verify", "--since-head", wrong, expect=1).stderr
        )

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--since-head", "x"), "a colon and the root"),
            (("--head", "4:12"), "a colon and the root"),
            (("--since-head", "0:" + "00" * 32, "--state", "s"), "one of --since-head and --state"),
            (("--whole",), "--whole needs --state"),
            (("--whole", "--state", "s", "--head", "0:" + "00" * 32), "no --head"),
        ],
    )
    def test_used_wrongly(self, run_fleet: RunFleet, arguments: tuple[str, ...], says: str) -> None:
        assert says in run_fleet("audit", "verify", *arguments, expect=2).stderr.replace("\n", " ")


class TestState:
    def test_it_remembers_and_reads_only_what_came_after(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        state = tmp_path / "state.json"
        words = ("audit", "verify", "--state", str(state), "-o", "json")
        assert parsed(run_fleet(*words))["read_from"] == 1
        assert not state.exists()  # there is no head to remember yet
        run_fleet("audit", "seal")
        assert parsed(run_fleet(*words))["read_from"] == 1
        assert json.loads(state.read_text())["size"] == 4
        run_fleet("device", "add", "d9", "--model", "default")
        run_fleet("audit", "seal")
        assert parsed(run_fleet(*words))["read_from"] == 5
        assert json.loads(state.read_text())["size"] == 5
        incremental = state.read_text()
        whole = parsed(run_fleet(*words, "--whole"))
        assert (whole["read_from"], whole["heads_checked"]) == (1, 2)
        assert state.read_text() == incremental

    def test_what_does_not_hold_is_not_remembered(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        state = tmp_path / "state.json"
        words = ("audit", "verify", "--state", str(state))
        run_fleet("audit", "seal")
        run_fleet(*words)
        before = state.read_text()
        run_fleet("device", "add", "d9", "--model", "default")
        run_fleet("audit", "seal")
        edit(home, "DELETE FROM audit_head WHERE size = 4")
        assert "the head of 4 rows, verified before, is gone" in run_fleet(*words, expect=1).stderr
        whole = run_fleet(*words, "--whole", expect=1)
        assert "there are 0 heads up to row 4, and not the 1 that were verified before" in whole.stderr
        assert state.read_text() == before

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "{}", '{"version": 1}', "[" * 4000, "x" * 10_000, "null"],
    )
    def test_what_is_no_state(self, run_fleet: RunFleet, tmp_path: Path, text: str) -> None:
        state = tmp_path / "state.json"
        state.write_text(text)
        done = run_fleet("audit", "verify", "--state", str(state), expect=1)
        assert "is not a state file of this command" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert state.read_text() == text

    @pytest.mark.parametrize(
        "change", [{"size": 0}, {"size": "4"}, {"size": True}, {"heads": -1}, {"root": "00"}, {"version": 2}]
    )
    def test_a_state_that_was_edited(self, run_fleet: RunFleet, tmp_path: Path, change: dict[str, object]) -> None:
        run_fleet("audit", "seal")
        state = tmp_path / "state.json"
        run_fleet("audit", "verify", "--state", str(state))
        state.write_text(json.dumps(json.loads(state.read_text()) | change))
        assert "is not a state file" in run_fleet("audit", "verify", "--state", str(state), expect=1).stderr


class TestProof:
    def test_a_row(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        assert "fleet audit seal" in run_fleet("audit", "prove", "3", expect=1).stderr
        run_fleet("audit", "seal")
        file, key = tmp_path / "proof.json", str(home / "ca" / "audit.pub")
        made = parsed(run_fleet("audit", "prove", "3", "--out", str(file), "-o", "json"))
        assert (made["file"], made["seq"]) == (str(file), 3)
        assert run_fleet("audit", "prove", "3").stdout == file.read_text()
        assert read_proof(file.read_bytes()).entry.subject == "device d1"
        checked = parsed(run_fleet("audit", "check-proof", str(file), "--public-key", key, "-o", "json", env={}))
        assert (checked["ok"], checked["seq"], checked["action"], checked["subject"]) == (
            True,
            3,
            "device.add",
            "device d1",
        )
        assert checked["head"] == made["head"] == parsed(run_fleet("audit", "verify", "-o", "json"))["sealed_head"]
        assert "file is there already" in run_fleet("audit", "prove", "3", "--out", str(file), expect=1).stderr

    def test_a_program_of_ones_own_checks_it(self, run_fleet: RunFleet, home: Path) -> None:
        """As fleet/AUDIT.md describes it, with nothing of ours."""
        run_fleet("audit", "seal")
        proof = json.loads(run_fleet("audit", "prove", "3").stdout)
        assert proof["leaf"].encode() == leaf_of_page(proof["seq"], proof["entry"])
        node = hashlib.sha256(b"\0" + proof["leaf"].encode()).digest()
        assert (proof["index"], proof["size"]) == (2, 4)
        left, right = (bytes.fromhex(each) for each in proof["path"])  # of four leaves, the third
        node = hashlib.sha256(b"\1" + node + left).digest()
        node = hashlib.sha256(b"\1" + right + node).digest()
        head = proof["head"]
        assert node.hex() == head["root"]
        milliseconds = round(datetime.fromisoformat(head["at"]).timestamp() * 1000)
        signed = milliseconds.to_bytes(8) + (4).to_bytes(8) + b"\x20" + node + b"\0\0"
        key = load_pem_public_key((home / "ca" / "audit.pub").read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(bytes.fromhex(head["signature"]), signed, ec.ECDSA(hashes.SHA256()))

    def test_what_does_not_hold(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        run_fleet("audit", "seal")
        file, key = tmp_path / "proof.json", str(home / "ca" / "audit.pub")
        run_fleet("audit", "prove", "3", "--out", str(file))
        text = file.read_text()
        other = tmp_path / "other"
        run_fleet("init", str(other))

        def refused(content: str, by: str = key) -> str:
            file.write_text(content)
            done = run_fleet("audit", "check-proof", str(file), "--public-key", by, expect=1)
            assert len(done.stderr.splitlines()) == 1
            assert done.stdout == ""
            return done.stderr

        assert "does not hold" in refused(text.replace("d1", "d7"))
        assert "this is not a proof" in refused(text[:-3])
        assert "this is not a proof" in refused("")
        assert "larger than" in refused(text + " " * 300_000)
        assert "names another key" in refused(text, str(other / "ca" / "audit.pub"))
        at = json.loads(text)["head"]["at"]
        assert "does not verify" in refused(text.replace(at, "2020" + at[4:]))
        missing = run_fleet("audit", "check-proof", str(tmp_path / "none"), "--public-key", key, expect=1)
        assert "no such file" in missing.stderr
        assert run_fleet("audit", "check-proof", str(file), expect=2)

    def test_the_issue_of_a_certificate(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        kit = tmp_path / "kit"
        serial = parsed(run_fleet("station", "add", "st1", "--model", "default", "--out", str(kit), "-o", "json"))[
            "serial"
        ]
        run_fleet("audit", "seal")
        leaf = x509.load_pem_x509_certificates((kit / "station.pem").read_bytes())[0]
        shown = ":".join(f"{leaf.serial_number:040X}"[at : at + 2] for at in range(0, 40, 2))  # as openssl does
        for text in (serial, f"0x{serial}", shown):
            proof = read_proof(run_fleet("audit", "prove", text).stdout.encode("ascii"))
            assert (proof.seq, proof.entry.action, proof.entry.detail["serial"]) == (5, "station.add", serial)

    @pytest.mark.parametrize(
        ("what", "code", "says"),
        [
            ("abc", 1, "there is no certificate abc in the registry"),
            ("0x12", 1, "there is no certificate 12 in the registry"),
            ("0", 1, "seq must be at least 1"),
            ("99", 1, "the audit ends with row 4"),
            ("row 3", 2, "Give a row's number, or a certificate's serial number in hex"),
            ("-1", 2, "No such option"),
            ("f" * 60, 2, "Give a row's number"),
        ],
    )
    def test_what_there_is_not(self, run_fleet: RunFleet, what: str, code: int, says: str) -> None:
        run_fleet("audit", "seal")
        assert says.lower() in run_fleet("audit", "prove", what, expect=code).stderr.lower()

    def test_broken_ground(self, run_fleet: RunFleet, home: Path) -> None:
        run_fleet("audit", "seal")
        edit(home, "UPDATE audit SET actor = 'nobody' WHERE seq = 3")
        assert "See: fleet audit verify" in run_fleet("audit", "prove", "3", expect=1).stderr


class TestExport:
    def test_every_row_with_its_leaf_and_then_the_heads(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        run_fleet("audit", "seal")
        run_fleet("device", "add", "d9", "--model", "default")
        lines = [json.loads(line) for line in run_fleet("audit", "export").stdout.splitlines()]
        rows, heads = lines[:5], lines[5:]
        assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
        root = EMPTY.appended(bytes.fromhex(row["leaf"]) for row in rows[:4]).root()
        assert [(h["head"]["size"], h["head"]["root"]) for h in heads] == [(4, root.hex())]
        file = tmp_path / "audit.jsonl"
        made = parsed(run_fleet("audit", "export", "--after", "2", "--file", str(file), "-o", "json"))
        assert made == {"file": str(file), "rows": 3, "heads": 1}
        assert [json.loads(line) for line in file.read_text().splitlines()] == [*rows[2:], *heads]
        assert file.stat().st_mode & 0o077 == 0
        assert "there already" in run_fleet("audit", "export", "--file", str(file), expect=1).stderr

    def test_a_leaf_can_be_made_from_its_line(self, run_fleet: RunFleet) -> None:
        for line in run_fleet("audit", "export").stdout.splitlines():
            row = json.loads(line)
            assert hashlib.sha256(b"\0" + leaf_of_page(row["seq"], row["entry"])).hexdigest() == row["leaf"]

    def test_an_export_that_fails_leaves_no_file(self, run_fleet: RunFleet, home: Path, tmp_path: Path) -> None:
        edit(home, "UPDATE audit SET detail = '[]' WHERE seq = 3")
        run_fleet("audit", "export", "--file", str(tmp_path / "audit.jsonl"), expect=1)
        assert [p.name for p in tmp_path.iterdir()] == ["home"]


class TestList:
    def test_filters(self, run_fleet: RunFleet) -> None:
        run_fleet("device", "revoke", "d1", "--reason", "lost")

        def seqs(*options: str) -> list[int]:
            return [row["seq"] for row in parsed(run_fleet("audit", "list", "-o", "json", *options))]

        assert seqs() == [1, 2, 3, 4, 5]
        assert seqs("--action", "device.add") == [2, 3, 4]
        assert seqs("--action", "device.*", "--subject", "device d1") == [3, 5]
        assert seqs("--action", "device.add", "--limit", "2") == [3, 4]
        assert seqs("--action", "device.add", "--after", "0", "--limit", "2") == [2, 3]
        run_fleet("token", "create", "--device", "d2")
        assert seqs("--device", "d2") == [4, 6]
        assert seqs("--outcome", "refused") == seqs("--actor", "nobody") == []
        assert "device.revoke" in run_fleet("audit", "list", "--actor", "user *").stdout
        (row,) = parsed(run_fleet("audit", "list", "-o", "json", "--action", "device.revoke"))
        assert row["detail"] == {"reason": "lost", "before": "state=registered", "after": "state=revoked"}

    def test_a_row_with_bytes_that_are_no_text(self, run_fleet: RunFleet, home: Path) -> None:
        edit(home, "UPDATE audit SET actor = CAST(x'ff41' AS TEXT) WHERE seq = 3")
        assert "row 3 has been changed" in run_fleet("audit", "verify", expect=1).stderr
        run_fleet("audit", "list")
        assert len(parsed(run_fleet("audit", "list", "-o", "json"))) == 4
