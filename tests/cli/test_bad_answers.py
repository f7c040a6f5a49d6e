"""Commands over --url whose server answers something else than the API does: one line and exit 1, never a traceback."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli import main, output
from fleet.client.client import Answer, Transport
from fleet.client.home import HomeTransport
from tests.servers.makers import new_maker

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("operator", "list"),
    ("operator", "show", "bob"),
    ("device", "list"),
    ("device", "show", "cam-1"),
    ("device", "tag", "cam-1", "lot=L1", "--group", "pilot"),
    ("device", "tag", "--filter", "model=cam", "lot=L1", "--yes"),
    ("device", "suspend", "--filter", "model=cam", "--dry-run"),
    ("model", "list"),
    ("model", "show", "cam"),
    ("model", "set", "cam", "--lifetime", "30d"),
    ("renewal", "progress", "--model", "cam"),
    ("renewal", "list"),
    ("station", "list"),
    ("claim", "list"),
    ("claim", "show", "lot"),
    ("anchor", "list"),
    ("request", "list"),
    ("token", "list"),
    ("status",),
    ("forecast",),
    ("audit", "export"),
    ("audit", "list"),
    ("audit", "verify"),
    ("ca", "show"),
    ("ca", "export"),
)
DEEP = "DEEP"
MUTANTS: tuple[object, ...] = (None, True, 7, "x", [], {}, [{}], ["x"], DEEP)


class Scripted:
    """Gives what `answer` makes of the request and the true answer."""

    def __init__(self, true: Transport, answer: Callable[[str, str, Answer], bytes]) -> None:
        self._true = true
        self._answer = answer

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        answer = self._true.send(method, target, headers, body)
        return Answer(answer.status, answer.headers, self._answer(method, target, answer))

    def close(self) -> None:
        self._true.close()


class Recorded:
    """Asks each request of the home once: its answer is given again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._answers: dict[tuple[str, str, bytes | None], Answer] = {}

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        key = (method, target, body)
        if key not in self._answers:
            transport = HomeTransport(self._home)
            try:
                self._answers[key] = transport.send(method, target, headers, body)
            finally:
                transport.close()
        return self._answers[key]

    def close(self) -> None:
        pass


def invoke(monkeypatch: pytest.MonkeyPatch, transport: Transport, *words: str) -> Result:
    """The command over what it takes for HTTPS.

    The transport is replaced where it is looked up at each call: a module of commands that is loaded by this command
    would keep any other replaced name for the tests after this one.
    """
    monkeypatch.setattr("fleet.client.https.HttpsTransport", lambda *_: transport)
    env = {"P12_PASSWORD": "pass", "FLEET_URL": "https://fleet.example:8444", "FLEET_CERT": __file__}
    return CliRunner().invoke(main, list(words), env=env)


@pytest.fixture(scope="module")
def filled(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has one of each."""
    folder = tmp_path_factory.mktemp("filled")
    home = Path(shutil.copytree(empty_home, folder / "home"))
    for words in (
        ("model", "add", "cam", "--admit", "claim", "--admit", "token"),
        ("operator", "add", "bob", "--role", "admin", "--out", str(folder / "o"), "--password-env", "P12_PASSWORD"),
        ("station", "add", "line", "--model", "cam", "--out", str(folder / "s")),
        ("claim", "create", "lot", "--model", "cam", "--quota", "9", "--expires", "30d", "--out", str(folder / "c")),
        ("device", "add", "cam-1", "--model", "cam"),
        ("token", "create", "--device", "cam-1"),
        ("renewal", "campaign", "--model", "cam", "--before", "now"),
    ):
        done = CliRunner().invoke(main, list(words), env={"FLEET_HOME": str(home), "P12_PASSWORD": "pass"})
        assert done.exit_code == 0, (words, done.output, done.exception)
    return home


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in entries:
        yield from places(item, (*path, key))


def changed(text: bytes, path: tuple[Any, ...], mutant: object) -> bytes:
    """The JSON in `text` with another value at `path`; without it when there is no such place."""
    root = [json.loads(text)]
    inner: Any = root
    *before, last = (0, *path)
    try:
        for key in before:
            inner = inner[key]
        inner[last]
        if mutant is KeyError:
            del inner[last]
        else:
            inner[last] = mutant
    except (LookupError, TypeError):
        return text
    if not root:
        return b""
    return json.dumps(root[0]).replace('"DEEP"', "[" * 600 + "]" * 600).encode()


def no_constant(name: str) -> None:
    raise ValueError(name)


def assert_ends_well(done: Result, told: object) -> None:
    assert done.exception is None or isinstance(done.exception, SystemExit), (told, done.exc_info)
    assert done.exit_code in (0, 1), (told, done.stderr)
    if done.exit_code == 1 and not done.stdout:
        last = done.stderr.splitlines()[-1]  # after the progress
        assert last.startswith("Error: "), told
        assert last.endswith(")"), (told, last)  # the stable code


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_wrong_value_anywhere_is_one_line(
    filled: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    seen: dict[str, bytes] = {}
    recorded = Recorded(filled)
    done = invoke(monkeypatch, Scripted(recorded, lambda m, t, a: seen.setdefault(t, a.body)), *words)
    assert done.exit_code in (0, 1), (done.output, done.exception)
    assert seen
    monkeypatch.setattr("fleet.client.client.PAGES_MAX", 3)
    for target, body in seen.items():
        for path in places(json.loads(body)):
            for mutant in (*MUTANTS, KeyError):

                def answer(method: str, asked: str, true: Answer, /) -> bytes:
                    return changed(true.body, path, mutant) if asked == target else true.body  # noqa: B023

                told = (target, path, mutant)
                assert_ends_well(invoke(monkeypatch, Scripted(recorded, answer), *words), told)


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": Infinity}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a": "\\ud800"}'],
)
def test_what_is_not_json_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    lying = Scripted(Recorded(filled), lambda *_: text.encode())
    done = invoke(monkeypatch, lying, "device", "show", "cam-1", "-o", "json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "(bad-answer)" in done.stderr


def test_a_mistake_of_ours_at_a_home_is_not_hidden(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = Scripted(HomeTransport(filled), lambda *_: b"{}")
    monkeypatch.setattr("fleet.client.home.HomeTransport", lambda *_: lying)
    done = CliRunner().invoke(main, ["operator", "show", "bob"], env={"FLEET_HOME": str(filled)})
    assert isinstance(done.exception, KeyError)


@pytest.mark.parametrize(
    "words",
    [
        ("operator", "add", "NAME", "--role", "viewer", "--password-env", "P12_PASSWORD"),
        ("station", "add", "NAME", "--model", "cam"),
        ("claim", "create", "NAME", "--model", "cam", "--quota", "1", "--expires", "1d"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("chain", ["text", "none", "empty", "missing", "another's"])
def test_no_certificate_for_our_key(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], chain: str
) -> None:
    """The key is removed, nothing is written for it, and the error says that the name is taken."""
    another = new_maker().certificate.public_bytes(Encoding.PEM).decode()
    value = {"text": "x", "none": None, "empty": "", "missing": KeyError, "another's": another}[chain]
    name = f"{words[0]}-{chain.strip(chr(39)).replace(chr(39), '-')}"

    def answer(method: str, target: str, true: Answer) -> bytes:
        return changed(true.body, ("chain",), value) if method == "POST" else true.body

    lying = Scripted(HomeTransport(filled), answer)
    out = tmp_path / "out"
    given = [name if word == "NAME" else word for word in words]
    done = invoke(monkeypatch, lying, *given, "--out", str(out))
    lying.close()
    assert done.exit_code == 1, done.exception
    assert "is registered" in done.stderr
    assert f"fleet {words[0]} revoke {name}" in done.stderr
    assert "(bad-answer)" in done.stderr
    assert [each for each in out.iterdir() if each.name != "ca.pem"] == []


class Endless:
    """A list whose pages are always different."""

    def __init__(self) -> None:
        self.pages = 0

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        self.pages += 1
        rows = [{"name": f"{self.pages}-{n}", "role": "viewer", "models": []} for n in range(10)]
        return Answer(200, {}, json.dumps({"items": rows, "next": f"/v1/operators?{self.pages}"}).encode())

    def close(self) -> None:
        pass


def test_a_table_holds_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is before them is printed by then."""
    monkeypatch.setattr(output, "CHUNK_ROWS_MAX", 30)
    monkeypatch.setattr("fleet.client.client.PAGES_MAX", 10)
    done = invoke(monkeypatch, Endless(), "operator", "list")
    assert done.exit_code == 1
    assert "does not end after 10 pages. Check the address. (bad-answer)" in done.stderr
    assert len(done.stdout.splitlines()) == 1 + 90


def test_a_record_with_an_endless_list_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.client.client.ITEMS_MAX", 25)
    endless = Endless()
    monkeypatch.setattr("fleet.client.client.Client.get", lambda *_: {"sessions": []})
    done = invoke(monkeypatch, endless, "device", "show", "cam-1")
    assert done.exit_code == 1
    assert "(bad-answer)" in done.stderr
    assert endless.pages == 3
