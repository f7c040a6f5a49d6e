"""Deploy hooks: how they are declared, what they copy and run, and that the agent is none the worse for them."""

import grp
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key, pkcs7, pkcs12

from device_agent.cli import cli
from device_agent.cli.deploy import deploy_unless_running
from device_agent.config.agent_config import read_config
from device_agent.config.hooks import Hook, read_hooks
from device_agent.hooks.confined import Confined, run_confined
from device_agent.hooks.deploying import deploy
from device_agent.hooks.deployment_marks import FILE_NAME, Mark, is_due, read_marks, retry_delay_seconds
from device_agent.hooks.deployments import Deployments
from device_agent.log.event_log import EventLog
from device_agent.store.atomic_files import held_lock
from device_agent.store.device_key import load_key, spki_der
from device_agent.store.identity_store import IdentityStore
from device_agent.store.locks import AGENT_LOCK
from fleet.est_client.errors import BadConfig
from fleet.wire.spki import spki_of
from tests.device_agent.fleet_parts import Authority, Device
from tests.device_agent.forking import forked
from tests.device_agent.homes import give_certificate, make_home
from tests.device_agent.other_users import let_others_run_python
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("forked_programs")

PROJECT = Path(__file__).parents[3]
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="changes owners and users: needs root")


@pytest.fixture
def home(tmp_path: Path, authority: Authority) -> Path:
    return make_home(tmp_path / "a home", authority)


def add(home: Path, text: str) -> None:
    with (home / "agent.toml").open("a") as file:
        file.write(text)


def call(home: Path, *words: str, expect: int = 0) -> str:
    done = CliRunner().invoke(cli, ["--home", str(home), *words])
    assert done.exit_code == expect, done.output
    return done.output


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ([], "tables"),
        ({"run": ["x"]}, "name"),
        ({"name": "a b", "run": ["x"]}, "name"),
        ({"name": "a"}, "neither"),
        ({"name": "a", "run": "reload nginx"}, "list"),
        ({"name": "a", "run": ["x", 1]}, "list"),
        ({"name": "a", "run": [""]}, "list"),
        ({"name": "a", "run": ["x"], "shell": True}, "'shell'"),
        ({"name": "a", "run": ["x"], "timeout_seconds": 0}, "timeout_seconds"),
        ({"name": "a", "run": ["x"], "timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"name": "a", "run": ["x"], "retry_seconds": 1e9}, "retry_seconds"),
        ({"name": "a", "copy": {"to": "/x"}}, "tables"),
        ({"name": "a", "copy": [{"content": "chain"}]}, "to is missing"),
        ({"name": "a", "copy": [{"content": "chain", "to": "x.pem"}]}, "absolute"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/a/../x.pem"}]}, "absolute"),
        ({"name": "a", "copy": [{"content": "all", "to": "/x"}]}, "content"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/x", "form": "jks"}]}, "forms"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/x.der"}]}, "pem, p7b"),
        ({"name": "a", "copy": [{"content": "pair", "to": "/x.p7b"}]}, "pem, p12"),
        ({"name": "a", "copy": [{"content": "pair", "to": "/x.p12"}]}, "password_file"),
        ({"name": "a", "copy": [{"content": "key", "to": "/x", "password_file": "/p"}]}, "password_file"),
        ({"name": "a", "copy": [{"content": "key", "to": "/x", "mode": "0644"}]}, "every user"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/x", "mode": 640}]}, "quotes"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/x", "mode": "4755"}]}, "quotes"),
        ({"name": "a", "copy": [{"content": "chain", "to": "/x"}, {"content": "key", "to": "/x"}]}, "two copies"),
    ],
)
def test_a_hook_that_cannot_be_meant_is_refused(hook: object, said: str) -> None:
    with pytest.raises(BadConfig) as error:
        read_hooks("agent.toml", [hook])
    assert said in f"{error.value.message} {error.value.advice}"


def test_names_and_numbers_of_hooks_are_bounded() -> None:
    hook = {"name": "a", "run": ["x"]}
    with pytest.raises(BadConfig, match="two hooks"):
        read_hooks("agent.toml", [hook, hook])
    with pytest.raises(BadConfig, match="at most 16"):
        read_hooks("agent.toml", [hook | {"name": f"n{number}"} for number in range(17)])
    with pytest.raises(BadConfig, match="at most 16"):
        read_hooks("agent.toml", {"name": "a"})


def test_a_bad_hook_stops_every_command(home: Path) -> None:
    add(home, '[[hook]]\nname = "x"\nrun = "reload"\n')
    assert "hook 1 (x): run must be a list" in call(home, "deploy", expect=1)


def test_copies_in_each_form(home: Path, tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "password").write_text("p4ss\n")
    (tmp_path / "password").chmod(0o600)
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    add(home, '[[hook]]\nname = "x"\n')
    forms = {
        "leaf.pem": "certificate",
        "leaf.der": "certificate",
        "chain.pem": "chain",
        "chain.p7b": "chain",
        "issuers.pem": "issuers",
        "key.pem": "key",
        "key.der": "key",
        "pair.pem": "pair",
        "pair.p12": "pair",
        "root.pem": "anchors",
    }
    for name, content in forms.items():
        more = f'password_file = "{tmp_path}/password"\n' if name == "pair.p12" else ""
        add(home, f'[[hook.copy]]\ncontent = "{content}"\nto = "{folder / name}"\n{more}')
    assert call(home, "deploy") == "Hook x: done.\n"
    identity = IdentityStore(home).current()
    assert identity is not None
    chain = x509.load_pem_x509_certificates(identity.certificate_file.read_bytes())
    spki = spki_der(load_key(identity.key_file))
    data = {name: (folder / name).read_bytes() for name in forms}
    assert x509.load_pem_x509_certificates(data["leaf.pem"]) == chain[:1]
    assert x509.load_der_x509_certificate(data["leaf.der"]) == chain[0]
    assert x509.load_pem_x509_certificates(data["chain.pem"]) == chain
    assert sorted(pkcs7.load_der_pkcs7_certificates(data["chain.p7b"]), key=chain.index) == chain
    assert x509.load_pem_x509_certificates(data["issuers.pem"]) == chain[1:] == [authority.issuing]
    assert spki_of_key(load_pem_private_key(data["key.pem"], None)) == spki
    assert spki_of_key(load_pem_private_key(data["pair.pem"], None)) == spki
    assert spki_of_key(load_der_private_key(data["key.der"], None)) == spki
    assert x509.load_pem_x509_certificates(data["pair.pem"]) == chain
    assert spki_of_key(pkcs12.load_pkcs12(data["pair.p12"], b"p4ss").key) == spki
    assert x509.load_pem_x509_certificate(data["root.pem"]) == authority.root
    for name, content in forms.items():
        assert stat.S_IMODE((folder / name).stat().st_mode) == (0o600 if content in ("key", "pair") else 0o644)
    assert {each.name for each in folder.iterdir()} == set(forms)


def spki_of_key(key: PrivateKeyTypes | None) -> bytes:
    assert key is not None
    return spki_of(key.public_key())


@ROOT_ONLY
def test_owner_and_mode_and_what_is_there_already(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "pair.pem"
    target.write_text("old")
    add(home, f'[[hook]]\nname = "x"\n[[hook.copy]]\ncontent = "pair"\nto = "{target}"\nmode = "0640"\n')
    add(home, 'owner = "nobody"\ngroup = "nogroup"\n')
    call(home, "deploy")
    found = target.stat()
    assert (pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name) == ("nobody", "nogroup")
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert re.search(r"hook x +done at \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ\n", call(home, "status"))
    call(home, "deploy", "--again")
    assert target.stat().st_ino == found.st_ino  # not written again
    target.chmod(0o644)
    call(home, "deploy", "--again")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@ROOT_ONLY
def test_what_root_writes_belongs_to_the_owner_of_the_home(open_folder: Path, authority: Authority) -> None:
    home = make_home(open_folder / "a home", authority)
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\n')
    (open_folder / "of root").write_text("x")
    for path in [home, *home.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    (home / "linked").hardlink_to(open_folder / "of root")

    def deployed(*words: str) -> tuple[int, str]:
        let_others_run_python()
        return 0, call(home, "deploy", *words)

    assert forked(deployed)[0] == 0
    os.chown(home / "ca.pem", 0, 0)
    assert forked(lambda: deployed("--again"))[0] == 0
    # Neither what was root's before, nor what may be another's by another name.
    assert {path.name for path in home.rglob("*") if path.lstat().st_uid != 65534} == {"linked", "ca.pem"}
    assert (home / "hooks.json").stat().st_gid == 65534


@pytest.mark.parametrize(
    ("copy", "said"),
    [
        ('to = "FOLDER/none/x.pem"\n', "none: No such file or directory"),
        ('to = "FOLDER/open/x.pem"\n', "written by every user"),
        ('to = "FOLDER/taken"\n', "Is a directory"),
        ('to = "FOLDER/x.pem"\nowner = "no-such-user"\n', "no user 'no-such-user'"),
        ('to = "FOLDER/x.p12"\npassword_file = "FOLDER/exposed"\n', "readable by other users"),
        ('to = "FOLDER/x.p12"\npassword_file = "FOLDER/empty"\n', "no password"),
    ],
)
def test_a_copy_that_fails_says_why_and_leaves_nothing(home: Path, tmp_path: Path, copy: str, said: str) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "taken").mkdir()
    (tmp_path / "exposed").write_text("x")
    (tmp_path / "exposed").chmod(0o644)
    (tmp_path / "empty").touch(0o600)
    before = sorted(tmp_path.rglob("*"))
    more = copy.replace("FOLDER", str(tmp_path))
    add(home, f'[[hook]]\nname = "x"\nrun = ["touch", "{tmp_path}/ran"]\n[[hook.copy]]\ncontent = "pair"\n{more}')
    assert said in call(home, "deploy", expect=1)
    state = json.loads(CliRunner().invoke(cli, ["--home", str(home), "status", "-o", "json"]).stdout)["hooks"]["x"]
    assert state.startswith("failed, 1 in a row: ")
    assert said in state
    left = set(tmp_path.rglob("*")) - set(before) - {home / FILE_NAME, home / "hooks.lock"}
    assert not left  # and the command did not run


def test_a_command_is_confined(tmp_path: Path) -> None:
    script = (
        "import os, resource, sys; print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'))[:4],"
        " sorted(os.environ), os.getcwd(), resource.getrlimit(resource.RLIMIT_CORE)[0], sys.stdin.read(),"
        f" file=open('{tmp_path}/said', 'w'))"
    )
    secret, other = os.pipe()
    os.set_inheritable(secret, True)
    try:
        assert run_confined(Confined((sys.executable, "-I", "-c", script), {"DEVICE_ID": "cam-7"})) == ""
    finally:
        os.close(secret)
        os.close(other)
    environment = ["DEVICE_ID", "HOME", "LANG", "PATH"]
    # 3 is the listing itself.
    assert (tmp_path / "said").read_text() == f"True ['0', '1', '2', '3'] {environment} / 0 \n"


@ROOT_ONLY
def test_a_command_runs_as_another_user(open_folder: Path) -> None:
    said = open_folder / "out" / "said"
    said.parent.mkdir()
    os.chown(said.parent, pwd.getpwnam("nobody").pw_uid, -1)
    problem = run_confined(Confined(("sh", "-c", f"id -un > {said}; id -Gn >> {said}"), user="nobody"))
    assert problem == ""
    assert said.read_text().split() == ["nobody", "nogroup"]
    assert run_confined(Confined(("true",), user="no-such-user")) == "there is no user 'no-such-user'"


@ROOT_ONLY
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv: not installed")
def test_a_command_has_none_of_the_agents_capabilities(open_folder: Path) -> None:
    code = (
        "import sys; from device_agent.hooks.confined import *; "
        "sys.stdout.write(open('/proc/self/status').read()); sys.stdout.flush(); "
        "print(run_confined(Confined(('sh', '-c', 'grep CapEff /proc/self/status >&2; exit 1'))))"
    )
    command = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "--inh-caps=+chown",
        "--ambient-caps=+chown",
        sys.executable,
    ]
    if subprocess.run([*command, "-c", ""], cwd="/", capture_output=True, check=False).returncode:
        pytest.skip("this Python is not every user's to run")
    shutil.copytree(PROJECT / "device_agent", open_folder / "device_agent")
    environment = os.environ | {"PYTHONPATH": str(open_folder)}
    done = subprocess.run([*command, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert "CapAmb:\t0000000000000001" in done.stdout, done.stderr
    assert done.stdout.endswith("CapEff:\t0000000000000000\n")


def test_what_a_command_says_about_its_failure() -> None:
    assert run_confined(Confined(("sh", "-c", "echo first >&2; echo 'no such unit' >&2; exit 5"))) == (
        "it exited with 5: no such unit"
    )
    assert run_confined(Confined(("sh", "-c", "echo secret; exit 1"))) == "it exited with 1"
    assert run_confined(Confined(("sh", "-c", "kill -9 $$"))) == "it was ended by signal 9"
    assert "cannot be run" in run_confined(Confined(("/no/such/program",)))
    assert "cannot be run" in run_confined(Confined(("/etc/passwd",)))
    flood = ("sh", "-c", "yes 0123456789 | head -n 90000 >&2; echo last >&2; exit 1")
    assert run_confined(Confined(flood)) == "it exited with 1: last"


def test_one_that_hangs_is_killed_with_its_group(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; (trap '' TERM; echo $$ > {tmp_path}/pid; exec sleep 1000) & while :; do sleep 1000; done"
    began = time.monotonic()
    assert run_confined(Confined(("sh", "-c", stubborn), timeout_seconds=2.0)) == "it took longer than 2 s"
    assert time.monotonic() - began < 20
    wait_until(lambda: not processes_of_group(int((tmp_path / "pid").read_text())))


def test_what_it_leaves_in_the_background_is_ended_with_it(tmp_path: Path) -> None:
    assert run_confined(Confined(("sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 1000 & exit 0"))) == ""
    wait_until(lambda: not processes_of_group(int((tmp_path / "pid").read_text())))


def processes_of_group(group: int) -> list[str]:
    """Those that still run; a killed one may not be reaped yet."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(str(entry))
    return found


def test_each_certificate_once_and_a_changed_hook_again(home: Path, tmp_path: Path, authority: Authority) -> None:
    add(home, f'[[hook]]\nname = "x"\nrun = ["sh", "-c", "echo $DEVICE_SERIAL >> {tmp_path}/said"]\n')
    config = read_config(home)
    assert deploy(config, {"x"})["x"].ok
    assert deploy(config, {"x"}) == {}
    renewed = give_certificate(home, authority)
    assert deploy(config, {"x"})["x"].fingerprint == renewed.certificate.fingerprint
    assert deploy(config, set()) == {}
    text = (home / "agent.toml").read_text()
    (home / "agent.toml").write_text(text.replace("said", "told"))
    assert deploy(read_config(home), {"x"})["x"].ok
    assert len((tmp_path / "said").read_text().split()) == 2
    assert (tmp_path / "told").read_text().split() == [renewed.certificate.serial]


def test_hooks_run_in_their_order_whatever_fails(home: Path, tmp_path: Path) -> None:
    for name, code in {"c": 0, "a": 1, "b": 0}.items():
        add(home, f'[[hook]]\nname = "{name}"\nrun = ["sh", "-c", "echo {name} >> {tmp_path}/said; exit {code}"]\n')
    ran = deploy(read_config(home), {"a", "b", "c"})
    assert (tmp_path / "said").read_text().split() == ["c", "a", "b"]
    assert {name: mark.ok for name, mark in ran.items()} == {"c": True, "a": False, "b": True}
    assert list(deploy(read_config(home), {"a", "b", "c"})) == ["a"]
    assert read_marks(home)["a"].failures == 2


def test_marks_cut_at_every_byte_run_the_hook_again(home: Path) -> None:
    hook = Hook("x", run=("true",))
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\n')
    mark = deploy(read_config(home), {"x"})["x"]
    whole = (home / FILE_NAME).read_bytes()
    assert not is_due(hook, read_marks(home), mark.fingerprint)
    for size in range(len(whole)):
        (home / FILE_NAME).write_bytes(whole[:size])
        assert is_due(hook, read_marks(home), mark.fingerprint), size
    for bad in (b"[]", b"3", b'{"x": 1}', b'{"x": {"ok": true}}', b"[" * 30000, b"\xff", b" " * 70000):
        (home / FILE_NAME).write_bytes(bad)
        assert read_marks(home) == {}
    assert deploy(read_config(home), {"x"})["x"].ok


def test_retries_wait_longer_each_time_and_an_hour_at_most() -> None:
    hook = Hook("x", run=("true",), retry_seconds=10.0)
    assert [retry_delay_seconds(hook, failures, 0.0) for failures in (0, 1, 2, 3, 50)] == [
        0.0,
        10.0,
        20.0,
        40.0,
        3600.0,
    ]
    assert retry_delay_seconds(hook, 2, 0.999) == pytest.approx(10.0, abs=0.1)


def add_hanging(home: Path, pid: Path) -> None:
    add(home, f'[[hook]]\nname = "x"\nrun = ["sh", "-c", "echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 1000"]\n')


def test_a_killed_process_counts_as_a_failure_and_the_next_waits(home: Path, tmp_path: Path) -> None:
    add_hanging(home, tmp_path / "pid")
    job = json.dumps({"home": str(home), "hooks": ["x"]}) + "\n"
    child = subprocess.Popen([sys.executable, "-m", "device_agent.hooks.deploying"], stdin=subprocess.PIPE, text=True)
    assert child.stdin
    child.stdin.write(job)
    child.stdin.flush()
    wait_until((tmp_path / "pid").exists)
    child.kill()
    child.wait(PATIENCE_SECONDS)
    child.stdin.close()
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    mark = read_marks(home)["x"]
    assert (mark.ok, mark.failures, mark.message) == (False, 1, "it was cut off")
    now = [1000.0]
    current = IdentityStore(home).current()
    deployments = Deployments(home, read_config(home).hooks, EventLog(), lambda: 0.0, lambda: now[0])
    assert deployments.poll(current) == 10.0
    assert deployments.process is None  # an agent that its own hook restarts does not spin


def test_the_agent_that_goes_takes_its_hook_with_it(home: Path, tmp_path: Path) -> None:
    add_hanging(home, tmp_path / "pid")
    deployments = Deployments(home, read_config(home).hooks, EventLog(), lambda: 0.0, time.monotonic)
    deployments.poll(IdentityStore(home).current())
    wait_until((tmp_path / "pid").exists)
    deployments.stop()
    wait_until(lambda: not processes_of_group(int((tmp_path / "pid").read_text())))
    wait_until(lambda: read_marks(home)["x"].message == "the agent stopped")


def test_a_stuck_process_is_killed_and_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\n')
    monkeypatch.setattr("device_agent.child_process.module_command", lambda _: ["sleep", "1000"])
    now = [1000.0]
    deployments = Deployments(home, read_config(home).hooks, EventLog(), lambda: 0.0, lambda: now[0])
    current = IdentityStore(home).current()
    assert deployments.poll(current) == 95.0  # what the hook, the start and the kill may take
    first = deployments.process
    assert first is not None
    now[0] += 95.0
    assert deployments.poll(current) == 10.0
    assert deployments.process is None
    now[0] += 10.0
    deployments.poll(current)
    assert deployments.process not in (None, first)
    deployments.process.kill()


def test_a_process_that_cannot_be_started_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(home, '[[hook]]\nname = "x"\nrun = ["true"]\n')
    now = [1000.0]
    deployments = Deployments(home, read_config(home).hooks, EventLog(), lambda: 0.0, lambda: now[0])
    current = IdentityStore(home).current()
    with monkeypatch.context() as context:
        context.setattr("device_agent.child_process.module_command", lambda _: ["/nowhere/python"])
        assert deployments.poll(current) == 10.0
    assert deployments.process is None
    now[0] += 10.0
    deployments.poll(current)
    assert deployments.process is not None
    deployments.process.kill()


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_hook_that_hangs_delays_neither_the_link_nor_a_rotation(device: Device, tmp_path: Path) -> None:
    pair = tmp_path / "pair.pem"
    add(device.home, f'[[hook]]\nname = "copies"\n[[hook.copy]]\ncontent = "pair"\nto = "{pair}"\n')
    add(device.home, '[[hook]]\nname = "hangs"\nrun = ["sleep", "1000"]\ntimeout_seconds = 2\nretry_seconds = 3600\n')
    agent = device.run()
    agent.wait_for("connected")
    wait_until(pair.exists)
    first = pair.read_bytes()
    device.call("renew")
    agent.wait_for("renewed")
    states = device.status()["hooks"]
    assert states["copies"] == "waiting"  # for the one that hangs
    assert device.status()["healthy"]
    seen = agent.wait_for("hook-failed hook=hangs")
    agent.wait_for("hook-done hook=copies", seen)  # and then each certificate gets its turn
    assert pair.read_bytes() != first
    assert device.status()["hooks"]["hangs"].startswith("failed, ")
    assert agent.stop() == 0


def test_without_an_agent_the_command_deploys_what_it_has_got(home: Path, tmp_path: Path) -> None:
    add(home, f'[[hook]]\nname = "copies"\n[[hook.copy]]\ncontent = "chain"\nto = "{tmp_path}/chain.pem"\n')
    with held_lock(home / AGENT_LOCK, "An agent is running."):
        deploy_unless_running(read_config(home))
    assert not (tmp_path / "chain.pem").exists()  # the agent does it
    deploy_unless_running(read_config(home))
    assert (tmp_path / "chain.pem").exists()


@pytest.mark.long
def test_a_first_certificate_and_a_renewed_one_are_deployed_by_the_commands(device: Device, tmp_path: Path) -> None:
    add(device.home, f'[[hook]]\nname = "copies"\n[[hook.copy]]\ncontent = "chain"\nto = "{tmp_path}/chain.pem"\n')
    device.call("reset", "--yes")
    assert "Hook copies: done." in device.call("enroll", give=device.est.token(device.device_id)).stdout
    first = (tmp_path / "chain.pem").read_bytes()
    assert "Hook copies: done." in device.call("renew").stdout
    assert (tmp_path / "chain.pem").read_bytes() != first


def test_a_mark_says_what_it_is_of() -> None:
    mark = Mark("f", Hook("x", run=("true",)).digest)
    assert mark.is_of(Hook("x", run=("true",), timeout_seconds=5), "f")
    assert not mark.is_of(Hook("x", run=("false",)), "f")
    assert not mark.is_of(Hook("x", run=("true",)), "g")
