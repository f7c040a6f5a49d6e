"""Upstream factory: the broker for the value of `--upstream`.

upstream = await start_upstream("auto", run_dir, models)

auto                mosquitto when it is installed, the embedded broker otherwise
mosquitto           run by us: private and supervised (mosquitto.py)
embedded            amqtt in a child process, MQTT 3.1.1 only (embedded.py)
mqtt://HOST:PORT    any broker or cluster that trusts the gateway's user names
mqtts://HOST:PORT   the same with TLS
unix:PATH           the same on a Unix socket
"""

from collections.abc import Sequence
from pathlib import Path

from fleet.config.addresses import Broker, BrokerKind
from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.servers.gateway.broker.embedded import Embedded
from fleet.servers.gateway.broker.mosquitto import SAVE_SECONDS, SAVE_SECONDS_DURABLE, Mosquitto, mosquitto_program
from fleet.servers.gateway.broker.process import OwnBroker
from fleet.servers.gateway.broker.upstream import AddressUpstream, SocketUpstream, Upstream, UpstreamAccess
from fleet.servers.gateway.limits.limits import DEFAULT_LIMITS, Limits


async def start_upstream(
    broker: Broker,
    run_dir: Path,
    models: Sequence[Model],
    limits: Limits = DEFAULT_LIMITS,
    *,
    durable: bool = False,
    access: UpstreamAccess | None = None,
) -> Upstream:
    """The Upstream for `broker`, started and ready when we run it. `run_dir` holds its socket and files.

    `access`: to an external broker. `durable`: it is saved so often that acknowledgements can wait for it.

    Raises: Invalid (`no-mosquitto`, `not-durable`). OSError, TimeoutError: it did not start.
    """
    program = mosquitto_program() if broker.kind in (BrokerKind.AUTO, BrokerKind.MOSQUITTO) else None
    if durable and program is None:
        raise Invalid(
            "not-durable",
            "durable = true needs our own mosquitto.",
            'Install mosquitto, and set upstream = "mosquitto"; an external broker has settings of its own.',
        )
    if (external := external_broker(broker, access)) is not None:
        return external
    if program is not None:
        save_seconds = SAVE_SECONDS_DURABLE if durable else SAVE_SECONDS
        return await Mosquitto.start(program, run_dir, models, limits, save_seconds)
    if broker.kind is BrokerKind.MOSQUITTO:
        raise Invalid("no-mosquitto", "mosquitto is not installed.", "Install it, or use --upstream embedded.")
    return await Embedded.start(run_dir)


def external_broker(broker: Broker, access: UpstreamAccess | None) -> Upstream | None:
    """The Upstream for a broker that we do not run; None for one that we do."""
    if broker.address is not None:
        return AddressUpstream(broker.address.host, broker.address.port, access)
    return SocketUpstream(Path(broker.path), access) if broker.kind is BrokerKind.SOCKET else None


def not_saved(upstream: Upstream) -> str:
    """Why our own mosquitto can't save what it holds; "" while it can, and for any other broker."""
    return upstream.not_saved if isinstance(upstream, Mosquitto) else ""


def shared_socket(upstream: Upstream) -> Path | None:
    """The socket by which our other processes reach the broker that `upstream` runs; None for an external broker."""
    return upstream.socket if isinstance(upstream, OwnBroker) else None
