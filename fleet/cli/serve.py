"""`fleet serve`: run EST, the MQTT gateway and the API until SIGTERM."""

import gc
from pathlib import Path

import click
from msgspec.structs import replace

from fleet.cli import USUAL_GC
from fleet.cli.errors import CliError, attempting
from fleet.cli.options import FILE, Checked, home_option
from fleet.config.addresses import parse_address, parse_broker
from fleet.config.logs import configure_logging
from fleet.config.settings import parse_workers
from fleet.home.layout import open_home, settings_of
from fleet.runtime.serve import serve_until_stopped

ADDRESS = Checked("A:P", parse_address)


@click.command()
@home_option("it is what --url reaches")
@click.option(
    "--est", type=ADDRESS, help="Address of the EST listener, instead of fleet.toml's. Port 0: any free port."
)
@click.option("--mqtt", type=ADDRESS, help="Address of the MQTT gateway.")
@click.option("--http", type=ADDRESS, help="Address of the HTTP API.")
@click.option(
    "--upstream",
    type=Checked("URL", parse_broker),
    help="The broker: auto, mosquitto, embedded, mqtt://HOST:PORT, mqtts://HOST:PORT or unix:PATH.",
)
@click.option(
    "--workers",
    type=Checked("N", parse_workers),
    help="Processes that share the listeners, instead of fleet.toml's; auto (or 0): one for each core.",
)
@click.option(
    "--ready-file",
    type=FILE,
    help=(
        "Written atomically when all listeners of all workers are up: JSON with est, mqtt, http, ca_file, pid, and "
        "publish, wss, forward_auth and broker_auth where those listeners are on."
    ),
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Lowest level of the log lines on standard error.",
)
def serve(home: Path, ready_file: Path | None, log_level: str, **chosen: object) -> None:
    """Serve a fleet: EST enrollment, the MQTT gateway in front of a broker, and the HTTP API, all on mutual TLS.

    Behind the gateway it starts mosquitto on a private socket if that is installed, and else an embedded broker (MQTT
    3.1.1 only). SIGTERM ends connections in order and exits within 5 seconds, or that long after `stop_drain_seconds`;
    SIGHUP takes up what it can of fleet.toml, certificates, CAs and secrets without ending a session; SIGUSR2 replaces
    the workers, of which several or a supervised one can be. README "Signals" says what each takes up.

    With --workers N, a supervisor starts N processes that share the listeners, the registry and the broker, and
    restarts one that exits. Send signals to the supervisor, whose pid is in the ready file. Limits in fleet.toml
    apply to each worker.

    \b
    Examples:
      fleet serve --home ./home --ready-file ready.json
      fleet serve --home ./home --workers auto
    """
    with attempting(f"serving '{home}'"):
        place = open_home(home.absolute())
        if not place.issuing_key.exists():
            problem = f"the key of the issuing CA is missing ({place.issuing_key})"
            raise CliError(f"serving '{home}'", problem, "Put it back from a backup")
        settings = replace(settings_of(place), **{name: value for name, value in chosen.items() if value is not None})
        gc.set_threshold(*USUAL_GC)
        configure_logging(log_level.upper(), settings.log_format)
        serve_until_stopped(place, settings, ready_file)
