"""fleet.toml is read strictly: what is not understood starts nothing, and the error says where."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict, fields, replace

from fleet.config.addresses import (
    Address,
    Broker,
    parse_address,
    parse_api_address,
    parse_broker,
    parse_control_address,
    parse_database,
    parse_local_address,
    parse_network,
)
from fleet.config.settings import Settings
from fleet.config.settings_file import SETTINGS_SIZE_MAX, SettingsError, read_settings
from fleet.config.template import render
from tests.tiers import Tier


def written(folder: Path, text: str) -> Path:
    file = folder / "fleet.toml"
    file.write_text(text)
    return file


def test_what_init_writes_is_read_back_whole(tmp_path: Path) -> None:
    settings = Settings(
        name='acme "north" \\ 1',
        hosts=("localhost", "iot.example"),
        est=Address("0.0.0.0", 1),
        mqtt=Address("::1", 0),
        http=Address("h", 65535),
        publish=Address("0.0.0.0", 80),
        database=parse_database("postgresql://u@h/d?sslmode=require"),
        upstream=parse_broker("mqtt://b:1883"),
        log_format="json",
        durable=True,
        supervised=True,
        presence_events=True,
        server_reference="b.example:8883 c.example",
        presence_topic="fleet/presence/{id}",
        dynsec_broker=parse_control_address("mqtts://broker.example:8883"),
        upstream_ca="upstream-ca.pem",
        upstream_certificate="gateway.pem",
        upstream_key="gateway.key",
        upstream_password_file="upstream.password",
        upstream_user_properties=True,
        upstream_proxy_v2=True,
        upstream_refuse_dots=True,
        dynsec_user="root",
        dynsec_password_file="control.password",
        dynsec_ca="broker.pem",
        webhook_ca="hooks.pem",
        webhook_local=True,
        forward_auth=parse_local_address("unix:/run/auth.sock"),
        forward_auth_secret_file="proxy.secret",
        forward_auth_group="www-data",
        broker_auth=parse_local_address("unix:broker.sock"),
        broker_auth_group="daemon",
        broker_sessions=parse_api_address("emqx+https://b:18084"),
        broker_sessions_password_file="api.password",
        broker_sessions_ca="broker.pem",
        broker_auth_secret_file="broker.secret",
        rabbitmq_vhost="iot",
        wss=Address("::", 443),
        wss_origins=("https://app.example", "http://[::1]:8080"),
        proxy_trusted=(parse_network("192.0.2.7"), parse_network("2001:db8::/48")),
        proxy_listeners=("publish",),
        publish_url="http://pki.example/fleet",
        publish_cdp=("fleet", "tenant:acme"),
        publish_aia=(),
        crl_delta=True,
        **{name: value + 1 for name, value in numbers(Settings()).items()},
    )
    assert read_settings(written(tmp_path, render(settings))) == settings
    default = Settings()
    assert [each.name for each in fields(settings) if getattr(settings, each.name) == getattr(default, each.name)] == []


def numbers(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if type(value) in (int, float)}


def test_the_template_shows_every_key_with_its_default(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, render(Settings()))) == Settings()
    assert read_settings(written(tmp_path, "# nothing\n")) == Settings()


def test_a_key_left_out_has_its_default(tmp_path: Path) -> None:
    file = written(tmp_path, '[listen]\nest = "0.0.0.0:9443"\n')
    assert read_settings(file) == replace(Settings(), est=Address("0.0.0.0", 9443))


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.5", "10.0.0.5/32"),
        ("::ffff:10.0.0.5", "10.0.0.5/32"),
        ("::ffff:a00:0/104", "10.0.0.0/8"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("2001:db8::/48", "2001:db8::/48"),
    ],
)
def test_a_network_is_written_as_addresses_of_peers_are(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[fleet]\nname = "a"\n\n[listn]\nest = "h:1"\n', 4, "did you mean 'listen'"),
        ('[listen]\nmqtt = "h:1"\nest = 8443\n', 3, "listen.est must be a text"),
        ('[listen]\n# est = 1\nest = "nowhere"\n', 3, "listen.est 'nowhere' is not HOST:PORT"),
        ('[publish]\naddress = "nowhere"\n', 2, "publish.address 'nowhere' is not HOST:PORT"),
        ('[wss]\naddress = "nowhere"\n', 2, "wss.address 'nowhere' is not HOST:PORT"),
        ('[wss]\norigins = ["null"]\n', 2, "wss.origins must be a list of origins"),
        ('[wss]\norigins = ["https://app.example/"]\n', 2, "wss.origins must be a list of origins"),
        ('[wss]\norigins = ["*"]\n', 2, "wss.origins must be a list of origins"),
        ('[proxy_protocol]\ntrusted = "10.0.0.0/8"\n', 2, "proxy_protocol.trusted must be a list of IP addresses"),
        (
            '[proxy_protocol]\ntrusted = ["10.0.0.1/8"]\n',
            2,
            "'10.0.0.1/8' has host bits set; the network is 10.0.0.0",
        ),
        ('[proxy_protocol]\ntrusted = ["::1:2/64"]\n', 2, "'::1:2/64' has host bits set; the network is ::/64"),
        ('[proxy_protocol]\ntrusted = ["10.0.0.1/33"]\n', 2, "'10.0.0.1/33' is not an IP address, nor a network"),
        ('[proxy_protocol]\ntrusted = ["balancer"]\n', 2, "'balancer' is not an IP address, nor a network"),
        ('[proxy_protocol]\ntrusted = ["::/0"]\n', 2, "'::/0' covers every address"),
        ('[proxy_protocol]\ntrusted = ["::ffff:0:0/96"]\n', 2, "'::ffff:0:0/96' covers every address"),
        ('[proxy_protocol]\ntrusted = ["10.0.0.5"]\nlisteners = []\n', 3, "proxy_protocol.listeners is empty"),
        ('[proxy_protocol]\nlisteners = ["est", "ssh"]\n', 2, "proxy_protocol.listeners must be a list of est, "),
        ('[proxy_protocol]\nlisteners = ["est", "ssh"]\n', 2, "; not 'ssh'"),
        ('[wss]\norigins = ["https://app.example/"]\n', 2, "'https://app.example/' is none"),
        ('[listen]\nest = "localhost:99999"\n', 2, "a port is at most 65535"),
        ("[publish]\naddress = false\n", 2, "publish.address must be a text"),
        ('[publish]\ncdp = "all"\n', 2, "publish.cdp must be a list of CAs"),
        ('[publish]\naia = ["tenant:"]\n', 2, "publish.aia must be a list of CAs"),
        ('[publish]\npublish = "h:1"\n', 2, "publish.publish is not a setting"),
        ('[listen]\nesst = "h:1"\n', 2, "did you mean 'est'"),
        ("[fleet]\nhosts = []\n", 2, "fleet.hosts must be a list"),
        ('[fleet]\nhosts = ["a", 1]\n', 2, "fleet.hosts must be a text"),
        ('[fleet]\nname = "a\\u0000"\n', 2, "fleet.name must be a text"),
        ("[limits]\nhalf_open_max = 0\n", 2, "limits.half_open_max must be a whole number from 1"),
        ("[limits]\nhalf_open_max = true\n", 2, "limits.half_open_max must be a whole number"),
        ("[limits]\nhandshake_seconds_max = nan\n", 2, "limits.handshake_seconds_max must be a number"),
        ('[gateway]\nupstream = "http://x"\n', 2, "gateway.upstream 'http://x' is not auto"),
        ('[gateway]\npresence_topic = "presence/{id}"\n', 2, "is no topic beneath fleet/presence"),
        ('[gateway]\npresence_topic = "fleet/presence"\n', 2, "is no topic beneath fleet/presence"),
        ('[gateway]\npresence_topic = "fleet/presence/#"\n', 2, "is no topic beneath fleet/presence"),
        ('[gateway]\npresence_topic = "fleet/presence/{model}"\n', 2, "is no topic beneath fleet/presence"),
        ("[serve]\nworkers = -1\n", 2, "serve.workers '-1' is not a whole number from 0 to 256"),
        ('[serve]\nworkers = "all"\n', 2, "serve.workers 'all' is not a whole number"),
        ("[serve]\nworkers = true\n", 2, "serve.workers must be a whole number"),
        ("[serve]\nworkers = 1.5\n", 2, "serve.workers must be a whole number"),
        ("[serve]\nworker = 2\n", 2, "did you mean 'workers'"),
        ('[forward_auth]\n\naddress = "127.0.0.1:9000"\n', 3, "forward_auth.address is a TCP port: it needs"),
        (
            '[forward_auth]\naddress = "[::1]:9"\nsecret_file = "s"\ngroup = "www-data"\n',
            4,
            "forward_auth.group is for a Unix socket",
        ),
        ('[broker_auth]\n\naddress = "127.0.0.1:9000"\n', 3, "broker_auth.address is a TCP port: it needs"),
        ('[forward_auth]\nadress = "off"\n', 2, "did you mean 'address'"),
        ('[forward_auth]\nforward_auth = "off"\n', 2, "forward_auth.forward_auth is not a setting"),
        ("[forward_auth]\nsecret_file = 1\n", 2, "forward_auth.secret_file must be a text"),
        ("[fleet\n", 1, "is not TOML"),
        ('[fleet]\nname = "a"\nname = "b"\n', 3, "is not TOML"),
        ('name = "a"\n', 1, "'name' is not a section"),
        ('fleet = "a"\n', 1, "'fleet' is not a section"),
    ],
)
def test_a_mistake_names_its_line_and_key(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(written(tmp_path, text))
    assert says in caught.value.problem
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{tmp_path / 'fleet.toml'}, line {line}: ")


def test_bytes_that_are_not_utf8_and_files_too_large_or_missing(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(file)
    file.write_bytes(b'[fleet]\nname = "\xff"\n')
    with pytest.raises(SettingsError, match="line 2: is not UTF-8"):
        read_settings(file)
    file.write_bytes(b"#" * (SETTINGS_SIZE_MAX + 1))
    with pytest.raises(SettingsError, match="is larger than"):
        read_settings(file)


def test_a_file_cut_anywhere_is_refused_or_holds_no_half_value(tmp_path: Path, tier: Tier) -> None:
    whole = render(Settings(est=Address("0.0.0.0", 18443), half_open_max=2000))
    for end in range(0, len(whole), tier.times(11, all=1)):
        try:
            settings = read_settings(written(tmp_path, whole[:end]))
        except SettingsError:
            continue
        assert settings.est in (Address("0.0.0.0", 18443), Settings().est)
        assert settings.upstream == Broker()


def test_as_many_workers_as_cores_has_a_name(tmp_path: Path) -> None:
    for text, number in (('"auto"', 0), ("0", 0), ("8", 8), ('"2"', 2)):
        assert read_settings(written(tmp_path, f"[serve]\nworkers = {text}\n")).workers == number


@pytest.mark.parametrize("text", ["", "h", "h:", ":1", "h:65536", "h:1:2", "::1:80", "[::1]", "[h]:1", "h :1", "h:-1"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("text", ["localhost:0", "127.0.0.1:8443", "[::1]:8443", "iot.example:1"])
def test_an_address_reads_and_prints_the_same(text: str) -> None:
    assert str(parse_address(text)) == text


NO_UPSTREAMS = ["", "Auto", "auto:x", "mqtt:host", "mqtt://", "mqtt://h:", "mqtt://h:0", "mqtt://h:x", "mqtt://h:99999"]


@pytest.mark.parametrize(
    "text", [*NO_UPSTREAMS, "mqtt://a:b:1883", "mqtt://user@h:1883", "unix:", "mqtts://", "tcp://h:1", "h:1"]
)
def test_an_upstream_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_broker(text)


@pytest.mark.parametrize("text", ["auto", "mosquitto", "embedded", "mqtt://h:1", "mqtt://[::1]:1883", "unix:/a b"])
def test_an_upstream_is_kept_as_it_is_written(text: str) -> None:
    assert str(parse_broker(text)) == text


def test_an_upstream_without_a_port_has_mqtts_own() -> None:
    assert str(parse_broker("mqtt://h")) == "mqtt://h:1883"
    assert str(parse_broker("mqtts://h")) == "mqtts://h:8883"


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_a_file_of_nothing_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="is empty"):
        read_settings(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.0.0.0:9000", "other machines"),
        ("[::]:9000", "other machines"),
        ("192.0.2.7:9000", "other machines"),
        ("proxy.example:9000", "other machines"),
        ("[::ffff:192.0.2.7]:9000", "other machines"),
        ("127.0.0.1", "off, unix:PATH or HOST:PORT"),
        ("unix:", "off, unix:PATH or HOST:PORT"),
        ("on", "off, unix:PATH or HOST:PORT"),
    ],
)
def test_a_listener_without_tls_is_local(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_local_address(text)
    file = written(tmp_path, f'[forward_auth]\nsecret_file = "s"\naddress = "{text}"\n')
    with pytest.raises(SettingsError, match="line 3: forward_auth.address .*" + says):
        read_settings(file)


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "127.0.0.1:9000", "127.9.9.9:0", "[::1]:9000", "localhost:9"])
def test_a_local_address_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_local_address(text)) == text


def test_an_editors_byte_order_mark(tmp_path: Path) -> None:
    (file := tmp_path / "fleet.toml").write_bytes("\ufeff[webhook]\nwebhook_seconds_max = 7\n".encode())
    assert read_settings(file).webhook_seconds_max == 7
    for encoding in ("utf-16", "utf-16-be"):
        file.write_bytes("\ufeff[webhook]\n".encode(encoding))
        with pytest.raises(SettingsError, match="is UTF-16; save it as UTF-8"):
            read_settings(file)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mqtts://broker.example", "mqtts://broker.example:8883"),
        ("mqtts://[2001:db8::1]:1", "mqtts://[2001:db8::1]:1"),
        ("mqtt://127.9.9.9", "mqtt://127.9.9.9:1883"),
        ("mqtt://localhost:7/", "mqtt://localhost:7"),
    ],
)
def test_the_address_of_a_brokers_administrator(tmp_path: Path, text: str, shown: str) -> None:
    settings = read_settings(written(tmp_path, f'[dynamic_security]\nbroker = "{text}"\n'))
    assert settings.dynsec_broker is not None
    assert str(settings.dynsec_broker) == shown
    assert settings.dynsec_broker.is_tls == text.startswith("mqtts")
    assert parse_control_address(shown) == settings.dynsec_broker


@pytest.mark.parametrize("text", ["", "mqtt://broker.example", "http://localhost", "mqtts://u@h:1", "mqtt://", "h:1"])
def test_a_password_is_sent_over_tls_or_within_this_machine(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"dynamic_security\.broker"):
        read_settings(written(tmp_path, f'[dynamic_security]\nbroker = "{text}"\n'))
