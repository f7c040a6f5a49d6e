"""`fleet demo`: a whole fleet on this machine, a line a step."""

import json
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from fleet.cli.errors import CliError
from fleet.cli.output import output_option

NAME_WIDTH = 8
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C has ended


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running and print how to look around; Ctrl-C ends it.")
@click.option(
    "--upstream",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="The broker behind the gateway; auto: mosquitto when it is installed.",
)
@output_option
def demo(keep: bool, upstream: str, output: str) -> None:
    """Watch a whole fleet live for a few seconds: enroll, connect, publish, rotate, revoke.

    Everything happens in a temporary folder and on free ports, with the same programs that you would use, and real
    certificates, TLS and MQTT. mosquitto is used when it is installed; otherwise an embedded broker is.

    \b
    Exit code 0 only if every step held. With -o json, one object a line:
      {"step": "publish", "ok": true, "seconds": 0.41, ...}
    """
    try:
        from fleet.demo.harness import Stage, StepFailed
        from fleet.demo.steps import STEPS
    except ModuleNotFoundError as error:
        raise CliError(
            "running the demo", f"{error.name} is missing", "Install everything: pip install '.[all]'"
        ) from error

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shown = False
    stage = Stage(Path(tempfile.mkdtemp(prefix="fleet-demo-")), upstream)
    try:
        for step in STEPS:
            name, started = step.__name__, time.monotonic()
            try:
                facts = step(stage)
            except (StepFailed, OSError, KeyError, ValueError) as error:
                problem = str(error) or type(error).__name__
                _report(output, name, False, started, {"error": problem})
                where = f"Look into {stage.root}" if keep else "Run it again with --keep, and look into its folder"
                raise CliError(f"demo step {name}", problem, where) from error
            _report(output, name, True, started, facts)
        shown = True
        if keep:
            _look_around(stage)
        else:
            click.echo("Every step held. Look around in it: --keep. A home of your own: fleet init HOME", err=True)
    except KeyboardInterrupt:
        click.echo("Ended.", err=True)
        if not shown:
            raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        stage.close()
        if keep:
            click.echo(f"The files stay in {stage.root}", err=True)
        else:
            shutil.rmtree(stage.root, ignore_errors=True)


def _report(output: str, name: str, ok: bool, started: float, facts: dict[str, Any]) -> None:
    seconds = round(time.monotonic() - started, 2)
    if output == "json":
        click.echo(json.dumps({"step": name, "ok": ok, "seconds": seconds, **facts}))
        return
    mark = click.style("ok  ", fg="green") if ok else click.style("FAIL", fg="red")
    said = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in facts.items()}
    words = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in said.items())
    click.echo(f"{mark} {name:<{NAME_WIDTH}} {seconds:6.2f} s  {words}")


def _look_around(stage: Any) -> None:
    ready = stage.ready()
    home, device = shlex.quote(str(stage.home)), shlex.quote(str(stage.device_home("cam-7")))
    click.echo(
        f"""
It runs until you press Ctrl-C; its files stay. In another terminal:

{_activate()}  export FLEET_HOME={home}
  fleet device list
  fleet audit list --limit 20
  device-agent --home {device} status
  device-agent --home {device} send 'devices/{{id}}/up/hello' world --wait

EST {ready["est"]}, MQTT {ready["mqtt"]}, HTTP {ready["http"]}
""",
        err=True,
    )
    signal.pause()


def _activate() -> str:
    """The line that puts the programs on a shell's PATH, when they stand in a virtual environment."""
    if sys.prefix == sys.base_prefix:
        return ""
    return f"  . {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}\n"
