"""`fleet-station`: what the operator at the line runs."""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import click
from cryptography import x509

from firmware_tools.station.errors import LinkError, StationError, Stopped
from firmware_tools.station.ledger import Ledger
from firmware_tools.station.printing import plain, print_object, print_table
from fleet.est_client.arguments import KEY_TYPES, check_device_id, parse_host_port
from fleet.est_client.client import EstClient
from fleet.est_client.errors import BadConfig, ClientError, EstBusy, EstError, EstUnreachable, EstUntrusted

try:
    from firmware_tools.station.run import ProvisioningJob, ProvisioningRun, failure_code, station_name
    from firmware_tools.station.serial_link import BAUD_DEFAULT, SerialLink, ports
    from fleet.wire.serial.dialogue.errors import DialogueError, NoAnswer
    from fleet.wire.serial.dialogue.events import ProvisioningOrder, Timing
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the station's part: pip install '.[station]'."
    ) from error

EXIT_REFUSED = 1
EXIT_NO_BOARD = 3
EXIT_NO_AUTHORITY = 4
EXIT_STOPPED = 130  # as a shell has it for SIGINT
MQTT_PORT_DEFAULT = 8883
_TIMING = Timing()

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON for programs.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fleet-front-door", prog_name="fleet-station")
def main() -> None:
    """Provision boards at the factory: a key made on the board, a certificate from the fleet, proof of both."""


@main.command("ports")
@_output
def list_ports(output: str) -> None:
    """List the serial ports of this machine."""
    print_table(ports(), ("port", "description", "usb", "usb_serial"), output)


@main.command()
@click.option("--port", required=True, help="The board's serial port, or a URL of pyserial's (rfc2217://, socket://).")
@click.option("--est", "est_url", required=True, help="The fleet's EST server: https://HOST:PORT.")
@click.option("--cert", required=True, type=_FILE, help="This station's certificate (PEM).")
@click.option("--key", required=True, type=_FILE, help="Its key (PEM).")
@click.option("--ca", required=True, type=_FILE, help="The root by which the EST server is known (PEM).")
@click.option("--device-id", required=True, help="What the board shall be called.")
@click.option("--model", default="", help="The fleet's model. Needed when the station builds several.")
@click.option("--mqtt", default="", help="Where the device will connect, HOST:PORT.  [default: the EST host, 8883]")
@click.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    default=KEY_TYPES[0],
    show_default=True,
    help="The key that the board makes. The fleet's model must allow it.",
)
@click.option("--hardware-serial", default="", help="The serial number that the board must have, from its label.")
@click.option("--board-model", default="", help="The model that the board must say it is.")
@click.option("--replace", is_flag=True, help="Let the board give up another identity that it holds.")
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path), help="File to which each outcome is added.")
@click.option("--baud", type=click.IntRange(1200), default=BAUD_DEFAULT, show_default=True, help="Speed of the line.")
@click.option("--timeout", type=click.FloatRange(1), default=180.0, show_default=True, help="Seconds for it all.")
@click.option(
    "--retransmit", type=click.FloatRange(0.05, 60), default=_TIMING.retransmit, help="Seconds, each request."
)
@_output
def provision(
    port: str,
    est_url: str,
    cert: Path,
    key: Path,
    ca: Path,
    device_id: str,
    model: str,
    mqtt: str,
    key_type: str,
    hardware_serial: str,
    board_model: str,
    replace: bool,
    ledger: Path | None,
    baud: int,
    timeout: float,
    retransmit: float,
    output: str,
) -> None:
    """Provision the board on a port. Safe to run again after any failure.

    \b
    Example:
      fleet-station provision --port /dev/ttyUSB0 --device-id pump-7 --model pump --est https://HOST:8443 \\
        --cert station/station.pem --key station/station.key --ca station/ca.pem --ledger ledger.jsonl

    \b
    Exit codes: 0 provisioned; 1 refused by the board, the EST server or a check;
    2 used wrongly; 3 no answer from the board, or no port; 4 the EST server
    cannot be reached or trusted; 130 stopped.
    """
    try:
        host, mqtt_port = parse_host_port(mqtt) if mqtt else (urlsplit(est_url).hostname or "", MQTT_PORT_DEFAULT)
        name = station_name(x509.load_pem_x509_certificates(cert.read_bytes()))
        job = ProvisioningJob(
            order=ProvisioningOrder(
                check_device_id(device_id),
                key_type=key_type,
                station=name,
                replace=replace,
                hardware_serial=hardware_serial,
                board_model=board_model,
            ),
            model=model,
            est_url=est_url,
            mqtt_host=host,
            mqtt_port=mqtt_port,
            port=port,
            timeout_seconds=timeout,
        )
        authority = EstClient(est_url, ca, certificate=(cert, key))
    except (BadConfig, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except (ClientError, OSError) as error:
        raise SystemExit(_complain(str(error), "", EXIT_REFUSED)) from error
    try:
        with SerialLink(port, baud) as link:
            rows = Ledger(ledger) if ledger else None
            run = ProvisioningRun(
                job, link, authority, ledger=rows, say=_progress(), timing=Timing(retransmit=retransmit)
            )
            # A line that is shut down ends a run as Ctrl-C does: the board is told, the ledger has its row.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                print_object(asdict(run.provision()), output)
            except (DialogueError, EstError, StationError):
                if output == "json":
                    print_object(asdict(run.row), output)
                raise
    except (DialogueError, EstError, StationError) as error:
        advice = getattr(error, "advice", "")
        raise SystemExit(_complain(f"{failure_code(error)}: {error.message}", advice, exit_code(error))) from error


def exit_code(error: DialogueError | EstError | StationError) -> int:
    """What the process ends with: whether to look at the board, the network or the order."""
    match error:
        case Stopped(code="stopped"):
            return EXIT_STOPPED
        case NoAnswer() | LinkError() | Stopped():
            return EXIT_NO_BOARD
        case EstUnreachable() | EstUntrusted() | EstBusy():
            return EXIT_NO_AUTHORITY
        case _:
            return EXIT_REFUSED


def _progress() -> Callable[[str, str], None]:
    started = time.monotonic()

    def say(step: str, text: str) -> None:
        print(f"{time.monotonic() - started:7.2f} s  {step:<8} {plain(text)}", file=sys.stderr, flush=True)

    return say


def _complain(problem: str, advice: str, code: int) -> int:
    print(plain(f"Error: {problem} {advice}".rstrip()), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
