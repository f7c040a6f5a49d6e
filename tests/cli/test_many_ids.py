"""Several ids where one is taken, whole lists, audit by time, tokens for thousands, options in front, completion."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fleet.cli import main, token_batch
from tests.forks import write_script
from tests.small_files import files_of_at_most

RunFleet = Callable[..., Result]


@pytest.fixture(scope="module")
def filled(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 1,200 devices, more than a page has. To be copied."""
    folder = tmp_path_factory.mktemp("filled")
    home = Path(shutil.copytree(empty_home, folder / "home"))
    manifest = folder / "m.csv"
    rows = "".join(f"cam-{n:04},default,SN{n}\n" for n in range(1200))
    manifest.write_text("device_id,model,hardware_serial\n" + rows)
    done = CliRunner().invoke(main, ["device", "import", str(manifest), "--home", str(home)])
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "home"))


@pytest.fixture
def run_fleet(home: Path) -> RunFleet:
    def run(*arguments: str | Path, expect: int = 0, give: str = "") -> Result:
        done = CliRunner().invoke(main, list(map(str, arguments)), env={"FLEET_HOME": str(home)}, input=give)
        assert done.exit_code == expect, (arguments, done.stdout, done.stderr, done.exception)
        return done

    return run


def parsed(done: Result) -> Any:
    return json.loads(done.stdout)


def test_lists_are_whole_unless_they_are_limited(run_fleet: RunFleet) -> None:
    every = parsed(run_fleet("device", "list", "-o", "json"))
    assert [each["id"] for each in every] == [f"cam-{n:04}" for n in range(1200)]
    assert len(run_fleet("device", "list").stdout.splitlines()) == 1201
    page = run_fleet("device", "list", "--limit", "1100", "-o", "json")
    assert len(parsed(page)) == 1100
    assert page.stderr == "There may be more: --after cam-1099\n"
    rest = run_fleet("device", "list", "--limit", "1100", "--after", "cam-1099", "-o", "json")
    assert (len(parsed(rest)), rest.stderr) == (100, "")


def test_several_ids(run_fleet: RunFleet) -> None:
    moved = parsed(run_fleet("device", "suspend", "cam-0001", "cam-0002", "cam-0001", "-o", "json"))
    assert [(each["id"], each["state"]) for each in moved] == [("cam-0001", "suspended"), ("cam-0002", "suspended")]
    some = run_fleet("device", "resume", "cam-0001", "nobody", "cam-0002", "-o", "json", expect=1)
    assert [each["state"] for each in parsed(some)] == ["registered", "registered"]
    told = "Error: resuming device 'nobody': there is no device 'nobody'. See: fleet device list."
    assert some.stderr.startswith(told)
    assert some.stderr.endswith(" (no-such-device)\n")
    tagged = parsed(run_fleet("device", "tag", "cam-0001", "cam-0002", "lot=L7", "--group", "pilot", "-o", "json"))
    assert [(each["tags"], each["groups"]) for each in tagged] == [({"lot": "L7"}, ["pilot"])] * 2
    shown = run_fleet("device", "show", "cam-0001", "cam-0002").stdout
    assert shown.count("id:") == 2
    assert "\n\nid:" in shown
    made = [parsed(run_fleet("token", "create", "--device", f"cam-000{n}", "-o", "json"))["id"] for n in (1, 2)]
    revoked = parsed(run_fleet("token", "revoke", *made, "-o", "json"))
    assert [(each["id"], each["state"]) for each in revoked] == [(each, "revoked") for each in made]
    run_fleet("device", "show", expect=2)


def test_the_audit_by_time(run_fleet: RunFleet) -> None:
    for n in range(3):
        run_fleet("device", "suspend", f"cam-000{n}")
    rows = parsed(run_fleet("audit", "list", "-o", "json"))
    suspended = [row for row in rows if row["action"] == "device.suspend"]
    since, until = suspended[1]["at"], suspended[2]["at"]

    def found(*options: str) -> list[int]:
        return [row["seq"] for row in parsed(run_fleet("audit", "list", *options, "-o", "json"))]

    assert found("--since", since) == [suspended[1]["seq"], suspended[2]["seq"]]
    assert found("--since", since, "--until", until) == [suspended[1]["seq"]]
    assert found("--since", since, "--limit", "1") == [suspended[2]["seq"]]
    assert found("--until", since)[-1] == suspended[0]["seq"]
    assert found("--after", "0", "--until", since) == found("--until", since)
    assert found("--since", "2020-01-01") == [row["seq"] for row in rows]
    assert found("--until", "2020-01-01") == []
    assert "is not a time" in run_fleet("audit", "list", "--since", "soon", expect=2).stderr


class TestTokensForMany:
    def ids(self, tmp_path: Path, *ids: str) -> Path:
        file = tmp_path / "ids.txt"
        file.write_text("# of lot 7\n" + "".join(f"{each}\n" for each in ids) + "\n")
        return file

    def test_one_each(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        every = [f"cam-{n:04}" for n in range(30)]
        out = tmp_path / "tokens"
        words = ("token", "create", "--devices", self.ids(tmp_path, *every), "--ttl", "7d", "--out", out, "-o", "json")
        assert parsed(run_fleet(*words)) == {"file": str(out), "made": 30, "skipped": 0, "failed": 0, "left": 0}
        assert out.stat().st_mode & 0o777 == 0o600
        made = dict(line.split(",") for line in out.read_text().splitlines())
        assert list(made) == every
        listed = {token["id"]: token for token in parsed(run_fleet("token", "list", "-o", "json"))}
        assert {listed[text.partition(".")[0]]["device"] for text in made.values()} == set(every)
        assert parsed(run_fleet(*words))["skipped"] == 30
        assert len(parsed(run_fleet("token", "list", "-o", "json"))) == 30
        assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "ids.txt", "tokens"]

    def test_to_the_terminal(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        file = self.ids(tmp_path, "cam-0001", "cam-0002")
        lines = run_fleet("token", "create", "--devices", file).stdout.splitlines()
        assert [line.split(",")[0] for line in lines] == ["cam-0001", "cam-0002"]
        found = parsed(run_fleet("token", "create", "--devices", "-", "-o", "json", give="cam-0003\ncam-0004\n"))
        assert [each["device"] for each in found] == ["cam-0003", "cam-0004"]
        assert all(each["token"].startswith(each["id"] + ".") for each in found)

    def test_one_that_is_refused_stops_no_other(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "tokens"
        words = ("token", "create", "--devices", self.ids(tmp_path, "cam-0001", "nobody", "cam-0002"), "--out", out)
        done = run_fleet(*words, "-o", "json", expect=1)
        assert (parsed(done)["made"], parsed(done)["failed"]) == (2, 1)
        assert "making a token for device 'nobody'" in done.stderr
        bad = self.ids(tmp_path, "cam-0001", "a/b")
        assert "line 3" in run_fleet("token", "create", "--devices", bad, expect=1).stderr

    def test_a_run_that_was_cut_off_goes_on(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        """The last line is half written, and the answer before was lost: neither token stays valid."""
        out = tmp_path / "tokens"
        run_fleet(
            "token", "create", "--devices", self.ids(tmp_path, "cam-0001", "cam-0002", "nobody"), "--out", out, expect=1
        )
        whole = out.read_text()
        out.write_text(whole[:-20])  # of cam-0002's secret
        words = ("token", "create", "--devices", self.ids(tmp_path, "cam-0001", "cam-0002", "cam-0003"), "--out", out)
        assert parsed(run_fleet(*words, "-o", "json"))["made"] == 2
        made = dict(line.split(",") for line in out.read_text().splitlines())
        assert list(made) == ["cam-0001", "cam-0002", "cam-0003"]
        states = {token["id"]: token["state"] for token in parsed(run_fleet("token", "list", "-o", "json"))}
        assert {states[text.partition(".")[0]] for text in made.values()} == {"open"}
        assert sorted(states.values()) == ["open", "open", "open", "revoked"]

    def test_another_file_is_left_alone(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        other = tmp_path / "notes"
        other.write_text("dear diary\n")
        other.chmod(0o600)
        ids = self.ids(tmp_path, "cam-0001")
        assert "something else" in run_fleet("token", "create", "--devices", ids, "--out", other, expect=1).stderr
        assert other.read_text() == "dear diary\n"
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        assert (
            "symbolic link"
            in run_fleet("token", "create", "--devices", ids, "--out", tmp_path / "link", expect=1).stderr
        )
        assert parsed(run_fleet("token", "list", "-o", "json")) == []

    @pytest.mark.parametrize("kind", ["notes", "fifo", "link"])
    def test_another_file_in_place_of_its_state_is_left_alone(
        self, run_fleet: RunFleet, tmp_path: Path, kind: str
    ) -> None:
        out, state, target = tmp_path / "tokens", tmp_path / ".tokens.batch", tmp_path / "target"
        target.write_text("0" * 32)
        match kind:
            case "notes":
                state.write_text("mine")
            case "fifo":
                os.mkfifo(state)
            case _:
                state.symlink_to(target)
        before = state.lstat()
        words = ("token", "create", "--devices", self.ids(tmp_path, "cam-0001"), "--out", out)
        assert "(bad-output)" in run_fleet(*words, expect=1).stderr
        assert os.path.samestat(state.lstat(), before)
        assert target.read_text() == "0" * 32

    def test_a_file_that_others_can_read_gets_no_token(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "tokens"
        out.touch(mode=0o644)
        out.chmod(0o644)
        ids = self.ids(tmp_path, "cam-0001")
        assert "others can read" in run_fleet("token", "create", "--devices", ids, "--out", out, expect=1).stderr
        os.mkfifo(tmp_path / "pipe")
        refused = run_fleet("token", "create", "--devices", ids, "--out", tmp_path / "pipe", expect=1)
        assert "not a regular file" in refused.stderr
        assert parsed(run_fleet("token", "list", "-o", "json")) == []

    def test_tokens_that_were_moved_away_stay_valid(self, run_fleet: RunFleet, tmp_path: Path) -> None:
        out = tmp_path / "tokens"
        words = ("token", "create", "--devices", self.ids(tmp_path, "cam-0001", "later-1"), "--out", out)
        run_fleet(*words, expect=1)
        out.rename(tmp_path / "delivered")
        run_fleet("device", "add", "later-1", "--model", "default")
        assert parsed(run_fleet(*words, "--ttl", "2h", "-o", "json"))["made"] == 2
        assert {token["state"] for token in parsed(run_fleet("token", "list", "-o", "json"))} == {"open"}

    def test_a_disk_that_takes_half_a_line(self, tmp_path: Path) -> None:
        """A limit on the file's size stands for a disk that is nearly full: write takes a part and reports no error."""
        out = tmp_path / "tokens"
        written = token_batch._open(out)[0]
        token_batch._append(written, b"x" * 60)
        with files_of_at_most(150), pytest.raises(OSError, match="File too large"):
            token_batch._append(written, b"y" * 100)
        os.close(written)
        assert out.read_bytes() == b"x" * 60

    def test_a_full_disk_leaves_no_token_unseen(self, home: Path, tmp_path: Path) -> None:
        file = self.ids(tmp_path, "cam-0001", "cam-0002")
        command = f"{shlex.quote(sys.executable)} -m fleet token create --devices {file} >/dev/full"
        environment = {**os.environ, "FLEET_HOME": str(home)}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, "no space left" in done.stderr) == (1, True)
        listed = CliRunner().invoke(main, ["token", "list", "-o", "json", "--home", str(home)])
        assert [token["state"] for token in json.loads(listed.stdout)] == ["revoked"]


def test_the_home_may_be_named_in_front(home: Path) -> None:
    for words in (["--home", str(home), "model", "list"], ["model", "list", "--home", str(home)]):
        assert CliRunner().invoke(main, words, env={"FLEET_HOME": "nowhere"}).exit_code == 0
    near = CliRunner().invoke(main, ["--home", "nowhere", "model", "list", "--home", str(home)])
    assert near.exit_code == 0
    both = CliRunner().invoke(main, ["--home", str(home), "model", "list", "--url", "https://localhost:1"])
    assert (both.exit_code, "and not both" in both.stderr) == (2, True)
    refused = CliRunner().invoke(main, ["--url", "https://localhost:1", "init", "x"])
    assert (refused.exit_code, "works at the home itself" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("device show", "cam-00", [f"cam-00{n:02}" for n in range(100)]),
        ("device suspend", "cam-1199", []),
        ("device suspend", "cam-119", [f"cam-119{n}" for n in range(10)]),
        ("device list --model", "", ["default"]),
        ("model show", "de", ["default"]),
        ("station revoke", "", []),
        ("tenant show", "", []),
        ("ca export --tenant", "", []),
    ],
)
def test_ids_complete_in_the_shell(
    home: Path, tmp_path: Path, words: str, incomplete: str, expected: list[str]
) -> None:
    environment = {
        **os.environ,
        "FLEET_HOME": str(home),
        "_FLEET_COMPLETE": "bash_complete",
        "COMP_WORDS": f"fleet {words} {incomplete}",
        "COMP_CWORD": str(len(words.split()) + 1),
    }
    program = tmp_path / "fleet"
    write_script(program, "fleet.cli:main")
    for where, wanted in ((str(home), expected), ("/nowhere", [])):
        done = subprocess.run(
            [program], env={**environment, "FLEET_HOME": where}, capture_output=True, text=True, check=False
        )
        found = [line.partition(",")[2] for line in done.stdout.splitlines() if line.startswith("plain,")]
        assert (found, done.stderr) == (wanted, "")
