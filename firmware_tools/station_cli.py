"""`fleet-station`: the operator's command at the factory line."""

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
from fleet.config.streams import Program
from fleet.est_client.arguments import (
    AGENT_KEY_TYPES,
    MQTT_PORT_DEFAULT,
    check_device_id,
    check_printable,
    parse_host_port,
)
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import (
    BadConfig,
    BadCredentials,
    EstAlerted,
    EstBusy,
    EstError,
    EstRefused,
    EstUnreachable,
    EstUntrusted,
)

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
EXIT_STOPPED = 130  # as a shell reports SIGINT
CERTIFICATES_SIZE_MAX = 65_536  # of a station, with its chain
_TIMING = Timing()

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fleet-front-door", prog_name="fleet-station")
def main() -> None:
    """Provision boards in the factory: key generation on the board, enrollment, proof of possession.

    Shell completion: eval "$(_FLEET_STATION_COMPLETE=bash_source fleet-station)" (zsh_source, fish_source).
    """


@main.command("ports")
@_output
def list_ports(output: str) -> None:
    """List the serial ports of this machine."""
    try:
        print_table(ports(), ("port", "description", "usb", "usb_serial"), output)
    except LinkError as error:
        raise SystemExit(_complain(error.message, error.advice, EXIT_NO_BOARD)) from error


@main.command()
@click.option("--port", required=True, help="Serial port of the board, or a URL of pyserial (rfc2217://, socket://).")
@click.option("--est", "est_url", required=True, help="EST server of the fleet: https://HOST:PORT.")
@click.option("--cert", required=True, type=_FILE, help="Certificate of this station (PEM).")
@click.option("--key", required=True, type=_FILE, help="Private key of this station (PEM).")
@click.option("--ca", required=True, type=_FILE, help="Root CA of the EST server (PEM).")
@click.option("--device-id", required=True, help="Device id of the board.")
@click.option("--model", default="", help="Model in the fleet. Required if the station builds several.")
@click.option("--mqtt", default="", help="MQTT gateway for the device, HOST:PORT.  [default: the EST host, 8883]")
@click.option(
    "--key-type",
    type=click.Choice(AGENT_KEY_TYPES),
    default=AGENT_KEY_TYPES[0],
    show_default=True,
    help="Type of the key that the board generates. The fleet's model must allow it.",
)
@click.option("--hardware-serial", default="", help="Expected hardware serial number, as on the board's label.")
@click.option("--board-model", default="", help="Expected model, as the board reports it.")
@click.option("--replace", is_flag=True, help="Replace another identity that the board holds.")
@click.option(
    "--ledger", type=click.Path(dir_okay=False, path_type=Path), help="File to which each outcome is appended."
)
@click.option("--baud", type=click.IntRange(1200), default=BAUD_DEFAULT, show_default=True, help="Speed of the line.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="For the whole run.",
)
@click.option(
    "--retransmit",
    type=click.FloatRange(0.05, 60),
    default=_TIMING.retransmit,
    metavar="SECONDS",
    help="Interval at which an unanswered request is retransmitted.",
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
    """Provision the board on a port. Can be repeated after any failure.

    \b
    Example:
      fleet-station provision --port /dev/ttyUSB0 --device-id pump-7 --model pump --est https://HOST:8443 \\
        --cert station/station.pem --key station/station.key --ca station/ca.pem --ledger ledger.jsonl

    \b
    Exit codes: 0 provisioned; 1 refused by the board, the EST server or a check;
    2 wrong use; 3 no answer from the board, or no port; 4 the EST server
    cannot be reached or trusted; 130 interrupted.
    """
    try:
        check_printable(model, "The model")
        progress = _progress()
        policy = Policy(report=lambda text: progress("wait", text))
        est = EstClient(est_url, ca, certificate=(cert, key), policy=policy)
        host, mqtt_port = parse_host_port(mqtt) if mqtt else (urlsplit(est_url).hostname or "", MQTT_PORT_DEFAULT)
        order = ProvisioningOrder(
            check_device_id(device_id), key_type, _station_name(cert), replace, hardware_serial, board_model
        )
    except (BadConfig, BadCredentials) as error:
        raise click.UsageError(f"{error.message} {error.advice}".rstrip()) from error
    job = ProvisioningJob(order, model, est_url, host, mqtt_port, port, timeout, Timing(retransmit=retransmit))
    raise SystemExit(_provision(job, baud, est, Ledger(ledger) if ledger else None, output, progress))


def _provision(
    job: ProvisioningJob,
    baud: int,
    est: EstClient,
    ledger: Ledger | None,
    output: str,
    progress: Callable[[str, str], None],
) -> int:
    """Run `job`, print its outcome, and return the exit code."""
    try:
        if ledger is not None:
            ledger.open()  # first: no certificate is issued that could not be written down
        with SerialLink(job.port, baud) as link:
            run = ProvisioningRun(job, link, est, ledger=ledger, report=progress)
            # SIGTERM ends a run like Ctrl-C: the board gets an Abort, the ledger a row.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                print_object(asdict(run.provision()), output)
            except (DialogueError, EstError, StationError):
                if output == "json":
                    print_object(asdict(run.row), output)
                raise
    except (DialogueError, EstError, StationError) as error:
        return _complain(f"{failure_code(error)}: {error.message}", advice_on(error), exit_code(error))
    return 0


def _station_name(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return station_name(x509.load_pem_x509_certificates(opened.read(CERTIFICATES_SIZE_MAX)))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{file} cannot be read as a PEM certificate.") from error


def advice_on(error: DialogueError | EstError | StationError) -> str:
    """The next step at a factory line: a station has no token, which the EST client's advice on a refusal is about."""
    match error:
        case EstAlerted(advice=advice) | EstRefused(status=0 | 401 | 403, advice=advice) if advice:
            return (
                "Is --cert the certificate of a station, neither expired nor revoked? "
                "The fleet's engineer makes a new one: fleet station add."
            )
        case _:
            return str(getattr(error, "advice", ""))


def exit_code(error: DialogueError | EstError | StationError) -> int:
    """The exit code: whether to check the board, the network or the order."""
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
