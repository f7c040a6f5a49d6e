"""The `fleet` command. Each subcommand lives in a module of its own and is loaded only when it is called."""

import gc
from typing import Any, NoReturn

import click
from click.exceptions import NoSuchCommand

from fleet.cli.options import location_options
from fleet.config.streams import LazyProgram

# name: (module, what `fleet --help` says of it; the module's own docstring says the rest)
COMMANDS = {
    "init": ("fleet.cli.init", "Create a fleet's home: CAs, server certificate, registry."),
    "serve": ("fleet.cli.serve", "Serve EST, the MQTT gateway and the API."),
    "demo": ("fleet.cli.demo", "Run a whole fleet for a few seconds on this machine."),
    "model": ("fleet.cli.model", "Device models: certificates and topics."),
    "device": ("fleet.cli.device", "Devices: register, look up, suspend, revoke."),
    "policy": ("fleet.cli.policy", "Topic policy: what a device may publish and subscribe to, and why."),
    "session": ("fleet.cli.session", "MQTT sessions: who is connected, since when, from where."),
    "event": ("fleet.cli.event", "Changes of devices and other records, as they happen."),
    "tenant": ("fleet.cli.tenant", "Tenants: models with their own issuing CA."),
    "token": ("fleet.cli.token", "One-time tokens for a first enrollment."),
    "request": ("fleet.cli.request", "Enrollment requests that wait for approval."),
    "webhook": ("fleet.cli.webhook", "The key that authorization webhooks verify requests with."),
    "station": ("fleet.cli.station", "Factory stations and their certificates."),
    "claim": ("fleet.cli.claim", "Claim certificates, shared by a batch of new devices."),
    "anchor": ("fleet.cli.anchor", "Manufacturers' CAs (IEEE 802.1AR) trusted for a first enrollment."),
    "operator": ("fleet.cli.operator", "People and programs that use the admin API."),
    "status": ("fleet.cli.status", "What the registry holds, and the server's counters."),
    "audit": ("fleet.cli.audit", "Who did what, and proof that it was not edited."),
    "distrust": ("fleet.cli.distrust", "Refuse certificates by model, CA, key type or time of issue, at once."),
    "renewal": ("fleet.cli.renewal", "Renewal windows, and campaigns for an incident."),
    "forecast": ("fleet.cli.forecast", "What expires when, by week, and what to prepare for."),
    "backup": ("fleet.cli.backup", "Save a home into one file while it is served; check it."),
    "restore": ("fleet.cli.backup", "Restore a home from a backup, with every revocation since."),
    "retention": ("fleet.cli.retention", "How long records are kept; archives."),
    "db": ("fleet.cli.db", "The registry's database: SQLite or PostgreSQL."),
    "ca": ("fleet.cli.ca", "The fleet's certificate authorities."),
    "crl": ("fleet.cli.crl", "Certificate revocation lists."),
    "publish": ("fleet.cli.publish", "Write CRLs and CA certificates into a folder, for a web server."),
    "cert": ("fleet.cli.cert", "Inspect and convert certificate files."),
}


USUAL_GC = gc.get_threshold()
STARTING_GC = 50_000
"""With Python's threshold of 700 objects, a fifth of a command's start-up is garbage collection between imports."""


class Fleet(LazyProgram):
    """`fleet cert` needs no server library."""

    commands_by_name = COMMANDS

    def __call__(self, *args: Any, **settings: Any) -> NoReturn:
        gc.set_threshold(STARTING_GC)
        super().__call__(*args, **settings)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return super().get_command(ctx, cmd_name)
        except ModuleNotFoundError as error:
            raise _missing(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NoSuchCommand as error:
            from fleet.cli.other_names import with_our_name  # for a wrong name alone

            raise with_our_name(error) from None
        except ModuleNotFoundError as error:  # a home's libraries are imported when one is opened
            raise _missing(error) from error


def _missing(error: ModuleNotFoundError) -> click.ClickException:
    if error.name in ("fcntl", "pwd", "grp"):
        return click.ClickException("A home needs Linux or another Unix. Use a served fleet instead: --url and --cert.")
    extra, part = ("all", "every part") if _is_the_agents(error) else ("server", "the server's part")
    return click.ClickException(f"The Python module {error.name} is missing. Install {part}: pip install '.[{extra}]'.")


def _is_the_agents(error: ModuleNotFoundError) -> bool:
    """The demo runs devices as well."""
    return (error.name or "").partition(".")[0] == "paho"


@click.group(
    cls=Fleet,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_FLEET_COMPLETE=bash_source fleet)" (zsh_source, fish_source).',
)
@location_options
@click.version_option(package_name="fleet-front-door", prog_name="fleet")
def main(**location: object) -> None:
    """Enroll devices, authenticate them over mutual TLS, and revoke them.

    \b
    Start here:
      fleet demo                           a whole fleet on this machine, in seconds
      fleet init HOME                      a home of your own
      fleet serve --home HOME              serve it
      fleet token create --device cam-7    a one-time token for a device

    FLEET_HOME replaces --home. For a served fleet, pass --url, --cert and --ca instead: commands are the same. Those
    that need the home's own files work there only, and say so: init, serve, db, backup, restore, retention run and
    check, audit seal, webhook key, and what creates or removes a CA key.

    Exit codes: 0 done, 1 refused or failed, 2 wrong use, 141 the reader of the output closed its pipe.
    """
