"""The `fleet` command. Each subcommand lives in a module of its own and is loaded only when it is called."""

import importlib

import click
from click.exceptions import NoSuchCommand

# name: (module, what `fleet --help` says of it; the module's own docstring says the rest)
COMMANDS = {
    "init": ("fleet.cli.init", "Make a fleet's home: CAs, server certificate, registry."),
    "serve": ("fleet.cli.serve", "Serve EST, the MQTT gateway and the API."),
    "demo": ("fleet.cli.demo", "Watch a whole fleet live for a few seconds, on this machine."),
    "model": ("fleet.cli.model", "Kinds of devices: certificates and topics."),
    "device": ("fleet.cli.device", "Devices: register, look up, suspend, revoke."),
    "tenant": ("fleet.cli.tenant", "Tenants: models whose certificates an issuing CA of their own signs."),
    "token": ("fleet.cli.token", "One-time tokens for a first enrollment."),
    "request": ("fleet.cli.request", "Devices that wait for approval: list, approve, deny."),
    "webhook": ("fleet.cli.webhook", "Webhooks that have a say before a first certificate: their key."),
    "station": ("fleet.cli.station", "Factory stations and their certificates."),
    "claim": ("fleet.cli.claim", "Claim certificates, shared by a batch of new devices."),
    "anchor": ("fleet.cli.anchor", "Makers' CAs (IEEE 802.1AR), and whom they vouch for."),
    "operator": ("fleet.cli.operator", "People and programs that use the admin API."),
    "status": ("fleet.cli.status", "What the registry holds, and how its server is doing."),
    "audit": ("fleet.cli.audit", "Who did what; proof that nobody edited it."),
    "renewal": ("fleet.cli.renewal", "When devices renew; campaigns for an incident."),
    "forecast": ("fleet.cli.forecast", "What ends when: certificates by week, and what to prepare for."),
    "backup": ("fleet.cli.backup", "Save a home into one file while it is served; check it."),
    "restore": ("fleet.cli.backup", "Make a home of a backup, with every revocation since."),
    "retention": ("fleet.cli.retention", "How long the registry keeps things; archives."),
    "db": ("fleet.cli.db", "The registry's database: SQLite or PostgreSQL."),
    "ca": ("fleet.cli.ca", "The fleet's certificate authorities."),
    "cert": ("fleet.cli.cert", "Look into certificate files and convert them."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: `fleet cert` needs no server library."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        try:
            command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"The Python module {error.name} is missing. Install the server's part: pip install '.[server]'."
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_FLEET_COMPLETE=bash_source fleet)" (zsh_source, fish_source).',
)
@click.version_option(package_name="fleet-front-door", prog_name="fleet")
def main() -> None:
    """Enroll devices, let them in over mutual TLS, and put them out again.

    \b
    Start here:
      fleet demo                           a whole fleet on this machine, in seconds
      fleet init HOME                      a home of your own
      fleet serve --home HOME              serve it
      fleet token create --device cam-7    a one-time token for a device

    FLEET_HOME stands in for --home. From afar, commands take --url, --cert and --ca in its place, and say the same.
    What works on the home's own files does so at the home alone, and says so: init, serve, db, backup, restore,
    retention run, audit seal, and whatever makes or ends the key of a CA.

    Exit codes: 0 done, 1 refused or failed, 2 used wrongly.
    """
