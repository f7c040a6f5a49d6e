"""The `device-agent` command. Each command lives in a module of its own and is loaded only when it is called."""

from pathlib import Path
from typing import Any

import click

from device_agent.cli.options import ARGUMENTS, home_option
from fleet.config.streams import LazyProgram, os_problem
from fleet.est_client.errors import ClientError

# name: (module, what `device-agent --help` says of it; the command's own docstring says the rest)
COMMANDS = {
    "init": ("device_agent.cli.init", "Create the device's home. Refused if it exists."),
    "enroll": ("device_agent.cli.enroll", "Generate a key and get the first certificate."),
    "run": ("device_agent.cli.run", "Connect, publish, and renew the certificate, until SIGTERM."),
    "status": ("device_agent.cli.status", "Show the enrollment, the certificate's expiry, and the agent's connection."),
    "renew": ("device_agent.cli.enroll", "Renew the certificate now."),
    "doctor": ("device_agent.cli.doctor", "Find out what is wrong, and what to do about it."),
    "deploy": ("device_agent.cli.deploy", "Run the hooks that have not deployed the certificate in use."),
    "send": ("device_agent.cli.messages", "Publish a message through the running agent."),
    "subscribe": ("device_agent.cli.messages", "Print, or pass to a command, the messages of a topic."),
    "request": ("device_agent.cli.messages", "Publish a request and print the response to it."),
    "bridge": ("device_agent.cli.bridge", "Set up another program's connection to the fleet, beside the agent's."),
    "emulate": ("device_agent.cli.emulate", "Emulate a board on a serial port, to be provisioned by fleet-station."),
    "service": ("device_agent.cli.service", "Install the agent as a hardened systemd service, or remove it."),
    "reset": ("device_agent.cli.reset", "Erase keys, certificates, messages and state, to give it away."),
    "rejected": ("device_agent.cli.rejected", "Show the messages that the server has refused."),
}
OF_BOARD = ("cbor2", "cobs", "serial")  # what the extra `board` brings, and a device does without


def missing_module(name: str | None) -> str:
    """What to tell where the module `name` is not installed: the extra that has it."""
    part, extras = ("board", "agent,board") if (name or "").partition(".")[0] in OF_BOARD else ("agent", "agent")
    return f"The Python module {name} is missing. Install the {part}'s part: pip install '.[{extras}]'."


class DeviceAgent(LazyProgram):
    """Errors are one plain line, with what to do about them."""

    commands_by_name = COMMANDS

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        given = tuple(args)  # what parses them takes them away
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClientError as error:
            raise click.ClickException(f"{error.message} {error.advice}".rstrip()) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(missing_module(error.name)) from error
        except TimeoutError as error:
            raise click.ClickException("The agent did not answer in time.") from error
        except BrokenPipeError:
            raise  # the reader of our output has closed it: the program ends silently
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{where}{os_problem(error)}.") from error


@click.group(cls=DeviceAgent, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@home_option(envvar="DEVICE_HOME")
@click.version_option(package_name="fleet-front-door", prog_name="device-agent")
def cli(home: Path | None) -> None:
    """Agent of one device: its key and certificate, and its MQTT connection over mutual TLS.

    \b
    First steps:
      device-agent init --home D --device-id cam-7 --est https://HOST:8443 --mqtt HOST:8883 --ca ca.pem
      device-agent enroll --home D --token-file TOKEN
      device-agent run --home D

    --home is accepted before and after the command.

    Exit codes: 0 done (status: healthy), 1 refused or failed (status: not healthy), 2 wrong use.

    Shell completion: eval "$(_DEVICE_AGENT_COMPLETE=bash_source device-agent)" (zsh_source, fish_source).
    """


def main() -> None:
    """The console script."""
    cli()
