"""The commented `fleet.toml` of a new home: every setting with its value."""

from msgspec.structs import fields

from fleet.config.mqtt_bounds import BROKER_MEMORY_MAX
from fleet.config.settings import OFF, Settings

TEMPLATE = """\
# A fleet's home. Every key is shown with its value. After a change send SIGHUP to `fleet serve`: its
# log says what is in force, and what needs a restart.
# The server does not start with an unknown key or a value out of range.

[fleet]
# Part of the subject of the fleet's CAs.
name = {name}
# DNS names and IP addresses in the server certificate.
hosts = {hosts}

[listen]
# HOST:PORT of each listener; 0.0.0.0 or [::] for all interfaces.
est = {est}
mqtt = {mqtt}
http = {http}

[wss]
# HOST:PORT of a listener for MQTT over WebSocket with TLS, at /mqtt; or "off". Certificates, rules and limits are those
# of MQTT.
address = {wss}
# Origins of web pages that may connect, such as ["https://app.example.com"]: a browser would use a client certificate
# for any page. Other clients are not concerned.
origins = {wss_origins}

[proxy_protocol]
# Balancers in front of this server: their connections begin with a PROXY header (version 1 or 2), and the address that
# it says is what limits, audit and log have. Addresses and networks, such as ["192.0.2.7", "10.0.0.0/24"]; [] for none.
# One of theirs without a header is refused, and so is a header from any other address.
trusted = {proxy_trusted}
# Listeners at which they do so: "est", "mqtt", "http", "wss", "publish".
listeners = {proxy_listeners}

[publish]
# HOST:PORT of a listener of plain HTTP for relying parties, which serves CRLs, CA certificates and OCSP; or "off".
# Answers are signed: they need no TLS.
address = {publish}
# Where relying parties fetch CRLs, CA certificates and OCSP answers, as certificates and CRLs name it:
# "http://pki.example.com". Plain HTTP is usual, as everything is signed. "": they name no place.
url = {publish_url}
# CAs whose certificates name their CRL (cdp), and the OCSP responder with the CA's certificate (aia): "all", "fleet",
# "operators", "tenant:NAME"; [] for none. A model may go without: `fleet model set --no-cdp --no-aia`. A change reaches
# a certificate when it is next renewed.
cdp = {publish_cdp}
aia = {publish_aia}
# Open connections: in total, and from one address, behind which a site's relying parties may be. Idle ones give way; a
# client for which there is no room is answered 503.
connections_max = {publish_connections_max}
connections_per_address_max = {publish_connections_per_address_max}

[registry]
# "sqlite": registry.db in this folder. Or PostgreSQL, for several nodes: "postgresql://USER@HOST:PORT/DATABASE", with
# the password in PGPASSWORD or ~/.pgpass, or "file:PATH" of a file (mode 600) that holds the whole URL.
# FLEET_DATABASE in the environment takes precedence.
database = {database}

[serve]
# Processes that share the listeners, one core each; 0 or "auto": one for each core. The limits below apply to each.
workers = {workers}
# true: a single worker has a supervisor, as several always have: SIGUSR2 then replaces it, and no connection is
# refused. It takes some 50 MB more.
supervised = {supervised}
# The log on standard error: "text", one line an event, or "json", one object a line.
log_format = {log_format}
# Seconds over which a worker that is replaced (SIGUSR2) ends its MQTT sessions, one after the other.
restart_drain_seconds = {restart_drain_seconds}
# The same for all sessions before a stop (SIGTERM): new ones are refused, and /healthz answers 503 meanwhile, so that a
# balancer looks elsewhere. The stop then takes so long and up to 5 s more, which the service manager must allow.
stop_drain_seconds = {stop_drain_seconds}

[gateway]
# The broker behind the gateway: "auto" (mosquitto when installed, otherwise the embedded one), "mosquitto",
# "embedded", "mqtt://HOST:PORT", "mqtts://HOST:PORT" or "unix:PATH".
upstream = {upstream}
# Maximum number of live MQTT sessions. Each takes two file descriptors: where the system's limit of open files
# (ulimit -Hn) allows fewer, fewer are admitted, and the log says so at the start.
sessions_max = {sessions_max}
# true: messages are acknowledged to devices once our own mosquitto has written them to disk; it saves ten times a
# second. false: a broker that is killed loses what it has acknowledged in the last second.
durable = {durable}
# Other servers, "HOST:PORT HOST:PORT", as a Server Reference for clients of MQTT 5.0 when this one stops; "": none.
server_reference = {server_reference}
# true: connects and disconnects are events of the API: one a second for up to 100 sessions, kept as the others.
presence_events = {presence_events}
# Where they are messages at the broker too, for applications: a topic beneath fleet/presence, to which no device may
# publish, such as "fleet/presence/{{id}}". "off": nowhere.
presence_topic = {presence_topic}

[mqtt]
# Limits of MQTT sessions; sizes in bytes. A model may lower two of them: `fleet model set --help`.
# A CONNECT, whose sender has proved a certificate of the fleet by then. A will alone may have 65535 bytes.
connect_size_max = {connect_size_max}
# Any other packet, in either direction; one that is not a PUBLISH has at most 65536.
packet_size_max = {packet_size_max}
# Topic filters in one SUBSCRIBE or UNSUBSCRIBE; beyond it the session closes.
filters_per_packet_max = {filters_per_packet_max}
# Of one device, as long as the broker keeps its session: filters, their bytes, and their levels, each of which takes
# memory of the broker. Beyond it a filter is refused (0x97).
filters_per_device_max = {filters_per_device_max}
filter_bytes_per_device_max = {filter_bytes_per_device_max}
filter_levels_per_device_max = {filter_levels_per_device_max}
# QoS 2 messages not released by PUBREL: of one device, and of all.
in_flight_bytes_per_device_max = {in_flight_bytes_per_device_max}
in_flight_bytes_max = {in_flight_bytes_max}
# What our own mosquitto keeps for a client that is offline or does not read: messages, and bytes of QoS 1 and 2; and
# bytes that it has sent and that are not acknowledged. It has {broker_memory_max} for all clients.
queued_messages_per_device_max = {queued_messages_per_device_max}
queued_bytes_per_device_max = {queued_bytes_per_device_max}
unacknowledged_bytes_per_device_max = {unacknowledged_bytes_per_device_max}
# Retained messages of one device at our own mosquitto: topics, and bytes of its memory. Beyond it one more is refused.
retained_messages_per_device_max = {retained_messages_per_device_max}
retained_bytes_per_device_max = {retained_bytes_per_device_max}
# What waits in the gateway for a client that does not read: beyond the first, QoS 0 is dropped for it; beyond the
# second, which is for all clients, the session with most of it is closed.
unread_bytes_per_device_max = {unread_bytes_per_device_max}
unread_bytes_max = {unread_bytes_max}

[limits]
# A handshake that takes longer is aborted.
handshake_seconds_max = {handshake_seconds_max}
# Connections without a complete handshake: in total, and from one address, behind which a whole fleet may come back at
# once. Most of them wait for their turn. In a full listener the address that holds most gives way.
half_open_max = {half_open_max}
half_open_per_address_max = {half_open_per_address_max}
# Open connections to each of the est and http listeners: in total, and from one address. Idle ones give way.
http_connections_max = {http_connections_max}
http_connections_per_address_max = {http_connections_per_address_max}
# New connections a second from one address to each listener, with a burst of ten times as many. 0: no limit, here and
# below. Eight times as many where a client has authenticated before, as in a fleet behind one address.
connections_per_address_per_second = {connections_per_address_per_second}
# Requests a second to each of est and http: from one address, and with one certificate or token. Beyond it: 429.
requests_per_address_per_second = {requests_per_address_per_second}
requests_per_credential_per_second = {requests_per_credential_per_second}
# Consecutive refusals (401, 403) of one certificate or token before it must wait: a second, then doubling each time.
failures_per_credential_max = {failures_per_credential_max}
failure_backoff_seconds_max = {failure_backoff_seconds_max}

[crl]
# Seconds from a revocation until a CRL with it is published.
max_delay = {crl_max_delay}
# Hours from thisUpdate to nextUpdate; each CRL is signed again after half of them.
hours = {crl_hours}
# CRLs of each issuing CA among which certificates are shared out by serial number; takes a url. More of them keep each
# small: a certificate names its own. The number may grow: earlier ones stay published.
shards = {crl_shards}
# true: also a delta CRL of each CA, with what has changed in the last `hours`; takes a url.
delta = {crl_delta}

[retention]
# Days after which records move from the registry to a file in archive/. 0: never.
# Events. Of several nodes on one database, one archives for all of them.
events_days = {events_days}
# Audit rows, once sealed; `fleet retention check` verifies them in the archive too.
audit_days = {audit_days}
# Certificates, counted from their notAfter. A device in service keeps its last one.
expired_credentials_days = {expired_credentials_days}

[approval]
# Maximum number of requests for a first certificate that wait for approval, where a model allows that: in total, for
# one model, and from one address (of IPv6, one /64).
approval_requests_max = {approval_requests_max}
approval_per_model_max = {approval_per_model_max}
approval_per_address_max = {approval_per_address_max}
# Days after which a request is deleted, counted anew from the operator's decision.
approval_days = {approval_days}
# Days after which a request for a device that is not registered is deleted, counted from the last time it was sent.
approval_stranger_days = {approval_stranger_days}
# Retry-After of a waiting request at first; it grows with the age of the request, to 15 minutes.
approval_ask_again_seconds = {approval_ask_again_seconds}

[upstream]
# How the gateway proves itself to an external broker (upstream in [gateway]). Files are relative to this directory.
# The CAs that may have signed the broker's certificate, of mqtts://: a PEM file, or "system".
ca = {upstream_ca}
# The gateway's own certificate (a PEM chain) and key (PEM, mode 600), of mqtts://; "": none.
certificate = {upstream_certificate}
key = {upstream_key}
# A file (mode 600) with the password, in its first line, that goes with each device's user name; "": none.
password_file = {upstream_password_file}
# true: the CONNECT of MQTT 5.0 says who the device is in user properties: fleet-device, fleet-model and fleet-serial.
user_properties = {upstream_user_properties}
# true: each connection begins with a PROXY header of version 2: the device's address, TLS version and id (as CN).
proxy_v2 = {upstream_proxy_v2}
# true: no topic, filter, will or device id may have a dot. RabbitMQ, which takes it for a slash, needs that.
refuse_dots = {upstream_refuse_dots}

[dynamic_security]
# A mosquitto that devices connect to directly: its dynamic-security plugin is kept equal to the registry's models and
# devices. "mqtts://HOST:PORT", or "mqtt://127.0.0.1:PORT" on this machine; or "off". See dynamic_security/README.md.
broker = {dynsec_broker}
# The plugin's administrator, whose name no device can have as its id; a file (mode 600, relative to this folder) with
# the password.
user = {dynsec_user}
password_file = {dynsec_password_file}
# CAs that the broker is verified against: "system", or a PEM file relative to this folder.
ca = {dynsec_ca}

[webhook]
# CAs that the models' webhooks are verified against: "system", or a PEM file relative to this folder.
webhook_ca = {webhook_ca}
# A webhook that takes longer counts as failed, and the enrollment is refused.
webhook_seconds_max = {webhook_seconds_max}
# Concurrent calls to one URL, of each worker; beyond it, devices get 503 and Retry-After.
webhook_at_once_max = {webhook_at_once_max}
# Whether a webhook may have a loopback or link-local address: services of this host, or of a cloud, trust
# any client that reaches them there.
webhook_local = {webhook_local}

[forward_auth]
# Where a reverse proxy of this machine asks whether the device whose certificate it saw may go on: "off",
# "unix:PATH" (relative to this folder), or HOST:PORT of a loopback address, which needs a secret.
address = {forward_auth}
# A file of mode 600, relative to this folder, with the secret that the proxy sends as X-Proxy-Secret; a second line is
# accepted too, for a change. "" for none: then access to the Unix socket is the proof.
secret_file = {forward_auth_secret_file}
# The group that may use the Unix socket, as the proxy's; "" for this user alone.
group = {forward_auth_group}

[broker_auth]
# Where a RabbitMQ or EMQX of this machine asks about devices whose TLS it ends itself: "off", HOST:PORT of a loopback
# address, which needs a secret, or "unix:PATH" (relative to this folder) where a proxy is in between.
address = {broker_auth}
# A file of mode 600, relative to this folder, with the secret that the broker sends; a second line is accepted too, for
# a change.
secret_file = {broker_auth_secret_file}
# The group that may use the Unix socket; "" for this user alone.
group = {broker_auth_group}
# The only virtual host that devices may use in RabbitMQ.
rabbitmq_vhost = {rabbitmq_vhost}

[broker_sessions]
# Such a broker's API, where sessions of devices are ended that may not go on: "off", rabbitmq+https://HOST:PORT or
# emqx+https://HOST:PORT, or either with http of a loopback address.
broker = {broker_sessions}
# A file of mode 600, relative to this folder: USER:PASSWORD of an administrator, or of EMQX an API key and its secret.
password_file = {broker_sessions_password_file}
# CAs of the API's certificate: "system", or a PEM file, relative to this folder.
ca = {broker_sessions_ca}
"""


def render(settings: Settings) -> str:
    """The commented `fleet.toml` that says these settings, every one of them."""
    values = {each.name: _toml(getattr(settings, each.name)) for each in fields(settings)}
    return TEMPLATE.format(**values, broker_memory_max=BROKER_MEMORY_MAX)


def _toml(value: object) -> str:
    match value:
        case bool() | int() | float():
            return str(value).lower()
        case None:
            return f'"{OFF}"'
        case tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
