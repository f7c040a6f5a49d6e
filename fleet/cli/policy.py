"""`fleet policy`: what devices may publish and subscribe to."""

import sys

import click

from fleet.cli.errors import attempting
from fleet.cli.options import client_option
from fleet.cli.output import output_option, print_value
from fleet.cli.parameters import DEVICE_ID, size_in_bytes
from fleet.client.client import Client, path_of
from fleet.config.mqtt_bounds import PACKET_SIZE_MAX
from fleet.config.streams import EXIT_FAILED


@click.group()
def policy() -> None:
    """Topic policy: what devices may publish and subscribe to."""


@policy.command()
@client_option
@click.argument("device_id", type=DEVICE_ID, metavar="DEVICE")
@click.argument("action", type=click.Choice(["publish", "subscribe"]))
@click.argument("topic")
@click.option(
    "--qos",
    type=click.IntRange(0, 2),
    default=0,
    show_default=True,
    help="QoS that it has.",
)
@click.option("--retain", is_flag=True, help="A message with RETAIN.")
@click.option(
    "--size",
    type=size_in_bytes(PACKET_SIZE_MAX * 2),
    default="0",
    metavar="BYTES",
    help="Bytes of the packet, as --max-packet-size of a model counts them: topic, properties and payload.",
)
@output_option
def test(client: Client, device_id: str, action: str, topic: str, output: str, **said: int) -> None:
    """Ask whether the gateway lets DEVICE publish to TOPIC, or subscribe to it, as its state and model are now.

    Prints the rule that decides, as written and as it is for the device, where it comes from, and what to change. Exits
    with 1 when it is denied.

    \b
    Example:
      fleet policy test cam-7 publish devices/cam-7/up/state --qos 1
    """
    if action == "subscribe" and (said["retain"] or said["size"]):
        raise click.UsageError("--retain and --size are those of a message: publish.")
    query = {"action": action, "topic": topic, **said, "retain": "true" if said["retain"] else None}
    with attempting(f"testing the policy of device '{device_id}'"):
        found = client.get(path_of("/v1/devices/{}/policy-test", device_id), **query)
    print_value(found, output, {key: None if value == "" else value for key, value in found.items()})
    if not found["allowed"]:
        sys.exit(EXIT_FAILED)
