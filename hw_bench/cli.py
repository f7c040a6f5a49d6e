"""The command line of `hw-bench`."""

import os
import signal
from pathlib import Path
from types import FrameType

import click

from fleet.cli.output import output_option, print_rows
from fleet.config.streams import Program, json_text

try:
    from hw_bench.peers.engine import POSTGRES, SQLITE
    from hw_bench.processes import BenchError
    from hw_bench.report import lines
    from hw_bench.scenarios.catalog import SCENARIOS
    from hw_bench.turns import Plan
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the bench's part: pip install '.[bench]'."
    ) from error

OWN_OPTIONS = {
    "devices": ("registry", "ocsp"),
    "kills": ("crash", "broker-crash"),
    "seed": ("crash", "broker-crash", "fleet-year", "reconnect-storm"),
    "cycles": ("soak",),
    "sessions": ("fanin", "idle", "storm", "revocation", "fleet-year", "reconnect-storm"),
    "keep": ("registry", "ocsp"),
    "qos": ("publish",),
    "picture": ("fleet-year", "reconnect-storm"),
    "database": ("workers", "revocation", "registry", "crash"),
}
"""Option -> the scenarios that accept it."""
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C has ended
_PLAN = Plan()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fleet-front-door", prog_name="hw-bench")
def main() -> None:
    """Benchmark the fleet's servers on this machine, beside comparable servers.

    \b
    hw-bench list                                        scenarios
    hw-bench run handshakes --seconds 1 --rounds 1       a quick look, a few seconds
    hw-bench run enroll                                  half a minute, figures to quote
    hw-bench run enroll -o json > enroll.json            the same values for programs

    The measured servers are real processes on one core, the load runs on another, and contenders take turns, so that
    drift of the machine affects all alike. Compare "per CPU second" on a machine that is shared, and ratios rather than
    absolute figures. Programs that are not installed (nginx, mosquitto, step-ca, PostgreSQL) are reported as missing.

    Exit codes: 0 measured, whether or not goals were reached; 1 the measurement failed; 2 wrong use; 130 interrupted.

    Shell completion: eval "$(_HW_BENCH_COMPLETE=bash_source hw-bench)" (zsh_source, fish_source).
    """
    # A run stops its servers when interrupted, by SIGTERM as by Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.pop("FLEET_DATABASE", None)  # each run creates its own homes and registries


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@main.command("list")
@output_option
def list_scenarios(output: str) -> None:
    """List the scenarios: name and description."""
    rows = [{"name": name, "description": one.description()} for name, one in SCENARIOS.items()]
    print_rows(("name", "description"), rows, output)


@main.command()
@click.argument("name", type=click.Choice(list(SCENARIOS)), metavar="NAME")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3600),
    default=_PLAN.seconds,
    show_default=True,
    help="Length of one turn; figures to quote need at least 3.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=1000),
    default=_PLAN.rounds,
    show_default=True,
    help="Number of turns of each contender.",
)
@click.option(
    "--devices",
    type=click.IntRange(min=1000, max=100_000_000),
    help=f"registry, ocsp: number of devices; ten million take 13 GB and half an hour.  [default: {_PLAN.devices}]",
)
@click.option(
    "--kills",
    type=click.IntRange(min=1, max=1_000_000),
    help=f"crash, broker-crash: number of processes to kill.  [default: {_PLAN.kills}]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="crash, broker-crash, fleet-year, reconnect-storm: repeat what happened in the run that printed this seed.",
)
@click.option(
    "--sessions",
    type=click.IntRange(min=2, max=10_000),
    help="fanin, idle, storm, revocation, fleet-year, reconnect-storm: number of connected devices.  "
    "[default: the scenario's own]",
)
@click.option(
    "--cycles",
    type=click.IntRange(min=1_000, max=1_000_000_000),
    help="soak: number of connections; 100,000 take ten minutes.  [default: 100,000]",
)
@click.option(
    "--database",
    type=click.Choice((SQLITE, POSTGRES)),
    help="workers, revocation, registry, crash: sqlite, or postgres in a private cluster.  [default: sqlite; for "
    "revocation, postgres if installed]",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="registry: keep the filled registry in the new folder DIR, or measure again the one kept there.",
)
@click.option("--qos", type=click.IntRange(0, 2), help="publish: QoS of the messages.  [default: 0 and 1, in turns]")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="fleet-year, reconnect-storm: write the curve of renewals, or of reconnects, to FILE, as SVG.",
)
@output_option
@click.pass_context
def run(
    context: click.Context,
    name: str,
    seconds: float,
    rounds: int,
    devices: int | None,
    kills: int | None,
    seed: int | None,
    sessions: int | None,
    cycles: int | None,
    database: str | None,
    keep: Path | None,
    qos: int | None,
    picture: Path | None,
    output: str,
) -> None:
    """Run the scenario NAME and print its report. Progress goes to standard error.

    The report has one row per contender (medians, minimum to maximum), the ratios between contenders round by round,
    goals with their verdicts, and what was checked besides. "crash" has no figures: it kills servers under load and
    fails if the registry is not complete and consistent afterwards.

    \b
    hw-bench run handshakes --seconds 1 --rounds 1
    hw-bench run registry --devices 1000000 --database postgres
    hw-bench run registry --devices 1000000 --keep /var/tmp/million
    hw-bench run crash --kills 1000 --seed 7
    hw-bench run fleet-year --picture renewals.svg
    """
    own: dict[str, object] = {"devices": devices, "kills": kills, "seed": seed, "sessions": sessions}
    own |= {"database": database, "keep": keep, "cycles": cycles, "qos": qos, "picture": picture}
    for option, value in own.items():
        if value is not None and name not in OWN_OPTIONS[option]:
            raise click.UsageError(f"--{option} applies to {', '.join(OWN_OPTIONS[option])}, not to {name}.")
    plan = Plan(
        seconds,
        rounds,
        devices or _PLAN.devices,
        kills or _PLAN.kills,
        seed,
        database or _PLAN.database,
        sessions,
        cycles,
        keep.resolve() if keep else None,
        qos,
        picture,
    )
    try:
        report = SCENARIOS[name].run(plan, lambda text: click.echo(text, err=True))
    except BenchError as error:
        raise click.ClickException(f"measuring {name}: {error}") from error
    except KeyboardInterrupt:
        click.echo("Interrupted; all started processes have ended.", err=True)
        context.exit(EXIT_INTERRUPTED)
    if output == "json":
        click.echo(json_text(report.as_json()))
    else:
        click.echo("\n".join(lines(report)))
