"""`fleet session`: who is connected to the MQTT gateway; ending of sessions."""

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Row, output_option, print_rows
from fleet.cli.parameters import DEVICE_ID, MODEL
from fleet.cli.records import ids_of, print_each
from fleet.client.client import Client, path_of
from fleet.domain.model_rules import ModelKind

COLUMNS = (
    "device_id",
    "client_id",
    "state",
    "connected_at",
    "seen_at",
    "ended_at",
    "reason",
    "address",
    "mqtt",
    "node",
)


@click.group()
def session() -> None:
    """MQTT sessions: which devices are connected, since when, from where, and why others are not.

    Of each client id the newest session is kept. It is written within a second of its CONNECT and its end, and every
    five minutes while the device is heard. `unknown`: it was connected at a node that has not been heard from for a
    minute.
    """


@session.command("list")
@client_option
@click.option("--device", type=DEVICE_ID, help="Only sessions of this device.")
@click.option("--model", type=MODEL, help="Only sessions of devices of this model.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in ModelKind]), help="Only of devices, or only of applications."
)
@click.option("--node", metavar="NODE", help="Only sessions at this node, as the list names it.")
@click.option(
    "--connected/--disconnected", "is_connected", default=None, help="Only connected and unknown, or only disconnected."
)
@limit_option
@output_option
def list_(client: Client, is_connected: bool | None, limit: int | None, output: str, **where: str | None) -> None:
    """List sessions, by device id and client id.

    \b
    Example:
      fleet session list --model cam2 --connected
      fleet session list --kind application
    """
    connected = None if is_connected is None else str(is_connected).lower()
    with attempting("listing the sessions"):
        sessions = client.items("/v1/sessions", limit, **where, connected=connected)
        print_rows(COLUMNS, sessions, output, "There are no such sessions.")


@session.command()
@client_option
@ids_of(DEVICE_ID)
@output_option
def show(client: Client, ids: tuple[str, ...], output: str) -> None:
    """Show devices' sessions with everything that is known of them.

    \b
    Example:
      fleet session show cam-7
    """

    def ask(each: str) -> Row:
        found: Row = client.get(path_of("/v1/sessions/{}", each))
        return found

    print_each(ids, "showing the sessions of device '{}'", ask, output)


@session.command()
@client_option
@ids_of(DEVICE_ID)
@click.option("--client-id", metavar="ID", help="Only the session with this client id; all of the device's by default.")
@click.option(
    "--will/--no-will",
    default=False,
    help="The broker publishes the will, as of a lost device; not by default.",
)
@reason_option
@output_option
def kick(client: Client, ids: tuple[str, ...], client_id: str | None, *, will: bool, reason: str, output: str) -> None:
    """End devices' sessions at once, at whichever gateway they are.

    MQTT 5.0 gets DISCONNECT 0x98, administrative action. The device may connect again: to keep it out, suspend it
    (fleet device suspend). What the broker holds of a persistent session stays; with the --client-id of one that is not
    connected, it ends, and counts no more among the device's sessions.

    \b
    Examples:
      fleet session kick cam-7 --reason 'stuck since the update'
      fleet session kick cam-7 --client-id cam-7/old
    """
    body = {"client_id": client_id, "will": will, "reason": reason}

    def ask(each: str) -> Row:
        kicked: Row = client.post(path_of("/v1/sessions/{}/kick", each), body)
        if not kicked["client_ids"]:
            click.echo(f"No session of device {each} was open.", err=True)
        return kicked

    print_each(ids, "ending the sessions of device '{}'", ask, output)
