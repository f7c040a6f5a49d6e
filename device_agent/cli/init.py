"""`device-agent init`: a device's home."""

import shlex
from pathlib import Path

import click

from device_agent.cli.options import pass_home, usage_errors
from device_agent.config.agent_config import NewHome, must_be_free, write_config
from device_agent.config.endpoints import parse_endpoint
from device_agent.store.atomic_files import read_file
from fleet.est_client.arguments import check_device_id, check_printable
from fleet.est_client.tls import client_context
from fleet.est_client.url import parse_est_url
from fleet.wire.ca_file import ca_pem


@click.command()
@click.option("--device-id", required=True, help="The device's id in the fleet's registry.")
@click.option(
    "--est", "est_url", required=True, metavar="URL", help="EST server: https://HOST:PORT[/.well-known/est/LABEL]."
)
@click.option("--mqtt", required=True, metavar="HOST:PORT", help="The fleet's MQTT gateway; or wss://HOST/PATH.")
@click.option(
    "--ca",
    "ca_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The fleet's root CA (PEM, DER or PKCS#7); it is copied into the home as PEM.",
)
@click.option("--hardware-serial", default="", help="serialNumber of the certificate's subject.")
@click.option("--spool", is_flag=True, help="Store messages in the home until they are delivered.")
@pass_home
def init(home: Path, device_id: str, est_url: str, mqtt: str, ca_file: Path, hardware_serial: str, spool: bool) -> None:
    """Create the device's home. Refused if it exists."""
    with usage_errors():
        check_device_id(device_id)
        check_printable(hardware_serial, "The hardware serial")
        parse_est_url(est_url)
        server = parse_endpoint(mqtt)
        client_context(ca_file)
        anchors = ca_pem(read_file(ca_file)).encode()
    must_be_free(home)
    path = write_config(
        home, NewHome(device_id, est_url, server.host, server.port, anchors, hardware_serial, spool, server.path)
    )
    click.echo(f"Wrote {path}. Next: device-agent enroll --home {shlex.quote(str(home))} --token-file FILE")
