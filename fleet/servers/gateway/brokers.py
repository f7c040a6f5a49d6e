"""Which broker stands behind the gateway, by the name that a person gives it.

upstream = await start_upstream("auto", run_dir, models)

auto                mosquitto when it is installed, the embedded broker otherwise
mosquitto           our own, private and supervised (mosquitto.py)
embedded            amqtt in a child process, MQTT 3.1.1 only (embedded.py)
mqtt://HOST:PORT    any broker or cluster that takes the user name's word for who connects
unix:PATH           the same on a Unix socket
"""

from collections.abc import Sequence
from pathlib import Path

from fleet.config.settings import Broker, BrokerKind
from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.servers.gateway.embedded import Embedded
from fleet.servers.gateway.mosquitto import Mosquitto, mosquitto_program
from fleet.servers.gateway.upstream import AddressUpstream, SocketUpstream, Upstream


async def start_upstream(broker: Broker, run_dir: Path, models: Sequence[Model]) -> Upstream:
    """`broker`, started and answering when it is ours. `run_dir` holds its socket and files.

    Raises: Invalid (`no-mosquitto`). OSError, TimeoutError: it did not start.
    """
    if broker.address is not None:
        return AddressUpstream(broker.address.host, broker.address.port)
    if broker.kind is BrokerKind.SOCKET:
        return SocketUpstream(Path(broker.path))
    program = None if broker.kind is BrokerKind.EMBEDDED else mosquitto_program()
    if program is not None:
        return await Mosquitto.start(program, run_dir, models)
    if broker.kind is BrokerKind.MOSQUITTO:
        raise Invalid("no-mosquitto", "mosquitto is not installed.", "Install it, or use --upstream embedded.")
    return await Embedded.start(run_dir)


def shared_socket(upstream: Upstream) -> Path | None:
    """Where other processes of ours reach the broker that `upstream` has started; None when it is somebody else's."""
    return upstream.socket if isinstance(upstream, Mosquitto | Embedded) else None
