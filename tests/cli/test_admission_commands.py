"""`fleet claim`, `fleet anchor`, `fleet station` with a quota, and `fleet device import`, at a home."""

import csv
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fleet.ca.keys import generate_key
from fleet.cli import main
from fleet.services.importing import ROWS_AT_ONCE
from fleet.wire.csr import build_csr
from fleet.wire.encodings.reading import read
from tests.servers.makers import new_maker

KEY_1, KEY_2 = "11" * 32, "22" * 32


def run_fleet(home: Path, *words: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--home", str(home)], input=stdin)


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def audit(home: Path, action: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = done(run_fleet(home, "audit", "list", "-o", "json", "--limit", "1000"))
    return [row for row in found if row["action"] == action]


class TestClaim:
    def create(self, home: Path, out: Path, *more: str | Path) -> Result:
        words = ("claim", "create", "batch-7", "--model", "default", "--quota", "5", "--expires", "12h", "--out", out)
        return run_fleet(home, *words, "-o", "json", *more)

    def test_its_files(self, home: Path, tmp_path: Path) -> None:
        password = tmp_path / "password"
        password.write_text("correct horse\n")
        made = done(self.create(home, tmp_path / "claim", "--p12", "--password-file", password))
        certificate, issuing = x509.load_pem_x509_certificates(Path(made["certificate"]).read_bytes())
        key = load_pem_private_key(Path(made["key"]).read_bytes(), None)
        assert certificate.public_key() == key.public_key()
        certificate.verify_directly_issued_by(issuing)
        assert certificate.subject.rfc4514_string() == "CN=batch-7"
        bundle = read(Path(made["pkcs12"]).read_bytes(), b"correct horse")
        assert bundle.private_key is not None
        assert bundle.private_key.public_key() == key.public_key()
        assert bundle.certificates == (certificate, issuing)
        for secret in (made["key"], made["pkcs12"]):
            assert stat.S_IMODE(Path(secret).stat().st_mode) == 0o600
        [row] = done(run_fleet(home, "claim", "list", "-o", "json"))
        assert (row["name"], row["state"], row["uses"], row["quota"]) == ("batch-7", "open", 0, 5)
        assert audit(home, "claim.create")[0]["detail"]["quota"] == "5"

    def test_with_a_csr_the_key_stays_elsewhere(self, home: Path, tmp_path: Path) -> None:
        key = generate_key()
        csr = tmp_path / "claim.csr"
        csr.write_bytes(build_csr(key, (("2.5.4.3", "anything"),), ()))
        made = done(self.create(home, tmp_path / "claim", "--csr", csr))
        assert made["key"] is None
        assert not (tmp_path / "claim" / "claim.key").exists()
        certificate = x509.load_pem_x509_certificates(Path(made["certificate"]).read_bytes())[0]
        assert certificate.public_key() == key.public_key()
        assert certificate.subject.rfc4514_string() == "CN=batch-7"

    def test_a_model_that_admits_none_is_warned_of(self, home: Path, tmp_path: Path) -> None:
        assert run_fleet(home, "model", "set", "default", "--admit", "claim").exit_code == 0
        assert "does not admit claims" not in self.create(home, tmp_path / "one").stderr
        assert run_fleet(home, "model", "set", "default", "--admit", "token").exit_code == 0
        words = ("--model", "default", "--quota", "1", "--expires", "1d", "--out", tmp_path / "two")
        made = run_fleet(home, "claim", "create", "b8", *words)
        assert made.exit_code == 0
        assert "fleet model set default --admit token --admit claim" in made.stderr

    def test_its_states(self, home: Path, tmp_path: Path) -> None:
        done(self.create(home, tmp_path / "claim"))
        for verb, state in (("quarantine", "quarantined"), ("release", "open"), ("revoke", "revoked")):
            assert run_fleet(home, "claim", verb, "batch-7", "--reason", "a look").exit_code == 0
            shown = done(run_fleet(home, "claim", "show", "batch-7", "-o", "json"))
            assert shown["state"] == state
            assert audit(home, f"claim.{verb}")[0]["detail"]["reason"] == "a look"
        assert [c["state"] for c in shown["certificates"]] == ["revoked"]
        for verb in ("quarantine", "release", "revoke"):
            again = run_fleet(home, "claim", verb, "batch-7")
            assert (again.exit_code, "revoked" in again.stderr) == (1, True)

    def test_refused_and_nothing_left(self, home: Path, tmp_path: Path) -> None:
        done(self.create(home, tmp_path / "claim"))
        taken = self.create(home, tmp_path / "other")
        assert (taken.exit_code, "exists already" in taken.stderr) == (1, True)
        assert not (tmp_path / "other" / "claim.key").exists()
        there = self.create(home, tmp_path / "claim")
        assert (there.exit_code, "nothing was changed" in there.stderr) == (1, True)
        words = ("claim", "create", "x", "--quota", "5", "--out", tmp_path / "x")
        no_model = run_fleet(home, *words, "--model", "nonesuch", "--expires", "1d")
        assert (no_model.exit_code, "no model" in no_model.stderr) == (1, True)
        too_long = run_fleet(home, *words, "--model", "default", "--expires", "9999d")
        assert (too_long.exit_code, "3650d" in too_long.stderr) == (2, True)
        assert run_fleet(home, "claim", "show", "nonesuch").exit_code == 1
        assert len(done(run_fleet(home, "claim", "list", "-o", "json"))) == 1


class TestAnchor:
    def add(self, home: Path, file: Path, name: str = "acme", model: str = "default") -> Result:
        return run_fleet(home, "anchor", "add", name, file, "--model", model, "-o", "json")

    def test_comes_and_goes(self, home: Path, tmp_path: Path) -> None:
        maker, file = new_maker(), tmp_path / "acme.pem"
        file.write_bytes(maker.pem)
        added = done(self.add(home, file))
        assert (added["subject"], added["models"]) == ("CN=Acme Devices CA", ["default"])
        assert [row["name"] for row in done(run_fleet(home, "anchor", "list", "-o", "json"))] == ["acme"]
        again = self.add(home, file, "other")
        assert (again.exit_code, "already" in again.stderr) == (1, True)
        assert run_fleet(home, "anchor", "remove", "acme", "--reason", "sold").exit_code == 0
        assert done(run_fleet(home, "anchor", "list", "-o", "json")) == []
        assert run_fleet(home, "anchor", "remove", "acme").exit_code == 1
        assert audit(home, "anchor.add")[0]["detail"]["models"] == "default"
        assert audit(home, "anchor.remove")[0]["detail"]["reason"] == "sold"
        file.write_bytes(maker.certificate.public_bytes(Encoding.DER))
        assert self.add(home, file).exit_code == 0

    def test_what_is_no_makers_ca(self, home: Path, tmp_path: Path) -> None:
        root = x509.load_pem_x509_certificate((home / "ca" / "root.pem").read_bytes())
        maker, file = new_maker(), tmp_path / "file"
        device = maker.device(tmp_path, "SN1")
        of_our_name = new_maker(subject=root.subject)
        wrong = {
            "no certificate": b"hello",
            "no CA": device.cert_file.read_bytes(),
            "2 certificates": maker.pem * 2,
            "of this fleet": (home / "ca" / "root.pem").read_bytes(),
            "CA of this fleet": (home / "ca" / "issuing.pem").read_bytes(),
            "the name or the key": of_our_name.pem,
            "larger": b"x" * 100_000,
        }
        for why, data in wrong.items():
            file.write_bytes(data)
            refused = self.add(home, file)
            assert (refused.exit_code, why in refused.stderr) == (1, True), (why, refused.stderr)
        file.write_bytes(maker.pem)
        assert "no model" in self.add(home, file, model="nonesuch").stderr
        assert self.add(home, tmp_path / "missing").exit_code == 1
        assert done(run_fleet(home, "anchor", "list", "-o", "json")) == []


def test_a_stations_quota(home: Path, tmp_path: Path) -> None:
    words = ("station", "add", "line-1", "--model", "default", "--out", tmp_path / "station", "--quota", "20")
    assert done(run_fleet(home, *words, "-o", "json"))["quota"] == 20
    [row] = done(run_fleet(home, "station", "list", "-o", "json"))
    assert (row["quota"], row["used_today"]) == (20, 0)
    assert done(run_fleet(home, "station", "set", "line-1", "--quota", "0", "-o", "json"))["quota"] is None
    assert audit(home, "station.set")[0]["detail"] == {"before": "quota=20", "after": "quota=0"}
    assert run_fleet(home, "station", "set", "nonesuch", "--quota", "1").exit_code == 1
    assert run_fleet(home, "station", "set", "line-1", "--quota", "-1").exit_code == 2


HEADER = "device_id,model,hardware_serial,key_sha256,tags,groups\n"


class TestImport:
    def run(self, home: Path, tmp_path: Path, text: str, exit_code: int = 0, name: str = "m.csv") -> Any:
        file = tmp_path / name
        file.write_text(text)
        result = run_fleet(home, "device", "import", file, "-o", "json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def counts(self, value: Any) -> tuple[int, int, int]:
        return value["added"], value["unchanged"], value["refused"]

    def test_csv(self, home: Path, tmp_path: Path) -> None:
        text = HEADER + f"cam-1,default,SN1,{KEY_1},lot=L7; site=Köln,pilot;canary\n\ncam-2,default,SN2,,,\r\n"
        assert self.counts(self.run(home, tmp_path, text)) == (2, 0, 0)
        shown = done(run_fleet(home, "device", "show", "cam-1", "-o", "json"))
        assert (shown["state"], shown["hardware_serial"]) == ("registered", "SN1")
        assert (shown["tags"], shown["groups"]) == ({"lot": "L7", "site": "Köln"}, ["canary", "pilot"])
        assert not (tmp_path / "m.csv.errors").exists()
        [row] = audit(home, "device.import")
        assert (row["detail"]["devices"], row["detail"]["lines"]) == ("2", "2-4")

    def test_columns_in_any_order_and_no_more_than_needed(self, home: Path, tmp_path: Path) -> None:
        assert self.counts(self.run(home, tmp_path, "hardware_serial,MODEL, device_id\nSN1,default,cam-1")) == (1, 0, 0)

    @pytest.mark.parametrize("shape", ["lines", "array", "array on one line"])
    def test_json(self, home: Path, tmp_path: Path, shape: str) -> None:
        found: list[dict[str, object]] = [
            {"device_id": "cam-1", "model": "default", "key_sha256": KEY_1.upper(), "tags": {"lot": "L7"}},
            {"device_id": "cam-2", "model": "default", "hardware_serial": "S(2)", "groups": ["pilot"], "tags": None},
        ]
        text = {
            "lines": "\n".join(map(json.dumps, found)) + "\n",
            "array": json.dumps(found, indent=2),
            "array on one line": " " + json.dumps(found),
        }[shape]
        assert self.counts(self.run(home, tmp_path, text)) == (2, 0, 0)
        assert done(run_fleet(home, "device", "show", "cam-2", "-o", "json"))["groups"] == ["pilot"]
        as_csv = HEADER + f"cam-1,default,,{KEY_1},lot=L7,\n"
        assert self.counts(self.run(home, tmp_path, as_csv)) == (0, 1, 0)  # it is the same row

    def test_from_a_pipe(self, home: Path, tmp_path: Path) -> None:
        errors = tmp_path / "refused.csv"
        stdin = (HEADER + "cam-1,default,SN1,,,\n,default,SN2,,,\n").encode()
        result = run_fleet(home, "device", "import", "-", "--errors", errors, "-o", "json", stdin=stdin)
        assert result.exit_code == 1
        assert self.counts(json.loads(result.stdout)) == (1, 0, 1)
        assert errors.exists()

    @pytest.mark.parametrize(
        "kind", ["unrelated", "empty", "manifest", "fifo", "link to an errors file", "link to nowhere"]
    )
    def test_nothing_of_the_users_is_replaced(self, home: Path, tmp_path: Path, kind: str) -> None:
        (manifest := tmp_path / "lot.csv").write_text(HEADER + "cam-1,default,SN1,,,\n,default,SN2,,,\n")
        errors, target = tmp_path / "mine", tmp_path / "target"
        target.write_text("line,device_id,code,message\r\n")
        match kind:
            case "unrelated":
                errors.write_text("line,device_id,code,message,more\r\n")
            case "empty":
                errors.touch()
            case "manifest":
                errors = manifest
            case "fifo":
                os.mkfifo(errors)
            case "link to a list":
                errors.symlink_to(target)
            case _:
                errors.symlink_to(tmp_path / "nowhere")
        before = errors.lstat()
        result = run_fleet(home, "device", "import", manifest, "--errors", errors)
        assert result.exit_code == 1
        assert "(file-exists)" in result.stderr
        assert os.path.samestat(errors.lstat(), before)
        assert errors.lstat().st_size == before.st_size
        assert target.read_bytes() == b"line,device_id,code,message\r\n"
        assert run_fleet(home, "device", "show", "cam-1").exit_code == 1  # nothing was imported

    def test_a_former_list_goes_when_its_rows_have_come_again(self, home: Path, tmp_path: Path) -> None:
        (good := tmp_path / "good.csv").write_text(HEADER + "cam-1,default,SN1,,,\n")
        (bad := tmp_path / "bad.csv").write_text(HEADER + ",default,SN2,,,\n")
        (broken := tmp_path / "broken.csv").write_text("nonesuch\n")
        errors = tmp_path / "refused.csv"
        for file, code in ((bad, 1), (bad, 1), (broken, 1), (tmp_path / "missing.csv", 1)):
            assert run_fleet(home, "device", "import", file, "--errors", errors).exit_code == code
            assert stat.S_IMODE(errors.stat().st_mode) == 0o600
            assert len(errors.read_text().splitlines()) == 2
        assert run_fleet(home, "device", "import", good, "--errors", errors).exit_code == 0
        assert sorted(each.name for each in tmp_path.glob("*.csv*")) == ["bad.csv", "broken.csv", "good.csv"]
        assert not list(tmp_path.glob(".refused*"))

    def test_the_same_again_changes_nothing(self, home: Path, tmp_path: Path) -> None:
        text = HEADER + "".join(f"cam-{n},default,SN{n},,lot=L7,\n" for n in range(2500))
        assert self.counts(self.run(home, tmp_path, text)) == (2500, 0, 0)
        rows = len(audit(home, "device.import"))
        assert rows == 5  # one for each part that is sent
        assert run_fleet(home, "device", "tag", "cam-7", "lot=L8").exit_code == 0
        assert self.counts(self.run(home, tmp_path, text)) == (0, 2500, 0)
        assert len(audit(home, "device.import")) == rows
        assert done(run_fleet(home, "device", "show", "cam-7", "-o", "json"))["tags"] == {"lot": "L8"}
        assert self.counts(self.run(home, tmp_path, text + "cam-new,default,SNX,,,\n")) == (1, 2500, 0)

    def test_each_bad_row_by_its_line(self, home: Path, tmp_path: Path) -> None:
        assert run_fleet(home, "device", "add", "by-hand", "--model", "default", "--serial", "SN20").exit_code == 0
        first = HEADER + f"cam-1,default,SN1,{KEY_1},lot=L7,\n"
        self.run(home, tmp_path, first)
        bad = {
            "row-differs": "cam-1,default,SN9,,,",
            "device-exists": "by-hand,default,SN3,,,",
            "serial-taken": "cam-4,default,SN1,,,",
            "key-taken": f"cam-5,default,SN5,{KEY_1},,",
            "serial-taken ": "cam-15,default,SN20,,,",
            "no-such-model": "cam-6,nonesuch,SN6,,,",
            "bad-device-id": "cam 7,default,SN7,,,",
            "bad-hardware-serial": "cam-8,default,SN_8,,,",
            "bad-key-hash": "cam-9,default,SN9,abc,,",
            "no-proof": "cam-10,default,,,,",
            "bad-tag": "cam-11,default,SN11,,lot,",
            "tag-twice": "cam-12,default,SN12,,a=1;a=2,",
            "bad-name": "cam-13,default,SN13,,,a b",
            "bad-row": "cam-14,default",
        }
        text = HEADER + "good-1,default,G1,,,\n" + "\n".join(bad.values()) + "\ngood-2,default,G2,,,\n"
        value = self.run(home, tmp_path, text, exit_code=1)
        assert self.counts(value) == (2, 0, len(bad))
        with Path(value["errors_file"]).open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [(row["line"], row["code"]) for row in found] == [
            (str(n), code.strip()) for n, code in enumerate(bad, 3)
        ]
        assert all(row["message"].endswith((".", "?", "'()+,-./:=?", "sha256")) for row in found)
        assert done(run_fleet(home, "device", "show", "cam-1", "-o", "json"))["hardware_serial"] == "SN1"
        self.run(home, tmp_path, HEADER + "good-1,default,G1,,,\n")
        assert not Path(value["errors_file"]).exists()  # of an earlier run

    def test_clashes_within_one_file(self, home: Path, tmp_path: Path) -> None:
        text = HEADER + (
            f"a,default,S1,{KEY_1},,\na,default,S1,{KEY_1},,\na,default,S2,,,\nb,default,S1,,,\nc,default,S3,{KEY_1},,\n"
        )
        value = self.run(home, tmp_path, text, exit_code=1)
        assert self.counts(value) == (1, 1, 3)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "is empty"),
            ("id,model\ncam-1,default\n", "does not name the columns"),
            ("device_id,device_id,model\n", "does not name the columns"),
            (HEADER + 'cam-1,default,"SN1\n' + "x\n" * 5, "line 2"),
            (HEADER + "x" * 70_000, "longer than"),
            ("[{}", "missing"),
            ('[{"device_id": "a" "model"}]', "not JSON"),
            ("[] x", "after the array's end"),
            ("[,]", "not JSON"),
            ("\x00\x01", "columns"),
        ],
    )
    def test_files_that_cannot_be_read(self, home: Path, tmp_path: Path, text: str, why: str) -> None:
        file = tmp_path / "m"
        file.write_text(text)
        result = run_fleet(home, "device", "import", file)
        assert result.exit_code == 1
        assert why in result.stderr, result.stderr
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("form", ["table", "json"])
    @pytest.mark.parametrize("text", ["", "id,model\ncam-1,default\n", "\xff"])
    def test_a_file_of_which_nothing_is_read_has_no_summary(
        self, home: Path, tmp_path: Path, text: str, form: str
    ) -> None:
        file = tmp_path / "m"
        file.write_text(text, "latin-1")
        result = run_fleet(home, "device", "import", file, "-o", form)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1

    def test_not_text(self, home: Path, tmp_path: Path) -> None:
        file = tmp_path / "m"
        file.write_bytes(HEADER.encode() + b"cam-1,default,\xff\xfe,,,\n")
        result = run_fleet(home, "device", "import", file)
        assert (result.exit_code, "UTF-8" in result.stderr) == (1, True)

    def test_what_stands_before_an_unreadable_place_is_taken(self, home: Path, tmp_path: Path) -> None:
        row = {"device_id": "cam-1", "model": "default", "hardware_serial": "SN1"}
        value = self.run(home, tmp_path, f"[{json.dumps(row)}, oops]", exit_code=1)
        assert self.counts(value) == (1, 0, 0)

    def test_a_row_of_json_that_is_none(self, home: Path, tmp_path: Path) -> None:
        bad = ('{"device_id": "a", "model": "default", "color": "red"}', '{"device_id": 7, "model": "default"}', "{")
        text = '{"device_id":"ok","model":"default","hardware_serial":"1"}\n' + "\n".join(bad)
        assert self.counts(self.run(home, tmp_path, text, exit_code=1)) == (1, 0, 3)

    def test_killed_and_run_again(self, home: Path, tmp_path: Path) -> None:
        """kill -9 in the middle loses nothing that was taken, and the second run takes the rest."""
        count = 3 * ROWS_AT_ONCE
        lines = [f"cam-{n:06},default,SN{n},,,\n" for n in range(count)]
        file = tmp_path / "m.csv"
        file.write_text(HEADER + "".join(lines))
        command = [sys.executable, "-m", "fleet", "device", "import", "-", "--home", str(home)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdin is not None
            assert running.stderr is not None
            running.stdin.write(HEADER + "".join(lines[: ROWS_AT_ONCE * 5 // 2]))
            running.stdin.flush()
            assert "added" in running.stderr.readline()  # it goes on with the second thousand, and no further
            running.kill()
        taken = sum(int(row["detail"]["devices"]) for row in audit(home, "device.import"))
        assert ROWS_AT_ONCE <= taken < count
        value = done(run_fleet(home, "device", "import", file, "-o", "json"))
        assert self.counts(value) == (count - taken, taken, 0)
        rows = audit(home, "device.import")
        assert sum(int(row["detail"]["devices"]) for row in rows) == count
        assert done(run_fleet(home, "audit", "verify", "-o", "json"))["ok"] is True
