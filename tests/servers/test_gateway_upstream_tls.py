"""An external broker that wants TLS, a client certificate and a password: a real mosquitto; what refuses the start."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec.structs import replace

from fleet.config.addresses import parse_broker
from fleet.config.settings import Settings
from fleet.config.small_files import CERTIFICATES_SIZE_MAX
from fleet.domain.errors import Invalid
from fleet.home.layout import Home
from fleet.runtime.upstream_access import upstream_access
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.broker.upstream import SocketUpstream, Upstream, UpstreamAccess
from fleet.servers.gateway.broker.visit import purge_session
from fleet.wire.mqtt.codes import V5
from fleet.wire.mqtt.connect import Connect, decode_connect, encode_connect
from fleet.wire.mqtt.properties import Property
from tests.free_ports import free_port
from tests.servers.gateway_fixtures import Wire, device, now, open_gateway, populate, up
from tests.waiting import PATIENCE_SECONDS, until

PROGRAM = mosquitto_program()
PASSWORDS = shutil.which("mosquitto_passwd")
needs_mosquitto = pytest.mark.skipif(PROGRAM is None or PASSWORDS is None, reason="mosquitto is not installed")


def certificates(path: Path) -> None:
    """ca.pem, and broker and gateway .pem and .key, signed by it."""
    ca_key, ca_name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]),
    )
    for name in ("ca", "broker", "gateway"):
        key = ca_key if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        built = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - timedelta(days=1))
            .not_valid_after(now() + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        (path / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (path / f"{name}.key").touch(mode=0o600)
        (path / f"{name}.key").write_bytes(private)


def settings_for(port: int) -> Settings:
    return replace(
        Settings(),
        upstream=parse_broker(f"mqtts://127.0.0.1:{port}"),
        upstream_ca="ca.pem",
        upstream_certificate="gateway.pem",
        upstream_key="gateway.key",
        upstream_password_file="password",
    )


@pytest.fixture
async def broker_port(tmp_path: Path) -> AsyncIterator[int]:
    assert PROGRAM is not None
    assert PASSWORDS is not None
    certificates(tmp_path)
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("secret\n")
    for user in ("cam-1", "_probe"):
        known = tmp_path / "known"
        subprocess.run([PASSWORDS, *(["-c"] if user == "cam-1" else []), "-b", known, user, "secret"], check=True)
    port = free_port()
    (tmp_path / "broker.conf").write_text(
        f"user root\nlistener {port} 127.0.0.1\ncafile ca.pem\ncertfile broker.pem\nkeyfile broker.key\n"
        "require_certificate true\nallow_anonymous false\npassword_file known\n"
    )
    process = await asyncio.create_subprocess_exec(PROGRAM, "-c", "broker.conf", cwd=tmp_path)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)
        yield port
    finally:
        process.kill()
        await process.wait()


async def upstream_of(home: Path, settings: Settings) -> Upstream:
    return await start_upstream(settings.upstream, home / "run", (), access=upstream_access(Home(home), settings))


@needs_mosquitto
async def test_sessions_visits_and_the_probe_prove_themselves(tmp_path: Path, broker_port: int) -> None:
    settings = settings_for(broker_port)
    upstream = await upstream_of(tmp_path, settings)
    assert upstream.address == f"mqtts://127.0.0.1:{broker_port}"
    probed = ProbedUpstream(upstream, clock=now)
    async with open_gateway(tmp_path, probed) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire, connack = await h.connect(cam, V5)
        assert connack.code == 0
        wire.send(up("cam-1", b"x" * 100_000, V5, qos=1))
        assert (await wire.packet()).body[:2] == b"\0\1"
        wire.send(b"\xe0\x00")
        await wire.until_closed()
        await h.count("mqtt.session.client-disconnected")
    assert await purge_session(probed, device("cam-1"))
    asking = asyncio.create_task(probed.run())
    try:
        await until(lambda: probed.status().get("answers") and probed._session is not None and not probed._unanswered)
    finally:
        asking.cancel()
    for wrong in ({"upstream_password_file": ""}, {"upstream_certificate": "", "upstream_key": ""}):
        assert not await purge_session(await upstream_of(tmp_path, replace(settings, **wrong)), device("cam-1"))
    certificates(tmp_path)  # another CA, which has not signed the broker's
    assert not await purge_session(await upstream_of(tmp_path, settings), device("cam-1"))


@pytest.mark.parametrize(
    ("broker", "changed", "code", "says"),
    [
        ("mqtt://b", {"upstream_ca": "ca.pem"}, "bad-settings", "mqtts"),
        ("auto", {"upstream_certificate": "gateway.pem", "upstream_key": "gateway.key"}, "bad-settings", "mqtts"),
        ("mqtts://b", {"upstream_certificate": "gateway.pem"}, "bad-settings", "together"),
        ("mqtt://b", {"upstream_password_file": "password"}, "bad-settings", "in clear"),
        ("auto", {"upstream_password_file": "password"}, "bad-settings", "needs none"),
        ("auto", {"upstream_user_properties": True}, "bad-settings", "external broker"),
        ("mosquitto", {"upstream_proxy_v2": True}, "bad-settings", "external broker"),
        ("auto", {"upstream_refuse_dots": True}, "bad-settings", "external broker"),
        ("mqtts://b", {"upstream_password_file": "open"}, "bad-password-file", "open"),
        ("mqtts://b", {"upstream_password_file": "none"}, "bad-password-file", "cannot be read"),
        ("mqtts://b", {"upstream_ca": "none"}, "bad-certificate-file", "cannot be used"),
        ("mqtts://b", {"upstream_ca": "password"}, "bad-certificate-file", "cannot be used"),
        ("mqtts://b", {"upstream_ca": "large"}, "bad-certificate-file", "File too large"),
        ("mqtts://b", {"upstream_ca": "pipe"}, "bad-certificate-file", "not a regular file"),
        (
            "mqtts://b",
            {"upstream_certificate": "large", "upstream_key": "gateway.key"},
            "bad-certificate-file",
            "File too large",
        ),
        (
            "mqtts://b",
            {"upstream_certificate": "broker.pem", "upstream_key": "gateway.key"},
            "bad-certificate-file",
            "b",
        ),
        ("mqtts://b", {"upstream_certificate": "gateway.pem", "upstream_key": "open"}, "bad-password-file", "open"),
    ],
)
def test_a_mistake_refuses_the_start(
    tmp_path: Path, broker: str, changed: dict[str, str | bool], code: str, says: str
) -> None:
    certificates(tmp_path)
    for name, mode in (("password", 0o600), ("open", 0o644)):
        (tmp_path / name).write_text("secret\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "large").write_bytes((tmp_path / "gateway.pem").read_bytes() + b"\n" * CERTIFICATES_SIZE_MAX)
    os.mkfifo(tmp_path / "pipe")
    settings = replace(Settings(), upstream=parse_broker(broker), **changed)
    with pytest.raises(Invalid, match=says) as refusal:
        upstream_access(Home(tmp_path), settings)
    assert refusal.value.code == code
    if code != "bad-settings":
        setting, file = list(changed.items())[-1 if "key" in says or says == "open" else 0]
        assert refusal.value.message.startswith(f"{setting.replace('_', '.', 1)}: {tmp_path / str(file)} ")
        assert refusal.value.message.count(str(tmp_path)) == 1
        assert refusal.value.advice
    assert "secret" not in str(refusal.value).replace("secret file", "")


async def test_user_properties_say_who_a_device_is_and_its_own_do_not(tmp_path: Path) -> None:
    side = Wire()
    server = await asyncio.get_running_loop().create_unix_server(lambda: side, tmp_path / "b.sock")
    upstream = SocketUpstream(tmp_path / "b.sock", UpstreamAccess(sends_identity=True))
    async with open_gateway(tmp_path, upstream) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(cam)
        names = ("fleet-device", "Fleet-Model", "fleet-", "fleets", "a")
        own = tuple((Property.USER_PROPERTY, (name, "cam-2")) for name in names)
        wire.send(encode_connect(Connect(V5, "cam-1", properties=own)))
        found = [value for _, value in decode_connect((await side.packet()).body).properties]
        gateways = [("fleet-device", "cam-1"), ("fleet-model", "cam2"), ("fleet-serial", cam.serial)]
        assert found == [*gateways, ("fleets", "cam-2"), ("a", "cam-2")]
    server.close()


def test_a_password_may_go_to_a_broker_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("secret\nand more\n")
    for broker in ("mqtt://127.0.0.1", "unix:/run/b.sock"):
        settings = replace(Settings(), upstream=parse_broker(broker), upstream_password_file="password")
        access = upstream_access(Home(tmp_path), settings)
        assert access.password == b"secret"
        assert "secret" not in repr(access)
