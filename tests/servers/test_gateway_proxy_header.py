"""An external broker that reads a PROXY header: HAProxy before mosquitto, RabbitMQ's parser, HAProxy's own header."""

import asyncio
import contextlib
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.config.addresses import parse_broker
from fleet.config.settings import Settings
from fleet.home.layout import Home
from fleet.runtime.upstream_access import upstream_access
from fleet.servers.gateway.broker.mosquitto import mosquitto_program
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.start import start_upstream
from fleet.servers.gateway.broker.upstream import SocketUpstream, UpstreamAccess
from fleet.servers.gateway.broker.visit import cancel_will, purge_session
from fleet.wire.mqtt.codes import V5, PacketType
from fleet.wire.mqtt.connect import Connect, decode_connect, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.proxy_protocol import ProvedClient, encode_header
from tests.free_ports import free_port
from tests.servers.gateway_fixtures import Wire, device, now, open_gateway, peer_of, populate, up
from tests.servers.test_gateway_upstream_tls import certificates
from tests.waiting import PATIENCE_SECONDS

MOSQUITTO, HAPROXY, ERLANG = mosquitto_program(), shutil.which("haproxy"), shutil.which("erl")
RANCH = next(iter(Path("/usr/lib/rabbitmq/lib").glob("*/plugins/ranch-*/ebin")), None)
LOCAL = encode_header(None)


class HeaderWire(Wire):
    """A broker's end that keeps the header apart."""

    header = b""

    def data_received(self, data: bytes) -> None:
        if not self.header:
            size = 16 + int.from_bytes(data[14:16])
            self.header, data = data[:size], data[size:]
        super().data_received(data)


async def test_each_connection_says_who_it_is_for_and_the_devices_words_change_nothing(tmp_path: Path) -> None:
    arrived: asyncio.Queue[HeaderWire] = asyncio.Queue()

    def accept() -> HeaderWire:
        arrived.put_nowait(wire := HeaderWire())
        return wire

    server = await asyncio.get_running_loop().create_unix_server(accept, tmp_path / "b.sock")
    upstream = SocketUpstream(tmp_path / "b.sock", UpstreamAccess(sends_identity=True, sends_proxy_header=True))
    async with open_gateway(tmp_path, upstream) as h:
        (cam,) = await populate(h.registry, "cam-1")
        behind_balancer = replace(peer_of(cam), address="198.51.100.7", tls_version="TLSv1.3")
        for peer, address in (
            (replace(behind_balancer, address="127.0.0.1"), "127.0.0.1"),
            (behind_balancer, "198.51.100.7"),
        ):
            wire = await h.dial(peer)
            here = wire.transport.get_extra_info("peername")[:2]
            port = wire.transport.get_extra_info("sockname")[1] if address == "127.0.0.1" else 0
            own = ((Property.USER_PROPERTY, ("fleet-device", "cam-2")),)
            wire.send(encode_connect(Connect(V5, "cam-1", username="cam-2", password=b"x", properties=own)))
            side = await asyncio.wait_for(arrived.get(), PATIENCE_SECONDS)
            connect = decode_connect((await side.packet()).body)
            assert (connect.client_id, connect.username, connect.password) == ("cam-1", "cam-1", None)
            assert side.header == encode_header(ProvedClient((address, port), here, "cam-1", "TLSv1.3"))
            assert "cam-2" not in repr(connect)
            side.transport.close()
        nowhere = ("127.0.0.1", 0)
        for visit in (purge_session(upstream, device("cam-1")), cancel_will(upstream, device("cam-1"), 60.0)):
            visiting = asyncio.create_task(visit)
            side = await asyncio.wait_for(arrived.get(), PATIENCE_SECONDS)
            assert (await side.packet()).type is PacketType.CONNECT
            assert side.header == encode_header(ProvedClient(nowhere, nowhere, "cam-1", ""))
            side.send(b"\x20\x03\x00\x00\x00")
            assert await visiting
        asking = asyncio.create_task(ProbedUpstream(upstream, clock=now).run())
        side = await asyncio.wait_for(arrived.get(), PATIENCE_SECONDS)
        assert (await side.packet()).type is PacketType.CONNECT
        assert side.header == LOCAL
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
    server.close()


@dataclass(frozen=True)
class Site:
    """HAProxy that reads the header, before TLS or before MQTT, and passes the rest on to mosquitto."""

    folder: Path
    ports: dict[str, int]
    log: asyncio.StreamReader

    async def line(self, about: str) -> str:
        """The next line that HAProxy logs of `about`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while about not in (line := (await self.log.readline()).decode()):
                assert line, "HAProxy has ended"
        return line


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    if MOSQUITTO is None or HAPROXY is None:
        pytest.skip("mosquitto or haproxy is not installed")
    certificates(tmp_path)
    (tmp_path / "broker-with-key.pem").write_bytes(
        (tmp_path / "broker.pem").read_bytes() + (tmp_path / "broker.key").read_bytes()
    )
    ports = {name: free_port() for name in ("mqtts", "mqtt", "proved")}
    socket = tmp_path / "m.sock"
    (tmp_path / "m.conf").write_text(f"user root\nlistener 0 {socket}\nallow_anonymous true\n")
    tls = "ssl crt broker-with-key.pem"
    (tmp_path / "h.cfg").write_text(
        "global\n    log stdout format raw local0\n"
        "defaults\n    mode tcp\n    log global\n"
        "    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n"
        '    log-format "%f %[src] -> %[dst]:%[dst_port]"\n    option logasap\n'
        f"listen mqtts\n    bind 127.0.0.1:{ports['mqtts']} accept-proxy {tls} ca-file ca.pem verify required\n"
        f"    server m unix@{socket}\n"
        f"listen mqtt\n    bind 127.0.0.1:{ports['mqtt']} accept-proxy\n    server m unix@{socket}\n"
        f"listen proved\n    bind 127.0.0.1:{ports['proved']} {tls} ca-file ca.pem verify required\n"
        f"    server m unix@{tmp_path}/seen.sock send-proxy-v2-ssl-cn\n"
    )
    broker = await asyncio.create_subprocess_exec(MOSQUITTO, "-c", "m.conf", cwd=tmp_path)
    proxy = await asyncio.create_subprocess_exec(
        HAPROXY, "-db", "-f", "h.cfg", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert proxy.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not socket.exists() or not await accepts(ports["proved"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield Site(tmp_path, ports, proxy.stdout)
    finally:
        for process in (broker, proxy):
            process.kill()
            await process.wait()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
async def test_haproxy_reads_the_device_s_address_and_mosquitto_serves_it(site: Site, scheme: str) -> None:
    settings = replace(
        Settings(), upstream=parse_broker(f"{scheme}://127.0.0.1:{site.ports[scheme]}"), upstream_proxy_v2=True
    )
    if scheme == "mqtts":
        settings = replace(
            settings, upstream_ca="ca.pem", upstream_certificate="gateway.pem", upstream_key="gateway.key"
        )
    access = upstream_access(Home(site.folder), settings)
    upstream = await start_upstream(settings.upstream, site.folder / "run", (), access=access)
    async with open_gateway(site.folder, upstream) as h:
        (cam,) = await populate(h.registry, "cam-1")
        wire = await h.dial(replace(peer_of(cam), address="198.51.100.7", tls_version="TLSv1.3"))
        wire.send(encode_connect(Connect(V5, "cam-1")) + up("cam-1", b"x" * 100_000, V5, qos=1))
        assert (await wire.packet()).body[1] == 0
        assert (await wire.packet()).type is PacketType.PUBACK
        here = "{}:{}".format(*wire.transport.get_extra_info("peername")[:2])
        assert await site.line(f"{scheme} 198") == f"{scheme} 198.51.100.7 -> {here}\n"
        wire.send(b"\xe0\x00")
        await wire.until_closed()
    assert await purge_session(upstream, device("cam-1"))
    plain = await start_upstream(settings.upstream, site.folder / "run", (), access=UpstreamAccess(access.tls))
    assert not await purge_session(plain, device("cam-1"))  # HAProxy wants the header


async def test_our_header_is_the_one_that_haproxy_writes_of_a_client_with_a_certificate(site: Site) -> None:
    seen: asyncio.Queue[HeaderWire] = asyncio.Queue()

    def accept() -> HeaderWire:
        seen.put_nowait(wire := HeaderWire())
        return wire

    server = await asyncio.get_running_loop().create_unix_server(accept, site.folder / "seen.sock")
    tls = ssl.create_default_context(cafile=str(site.folder / "ca.pem"))
    tls.load_cert_chain(site.folder / "gateway.pem", site.folder / "gateway.key")
    _, client = await asyncio.open_connection("127.0.0.1", site.ports["proved"], ssl=tls, server_hostname="127.0.0.1")
    client.write(b"\xc0\x00")
    side = await asyncio.wait_for(seen.get(), PATIENCE_SECONDS)
    assert (await side.packet()).type is PacketType.PINGREQ
    own, haproxys = (client.get_extra_info(name) for name in ("sockname", "peername"))
    assert side.header == encode_header(ProvedClient(own, haproxys, "gateway", "TLSv1.3"))
    client.close()
    server.close()


@pytest.mark.skipif(ERLANG is None or RANCH is None, reason="erl or RabbitMQ is not installed")
def test_rabbitmq_s_parser_reads_the_device_s_name() -> None:
    client = ProvedClient(("198.51.100.7", 50001), ("10.0.0.1", 8883), "cam-7", "TLSv1.3")
    header = ",".join(map(str, encode_header(client) + b"\x10"))
    program = f'io:format("~0p", [ranch_proxy_header:parse(<<{header}>>)]), halt().'
    argv = [str(ERLANG), "-noshell", "-pa", str(RANCH), "-eval", program]
    read = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS).stdout
    for part in (
        "src_address => {198,51,100,7}",
        "src_port => 50001",
        "dest_address => {10,0,0,1}",
        "dest_port => 8883",
        'cn => <<"cam-7">>',
        'version => <<"TLSv1.3">>',
        "verified => true",
        "client => [ssl,cert_conn,cert_sess]",
    ):
        assert part in read, read
    assert re.search(r"<<16>>\}$", read), "the client's first octet is left"
