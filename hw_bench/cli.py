"""The `hw-bench` command."""

import json
import os
import signal
from pathlib import Path
from types import FrameType

import click

from fleet.cli.output import output_option, print_rows

try:
    from hw_bench.processes import BenchError
    from hw_bench.report import lines
    from hw_bench.scenarios.catalogue import SCENARIOS
    from hw_bench.turns import Plan
except ModuleNotFoundError as error:
    raise SystemExit(
        f"Error: The Python module {error.name} is missing. Install the bench's part: pip install '.[bench]'."
    ) from error

OWN_OPTIONS = {
    "devices": ("registry",),
    "kills": ("crash",),
    "seed": ("crash",),
    "sessions": ("revocation",),
    "keep": ("registry",),
    "database": ("workers", "revocation", "registry", "crash"),
}
"""Option -> the scenarios that it is for."""
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C has ended
_PLAN = Plan()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fleet-front-door", prog_name="hw-bench")
def main() -> None:
    """Measure the fleet's servers on this machine, beside their peers.

    \b
    hw-bench list                        what can be measured
    hw-bench run handshakes              a table
    hw-bench run handshakes -o json      the same for programs

    Servers run on one core, the load on another; contenders take turns. Programs that are not installed are left out by
    name. Exit codes: 0 measured, 1 failed, 2 used wrongly.
    """
    # A run stops its servers on the way out; SIGTERM takes the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.pop("FLEET_DATABASE", None)  # a measurement has homes of its own, with their registries in them


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@main.command("list")
@output_option
def list_scenarios(output: str) -> None:
    """What can be measured."""
    rows = [{"name": name, "description": one.description()} for name, one in SCENARIOS.items()]
    print_rows(("name", "description"), rows, output)


@main.command()
@click.argument("name", type=click.Choice(list(SCENARIOS)), metavar="NAME")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=3600),
    default=_PLAN.seconds,
    show_default=True,
    help="Length of one turn.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=1000),
    default=_PLAN.rounds,
    show_default=True,
    help="Turns of each contender.",
)
@click.option(
    "--devices",
    type=click.IntRange(min=1000, max=100_000_000),
    help=f"Of registry: devices in it. Ten million take 12 GB of disk and some minutes.  [default: {_PLAN.devices}]",
)
@click.option(
    "--kills",
    type=click.IntRange(min=1, max=1_000_000),
    help=f"Of crash: how many processes are killed.  [default: {_PLAN.kills}]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of crash: draw the same victims as the run that printed it.")
@click.option(
    "--sessions",
    type=click.IntRange(min=2, max=10_000),
    help=f"Of revocation: devices that are connected, and revoked.  [default: {_PLAN.sessions}]",
)
@click.option(
    "--database",
    metavar="ENGINE",
    help="Of workers, revocation, registry and crash: sqlite, or postgres, a cluster of the run's own.  [default: "
    "sqlite; of revocation, postgres if it is installed]",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Of registry: leave what was filled in DIR, a new folder; or measure again what an earlier run left there.",
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
    database: str | None,
    keep: Path | None,
    output: str,
) -> None:
    """Measure NAME and report. Progress goes to stderr.

    Whether goals were reached is in the report; the exit code says only whether the measurement could be taken. A run
    of crash has no goals: what does not hold after the kills fails it.

    \b
    hw-bench run handshakes --seconds 1 --rounds 1
    hw-bench run registry --devices 1000000 --database postgres
    hw-bench run registry --devices 1000000 --keep /var/tmp/million
    hw-bench run crash --kills 1000 --seed 7
    """
    own: dict[str, object] = {"devices": devices, "kills": kills, "seed": seed, "sessions": sessions}
    own |= {"database": database, "keep": keep}
    for option, value in own.items():
        if value is not None and name not in OWN_OPTIONS[option]:
            raise click.UsageError(f"--{option} is for {', '.join(OWN_OPTIONS[option])}, not for {name}.")
    plan = Plan(
        seconds,
        rounds,
        devices or _PLAN.devices,
        kills or _PLAN.kills,
        seed,
        database or _PLAN.database,
        sessions or _PLAN.sessions,
        keep.resolve() if keep else None,
    )
    try:
        report = SCENARIOS[name].run(plan, lambda text: click.echo(text, err=True))
    except BenchError as error:
        raise click.ClickException(f"measuring {name}: {error}") from error
    except KeyboardInterrupt:
        click.echo("Stopped; everything that was started has ended.", err=True)
        context.exit(EXIT_INTERRUPTED)
    if output == "json":
        click.echo(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        click.echo("\n".join(lines(report)))
