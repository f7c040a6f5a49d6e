"""The commands that a person or a script calls: what they accept, what they refuse, and how they exit."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_agent.cli import cli, missing_module
from device_agent.store.atomic_files import held_lock
from device_agent.store.device_key import certificate_info
from device_agent.store.identity_store import IdentityStore
from device_agent.store.locks import ENROLL_LOCK
from tests.device_agent.fleet_parts import Authority, Device, EstServer, device_id_for, key_pem, pem
from tests.free_ports import free_port

pytestmark = pytest.mark.usefixtures("forked_programs")


@pytest.fixture
def lone(est: EstServer, tmp_path: Path, request: pytest.FixtureRequest) -> Device:
    """A device with a real EST server, and no broker."""
    return Device(tmp_path / "a home", est, free_port(), device_id_for(request.node.name))


def test_the_walk_of_one_device(lone: Device, tmp_path: Path) -> None:
    assert "not a device's home" in lone.call("status", expect=1).stderr
    lone.init()
    blank = lone.call("status", expect=1)
    assert "not enrolled" in blank.stdout
    token = tmp_path / "a token"
    text = lone.est.token(lone.device_id)
    token.write_text(text + "\n", "utf-16")
    assert "UTF-16" in lone.call("enroll", "--token-file", str(token), expect=2).stderr
    token.write_text(text + "\n", "utf-8-sig")  # an editor's byte order mark
    token.chmod(0o644)
    told = lone.call("enroll", "--token-file", str(token))
    assert lone.device_id in told.stdout
    assert "is readable by other users" in told.stderr
    found = lone.status()
    assert found["state"] == "enrolled"
    assert found["healthy"]
    assert 89 < found["days_left"] <= 90
    assert found["slots"] == {"slot-a": "current", "slot-b": "empty"}
    assert not found["running"]


def test_init_refuses_twice_and_harms_nothing(lone: Device, tmp_path: Path) -> None:
    lone.init()
    before = {path: path.read_bytes() for path in lone.home.iterdir()}
    again = ["init", "--device-id", "other", "--est", "https://h", "--mqtt", "h:1"]
    refused = lone.call(*again, "--ca", str(lone.est.authority.ca_file), expect=1)
    assert "already" in refused.stderr
    assert before == {path: path.read_bytes() for path in lone.home.iterdir()}


def test_init_takes_no_folder_with_files_of_others(lone: Device) -> None:
    """`reset` would erase them."""
    lone.home.mkdir(mode=0o700)
    (lone.home / "thesis.txt").write_text("years of work")
    words = ["init", "--device-id", "x", "--est", "https://h", "--mqtt", "h:1"]
    refused = lone.call(*words, "--ca", str(lone.est.authority.ca_file), expect=1)
    assert "is not empty: it has 'thesis.txt'" in refused.stderr
    (lone.home / "thesis.txt").rename(lone.home / ".agent.toml.new")  # an init that was cut off leaves it
    lone.init()


def test_one_enrollment_at_a_time(lone: Device) -> None:
    lone.init()
    token = lone.est.token(lone.device_id)
    with held_lock(lone.home / ENROLL_LOCK, "busy"):
        assert "Another enrollment works in this home" in lone.call("enroll", give=token, expect=1).stderr
    lone.call("enroll", give=token)  # it is not spent


def test_an_empty_variable_is_named(lone: Device) -> None:
    lone.init()
    said = lone.call("enroll", "--token-env", "NO_SUCH_VARIABLE", expect=2).stderr
    assert "The environment variable NO_SUCH_VARIABLE is not set, or empty" in said


@pytest.mark.parametrize(("word", "taken"), [("-5.2", True), ("-.5", True), ("--wiat", False), ("-x", False)])
def test_a_negative_reading_is_no_option(lone: Device, word: str, taken: bool) -> None:
    lone.init()
    for words in (["send", "--ttl", "5", "t", word, "--wait"], ["request", "t", word, "--timeout", "1"]):
        said = lone.call(*words, expect=1 if taken else 2).stderr
        assert ("No agent answers" in said) == taken


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--device-id", "a/b", "not a device id"),
        ("--est", "http://h", "https://HOST:PORT"),
        ("--mqtt", "h:x", "HOST:PORT"),
        ("--ca", "not a ca", "cannot be used"),
        ("--tcti", "device:/dev/tpm0", "--tcti is for --key-store tpm2"),
        ("--key-uri", "pkcs11:token=x", "--key-uri for --key-store pkcs11"),
    ],
)
def test_init_says_what_is_wrong(tmp_path: Path, authority: Authority, option: str, value: str, said: str) -> None:
    (tmp_path / "not a ca").write_text("hello")
    words = {"--device-id": "cam-7", "--est": "https://h", "--mqtt": "h:1", "--ca": str(authority.ca_file)}
    words[option] = str(tmp_path / value) if option == "--ca" else value
    arguments = ["--home", str(tmp_path / "home"), "init", *(word for pair in words.items() for word in pair)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_token_from_the_environment_or_a_pipe(lone: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    lone.init()
    monkeypatch.setenv("MY_TOKEN", lone.est.token(lone.device_id))
    lone.call("enroll", "--token-env", "MY_TOKEN")
    lone.call("enroll", "--again", give=lone.est.token(lone.device_id) + "\n")
    assert sorted(lone.status()["slots"].values()) == ["candidate", "current"]


def test_what_is_printed_is_the_new_certificates_expiry(lone: Device) -> None:
    lone.init()
    lone.est.shift = timedelta(minutes=-90)
    first = _printed_expiry(lone.call("enroll", give=lone.est.token(lone.device_id)).stdout)
    lone.est.shift = timedelta(0)
    second = _printed_expiry(lone.call("enroll", "--again", give=lone.est.token(lone.device_id)).stdout)
    assert second - first > timedelta(hours=1)


def _printed_expiry(text: str) -> datetime:
    return datetime.strptime(text.strip()[-21:], "%Y-%m-%d %H:%M:%SZ.").replace(tzinfo=UTC)


@pytest.mark.parametrize("give", ["", "\n", "two words\x01", "ключ"])
def test_no_token_is_said_before_anything_is_done(lone: Device, give: str) -> None:
    lone.init()
    assert "no token" in lone.call("enroll", give=give, expect=2).stderr
    assert lone.status()["slots"] == {"slot-a": "empty", "slot-b": "empty"}


def test_a_wrong_token_leaves_a_key_to_try_again_with(lone: Device) -> None:
    lone.init()
    failed = lone.call("enroll", give="abcdefabcdef.wrong", expect=1)
    assert "refused" in failed.stderr
    assert "wrong" not in failed.stderr
    key = (lone.home / "slot-a" / "key.pem").read_bytes()
    lone.call("enroll", give=lone.est.token(lone.device_id))
    assert (lone.home / "slot-a" / "key.pem").read_bytes() == key


def test_enrolling_twice_needs_to_be_meant(lone: Device) -> None:
    lone.enrolled()
    before = lone.status()["serial"]
    assert "already" in lone.call("enroll", give=lone.est.token(lone.device_id), expect=1).stderr
    assert lone.status()["serial"] == before


@pytest.mark.parametrize("key_type", ["EC-P384", "RSA-2048+", "Ed25519"])
def test_other_keys(lone: Device, key_type: str) -> None:
    lone.init()
    lone.call("enroll", "--key-type", key_type, give=lone.est.token(lone.device_id, key_types=(key_type,)))
    assert lone.status()["state"] == "enrolled"


def test_a_key_that_the_model_forbids(lone: Device) -> None:
    lone.init()
    token = lone.est.token(lone.device_id, key_types=("EC-P384",))
    assert "not allowed" in lone.call("enroll", give=token, expect=1).stderr
    lone.call("enroll", "--key-type", "EC-P384", give=token)


def test_an_expired_certificate_is_not_enrolled_and_a_token_recovers_it(lone: Device) -> None:
    lone.est.shift = timedelta(minutes=-90)
    lone.init()
    token = lone.est.token(lone.device_id, certificate_lifetime=timedelta(hours=1))
    assert "expired" in lone.call("enroll", give=token, expect=1).stderr  # issued an hour and a half ago
    lone.est.shift = timedelta(0)
    lone.call("enroll", give=lone.est.token(lone.device_id))
    assert lone.status()["state"] == "enrolled"


def test_a_running_agent_takes_a_new_enrollment_up(device: Device) -> None:
    agent = device.run()
    seen = agent.wait_for("connected")
    before = device.status()["serial"]
    device.call("enroll", "--again", give=device.est.token(device.device_id))
    agent.wait_for("renewed", seen)
    assert device.status()["serial"] != before


def test_a_running_agent_recovers_when_an_expired_certificate_is_replaced(new_device: Callable[[], Device]) -> None:
    device = new_device().init()
    device.set("refused_seconds", "3600")
    token = device.est.token(device.device_id)
    certificate, key = device.est.authority.issue(
        device.device_id, begin=datetime.now(UTC) - timedelta(days=2), end=datetime.now(UTC) - timedelta(days=1)
    )
    store = IdentityStore(device.home)
    store.write_key("slot-a", key_pem(key))
    chain = pem(certificate, device.est.authority.issuing)
    info = certificate_info(certificate, device.device_id, certificate.not_valid_before_utc)
    store.promote(store.complete("slot-a", chain, info))
    assert device.status()["state"] == "expired"
    agent = device.run()
    seen = agent.wait_for("connect-failed")
    device.call("enroll", give=token)
    agent.wait_for("connected", seen)  # without waiting for an hour
    assert device.status()["healthy"]


def test_a_device_id_may_hold_colons(est: EstServer, tmp_path: Path) -> None:
    device = Device(tmp_path / "a home", est, free_port(), "02:00:5e:10:00:01").enrolled()
    assert device.status()["healthy"]


def test_status_checks_the_files_themselves(lone: Device, tmp_path: Path) -> None:
    lone.enrolled()
    key, meta = lone.home / "slot-a" / "key.pem", lone.home / "slot-a" / "meta.json"
    whole = key.read_bytes()
    key.write_bytes(b"")
    assert lone.status()["state"] == "not enrolled"
    key.write_bytes(whole)
    notes = json.loads(meta.read_text())
    meta.write_text(json.dumps(notes | {"not_after": "1999-01-01T00:00:00+00:00"}))
    assert lone.status()["state"] == "expired"
    meta.write_text(json.dumps(notes))
    (lone.home / "ca.pem").write_bytes(Authority(tmp_path / "other").ca_file.read_bytes())
    found = lone.status()
    assert found["state"] == "invalid"
    assert "chain" in found["problem"]


def test_without_an_agent(lone: Device) -> None:
    lone.enrolled()
    assert "No agent" in lone.call("send", "t", "x", expect=1).stderr
    assert "Not connected" in lone.call("status", "--wait-connected", "0.2", expect=1).stderr


def test_run_without_an_identity_says_what_to_do(new_device: Callable[[], Device]) -> None:
    device = new_device()
    agent = device.run()
    assert agent.wait() == 1
    assert "init" in agent.lines[-1]
    device.init()
    agent = device.run()
    assert agent.wait() == 1
    assert agent.lines[-1].endswith(f"device-agent --home '{device.home}' enroll.")


@pytest.mark.parametrize(
    "words",
    [["run", "--publish", "t", "--stdin"], ["run", "--exit-at-eof"], ["frobnicate"], ["send"], ["status", "-o", "xml"]],
)
def test_used_wrongly(lone: Device, words: list[str]) -> None:
    assert lone.call(*words, expect=2).output


def test_help_names_every_command_and_loads_none() -> None:
    code = (
        "import sys\nfrom device_agent.cli import main\nsys.argv[1:] = ['--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('cbor2', 'serial', 'cryptography', 'paho') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("init", "enroll", "run", "status", "renew", "send", "emulate"):
        assert f"\n  {name} " in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("cbor2", "agent,board"), ("cobs", "agent,board"), ("serial.tools", "agent,board"), ("paho", "agent")],
)
def test_the_extra_that_a_missing_module_is_of(name: str, extra: str) -> None:
    assert missing_module(name).endswith(f"pip install '.[{extra}]'.")


def test_emulate_without_its_extra_names_it(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['cbor2'] = None\nfrom device_agent.cli import main\nmain()"
    words = [sys.executable, "-c", code, "--home", str(tmp_path / "board"), "emulate", "--pty", str(tmp_path / "port")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    expected = "Error: The Python module cbor2 is missing. Install the board's part: pip install '.[agent,board]'.\n"
    assert done.stderr == expected
