"""Keys in a TPM: a real device agent with swtpm, at a served fleet."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256

from device_agent.config.agent_config import read_config
from device_agent.enrollment.enrollment import EnrollmentJob
from device_agent.errors import KeyStoreFailed
from device_agent.store import hardware_key
from device_agent.store.device_key import candidate_key, generate_key, key_pem, load_key, parse_key
from device_agent.store.hardware_key import HardwareKey, KeyOfAnother
from device_agent.store.identity_store import IdentityStore
from device_agent.store.key_store import (
    PKCS11,
    TPM2,
    KeyStore,
    kind_of,
    use_in_children,
    with_provider,
    without_provider,
)
from fleet.demo.harness import Running
from fleet.est_client.errors import BadConfig
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from tests.device_agent.tpm import CREATE, SIGN, TCTI, Tpm, need_tpm
from tests.serving import Patient, Served, run_fleet
from tests.waiting import PATIENCE_SECONDS, wait_until

NAMES = (f"tpm-{number}" for number in count(1))
SLOW_SECONDS = 2.0


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    need_tpm()
    made = Tpm(tmp_path_factory.mktemp("tpm") / "a")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path_factory.mktemp("served")
    run_fleet(folder / "home", "init", str(folder / "home"), "--name", "acme")
    serving = Served(folder / "home", folder / "ready.json").start()
    yield serving
    serving.stop()


@pytest.fixture
def store(tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyStore]:
    """The key store of a home, for functions that are called here."""
    for name, value in tpm.environment.items():
        monkeypatch.setenv(name, value)
    yield KeyStore(tmp_path, TPM2, TCTI)
    tpm.held.clear()


class Device:
    """The agent's programs, as processes: OpenSSL loads a provider when a process starts."""

    def __init__(self, served: Served, tpm: Tpm, folder: Path) -> None:
        self.served, self.tpm, self.name, self.home = served, tpm, next(NAMES), folder / "home"
        run_fleet(served.home, "device", "add", self.name, "--model", "default")
        est, mqtt = (served.address(each)[1] for each in ("est", "mqtt"))
        self.agent(
            *("init", "--device-id", self.name, "--est", f"https://localhost:{est}", "--mqtt", f"localhost:{mqtt}"),
            *("--ca", str(served.ca_file), "--key-store", "tpm2", "--tcti", TCTI),
        )

    def popen(self, *words: str, stdout: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "device_agent", "--home", str(self.home), *words],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | self.tpm.environment,
            stdout=stdout,
        )

    def agent(self, *words: str, give: str = "", expect: int = 0) -> str:
        """What a command prints, errors included."""
        with self.popen(*words, stdout=subprocess.PIPE) as process:
            out, errors = process.communicate(give, PATIENCE_SECONDS)
        assert process.returncode == expect, out + errors
        return out + errors

    def enroll(self, *words: str) -> None:
        self.agent("enroll", *words, give=self.token)

    @property
    def token(self) -> str:
        return run_fleet(self.served.home, "token", "create", "--device", self.name)

    def run(self) -> Running:
        return Patient("device-agent run", self.popen("run", stdout=subprocess.DEVNULL))

    def status(self) -> dict[str, object]:
        with self.popen("status", "-o", "json", stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        found: dict[str, object] = json.loads(out)
        return found

    @property
    def key(self) -> bytes:
        return (self.home / "current" / "key.pem").read_bytes()

    def certificates(self) -> int:
        shown = json.loads(run_fleet(self.served.home, "device", "show", self.name, "-o", "json"))
        return len(shown["certificates"])


@pytest.fixture
def device(served: Served, tpm: Tpm, tmp_path: Path) -> Iterator[Device]:
    yield Device(served, tpm, tmp_path)
    tpm.held.clear()


def connected(line: str) -> bool:
    return " connected slot=" in line


def test_a_device_with_its_key_in_a_tpm_enrolls_connects_and_renews(device: Device) -> None:
    device.enroll()
    keys = [device.key]
    running = device.run()
    try:
        running.wait_for(connected, "connected")
        for _ in range(2):
            device.agent("renew")
            keys.append(device.key)
        status = device.status()
    finally:
        running.process.terminate()
    assert running.process.wait(PATIENCE_SECONDS) == 0
    assert [kind_of(key) for key in keys] == [TPM2] * 3
    assert len(set(keys)) == 3
    assert (status["state"], status["key_store"], status["connected"]) == ("enrolled", "tpm2", True)
    device.agent("renew")  # without an agent
    assert device.key not in keys
    assert "Keys are kept in tpm2" in device.agent("doctor")
    assert device.certificates() == 4
    assert "does not give it away" in device.agent("bridge", "mosquitto", expect=1)
    for file in device.home.rglob("*.pem"):
        assert b"BEGIN PRIVATE KEY" not in file.read_bytes()


@pytest.mark.long
def test_a_slow_tpm_breaks_no_time_limit(device: Device) -> None:
    device.tpm.held |= {SIGN: SLOW_SECONDS, CREATE: SLOW_SECONDS}
    device.enroll()
    running = device.run()
    try:
        running.wait_for(connected, "connected")
    finally:
        running.process.terminate()
        running.process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "code", [pytest.param(CREATE, id="create", marks=pytest.mark.long), pytest.param(SIGN, id="sign")]
)
def test_a_renewal_that_is_killed_in_the_tpm_costs_no_key(device: Device, code: int) -> None:
    device.enroll()
    before = device.key
    release = threading.Event()
    device.tpm.held[code] = release
    seen = len(device.tpm.seen)
    process = device.popen("renew", stdout=subprocess.DEVNULL)
    wait_until(lambda: code in device.tpm.seen[seen:], "the command has not reached the TPM")
    os.killpg(process.pid, 9)
    process.communicate(timeout=PATIENCE_SECONDS)
    device.tpm.held.clear()
    release.set()
    assert device.key == before
    device.agent("renew")
    assert device.key != before
    assert device.certificates() <= 3


def test_while_the_tpm_is_away_the_agent_says_so_and_nothing_is_lost(device: Device) -> None:
    device.enroll()
    before = device.key
    device.tpm.stop_manager()
    try:
        found = device.agent("doctor", expect=1)
        assert "The TPM cannot be used" in found
        command = re.search(r"What OpenSSL says: (.*)", found)
        assert command is not None
        tried = subprocess.run(
            ["sh", "-c", command[1]],
            env=os.environ | device.tpm.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "tcti" in tried.stderr  # why
        said = device.agent("renew", expect=1)
        assert "The key store tpm2 cannot be used" in said
        assert "Traceback" not in said
        assert "The TPM cannot be used" in str(device.status()["problem"])
    finally:
        device.tpm.start_manager()
    assert device.key == before
    device.agent("renew")
    assert device.key != before


def test_an_agent_that_has_lost_the_tpm_says_so_and_ends_for_its_service_manager(device: Device) -> None:
    device.enroll()
    running = device.run()
    try:
        running.wait_for(connected, "connected")
        device.tpm.stop_manager()
        seen = len(running.lines)
        run_fleet(device.served.home, "session", "kick", device.name)
        running.wait_for(lambda line: "The key store tpm2 cannot be used" in line, "why it ends", seen)
        assert running.process.wait(PATIENCE_SECONDS) == 1
    finally:
        device.tpm.start_manager()
        running.process.kill()
    running = device.run()
    running.wait_for(connected, "connected")
    running.process.terminate()
    assert running.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.long
def test_the_key_of_another_tpm_is_named_and_a_new_token_helps(device: Device, tmp_path: Path) -> None:
    device.enroll()
    first, device.tpm = device.tpm, Tpm(tmp_path / "other")
    try:
        for command in ("doctor", "renew"):
            assert "does not belong to this TPM" in device.agent(command, expect=1)
        device.enroll("--again")
        assert "Keys are kept in tpm2" in device.agent("doctor")
    finally:
        device.tpm.stop()
        device.tpm = first


def test_a_cleared_tpm_is_a_rung_of_the_ladder(device: Device, tmp_path: Path) -> None:
    """The kept token enrolls again, with a key of the TPM as it is now."""
    uses = run_fleet(device.served.home, "token", "create", "--device", device.name, "--uses", "9")
    assert "would be a file" in device.agent("enroll", "--keep", give=uses, expect=2)
    assert not (device.home / "bootstrap").exists()
    device.agent("enroll", "--keep-in-clear", give=uses)
    assert "anybody who copies the disk can enroll" in device.agent("doctor")
    before = device.key
    first, device.tpm = device.tpm, Tpm(tmp_path / "other")
    running = device.run()
    try:
        running.wait_for(lambda line: "does not belong to this TPM" in line, "what is the matter")
        running.wait_for(connected, "connected")
        wait_until(lambda: device.key != before, "the new certificate is not in use")
    finally:
        running.process.terminate()
        assert running.process.wait(PATIENCE_SECONDS) == 0
        device.tpm.stop()
        device.tpm = first


@pytest.mark.parametrize("is_known", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_damaged_key_of_the_next_certificate_leaves_the_one_in_use(device: Device, is_known: bool) -> None:
    """Known by its hash in meta.json, or to the TPM alone, as where it was damaged before it was written."""
    device.enroll()
    before, slot = device.key, device.home / "slot-b"
    done = subprocess.run(
        [sys.executable, "-m", "device_agent.enroll_child"],
        input=EnrollmentJob(device.home, "reenroll").to_json(),
        text=True,
        env=with_provider(KeyStore(device.home, TPM2, TCTI), os.environ | device.tpm.environment),
        check=False,
    )
    assert done.returncode == 0
    blob = bytearray(ssl.PEM_cert_to_DER_cert(as_certificate((slot / "key.pem").read_text())))
    blob[-8] ^= 1  # of the private part, which the TPM has encrypted
    pem = as_key(ssl.DER_cert_to_PEM_cert(bytes(blob))).encode()
    (slot / "key.pem").write_bytes(pem)
    if not is_known:
        meta = json.loads((slot / "meta.json").read_text())
        (slot / "meta.json").write_text(json.dumps(meta | {"key_file_sha256": hashlib.sha256(pem).hexdigest()}))
    running = device.run()
    try:
        if not is_known:
            running.wait_for(lambda line: "cause=unusable" in line, "which key cannot be used")
        running.wait_for(lambda line: " connected slot=slot-a" in line, "connected")
        assert device.key == before
        device.agent("renew")
        assert device.key not in (before, pem)
    finally:
        running.process.terminate()
        assert running.process.wait(PATIENCE_SECONDS) == 0


def as_certificate(key_pem: str) -> str:
    return key_pem.replace("TSS2 PRIVATE KEY", "CERTIFICATE")


def as_key(certificate_pem: str) -> str:
    return certificate_pem.replace("CERTIFICATE", "TSS2 PRIVATE KEY")


def test_a_key_signs_and_is_not_given_away(store: KeyStore) -> None:
    key = generate_key("EC-P384", store)
    data = b"what is signed"
    key.public_key().verify(key.sign(data, ECDSA(SHA256())), data, ECDSA(SHA256()))  # type: ignore[call-arg,arg-type]
    assert parse_key(key_pem(key), store) is not None
    assert isinstance(key, HardwareKey)
    with pytest.raises(KeyStoreFailed, match="does not give it away"):
        key.private_bytes()
    with pytest.raises(KeyStoreFailed, match="does not give it away"):
        key.private_numbers()


def test_a_reference_cut_at_any_octet_is_no_key(store: KeyStore) -> None:
    pem = key_pem(generate_key("EC-P256", store))
    for size in range(len(pem) - 1):
        assert _cut_is_no_key(pem[:size], store), size


def _cut_is_no_key(pem: bytes, store: KeyStore) -> bool:
    try:
        return parse_key(pem, store) is None
    except KeyOfAnother:
        return kind_of(pem) != TPM2


def test_an_unfinished_key_is_used_again_and_one_in_a_file_is_not(store: KeyStore) -> None:
    slots = IdentityStore(store.home)
    slot, first = candidate_key(slots, "EC-P256", store)
    assert candidate_key(slots, "EC-P256", store)[1].public_key() == first.public_key()
    slots.write_key(slot, key_pem(generate_key("EC-P256")))
    again = candidate_key(slots, "EC-P256", store)[1]
    assert isinstance(again, HardwareKey)
    assert load_key(slots.key_file(slot), store).public_key() == again.public_key()


def test_a_type_of_key_that_is_not_generated_there(store: KeyStore) -> None:
    with pytest.raises(BadConfig, match="Ed25519") as raised:
        generate_key("Ed25519", store)
    assert "EC-P256, EC-P384" in raised.value.advice


def test_a_provider_that_is_missing_is_named_and_no_key_is_made_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    for kind, package in ((TPM2, "tpm2-openssl"), (PKCS11, "pkcs11-provider")):
        with pytest.raises(KeyStoreFailed, match=f"'{kind}' is missing") as raised:
            hardware_key.generate(KeyStore(tmp_path, kind, uri="pkcs11:token=device"), "EC-P256")
        assert package in raised.value.advice


def test_each_command_names_the_provider_that_is_missing(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.enroll()
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    for command in ("run", "renew", "doctor", "enroll --again"):
        said = device.agent(*command.split(), give="a-token" if "enroll" in command else "", expect=1)
        assert f"{tmp_path}/tpm2.so is not there" in said, command
        assert "Install the package tpm2-openssl" in said, command
    device.home = tmp_path / "pkcs11"
    said = device.agent(
        *("init", "--device-id", "cam-7", "--est", "https://localhost", "--mqtt", "localhost:8883"),
        *("--ca", str(device.served.ca_file), "--key-store", "pkcs11", "--key-uri", "pkcs11:token=x"),
        expect=1,
    )
    assert f"{tmp_path}/pkcs11.so is not there. Install the package pkcs11-provider" in said


def test_how_a_tpm_is_reached(tmp_path: Path) -> None:
    for tcti, environment, expected in (
        ("", {}, "device:/dev/tpmrm0"),
        ("", {"TPM2OPENSSL_TCTI": TCTI}, TCTI),
        ("swtpm:path=/run/chip", {"TPM2OPENSSL_TCTI": TCTI}, "swtpm:path=/run/chip"),
    ):
        assert with_provider(KeyStore(tmp_path, TPM2, tcti), environment)["TPM2OPENSSL_TCTI"] == expected


def test_a_program_with_its_key_in_a_file_keeps_every_configuration_but_the_homes(tmp_path: Path) -> None:
    for conf, is_kept in ((tmp_path / "openssl.cnf", False), (Path("/etc/ssl/openssl.cnf"), True)):
        environment = {"PATH": "/bin", "OPENSSL_CONF": str(conf)}
        kept = environment if is_kept else {"PATH": "/bin"}
        assert without_provider(tmp_path, environment) == kept


def test_an_enrolled_home_keeps_its_key_store(device: Device) -> None:
    device.enroll()
    file = device.home / "agent.toml"
    file.write_text(file.read_text().replace('store = "tpm2"', 'store = "file"'))
    for words in (("run",), ("renew",), ("enroll", "--again")):
        said = device.agent(*words, give=device.token if "enroll" in words else "", expect=1)
        assert "is enrolled with a key of the key store 'tpm2'" in said


@pytest.mark.parametrize("damaged", [None, b"", bytes(200), b"x" * 100_000])
def test_a_damaged_slot_keeps_no_agent_from_starting(tmp_path: Path, damaged: bytes | None) -> None:
    (tmp_path / "slot-a").mkdir()
    (tmp_path / "slot-a" / "cert.pem").touch()
    if damaged is not None:
        (tmp_path / "slot-a" / "key.pem").write_bytes(damaged)
    assert use_in_children(KeyStore(tmp_path))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('store = "nitro"', "key.store must be"),
        ('store = "pkcs11"', "key.uri is missing"),
        ('store = "pkcs11"\nuri = "token=x"', "is no PKCS#11 URI"),
        ('store = "pkcs11"\nuri = "pkcs11:token=x?pin-value=1234"', "seen by every user"),
        ('store = "tpm2"\ntcti = "a#b"', "key.tcti: it has a quote"),
        ('store = "tpm2"\nhandle = 1', "there is no setting"),
        ('store = "tpm2"\ntcti = 1', "key.tcti must be a string"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "agent.toml").write_text(
        f'device_id = "cam-7"\n[est]\nurl = "https://h"\n[mqtt]\nhost = "h"\n[key]\n{text}\n'
    )
    with pytest.raises(BadConfig, match=what):
        read_config(tmp_path)
