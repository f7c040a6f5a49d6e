"""`device-agent deploy`: the hooks of agent.toml."""

from pathlib import Path

import click

from device_agent.cli.options import pass_home
from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.errors import AgentError, Busy
from device_agent.hooks.deploying import deploy as deploy_hooks
from device_agent.hooks.deployment_marks import Mark
from device_agent.store.atomic_files import held_lock
from device_agent.store.locks import AGENT_LOCK


@click.command()
@click.argument("hooks", nargs=-1, metavar="[HOOK]...")
@click.option("--again", is_flag=True, help="Even if they have deployed this certificate.")
@pass_home
def deploy(home: Path, hooks: tuple[str, ...], again: bool) -> None:
    """Run the hooks of agent.toml that have not deployed the certificate in use; or only these.

    A running agent does so by itself after each renewal. Exits 1 if a hook failed.
    """
    config = read_config(home)
    known = {hook.name for hook in config.hooks}
    if unknown := [name for name in hooks if name not in known]:
        raise click.UsageError(f"There is no hook {unknown[0]!r} in {home / 'agent.toml'}.")
    ran = deploy_hooks(config, hooks or known, again=again, report=_print_mark)
    if not ran:
        click.echo("Nothing to do: every hook has deployed the certificate in use." if known else "There are no hooks.")
    raise SystemExit(0 if all(mark.ok for mark in ran.values()) else 1)


def deploy_unless_running(config: AgentConfig) -> None:
    """Run the hooks that are due, unless an agent does. A failure is reported, and is not the caller's."""
    if not config.hooks:
        return
    try:
        with held_lock(config.home / AGENT_LOCK, "An agent is running."):
            pass
        deploy_hooks(config, {hook.name for hook in config.hooks}, report=_print_mark)
    except Busy:
        return
    except (AgentError, OSError) as error:
        click.echo(f"The hooks did not run: {error}", err=True)


def _print_mark(name: str, mark: Mark) -> None:
    click.echo(f"Hook {name}: {'done' if mark.ok else f'failed: {mark.message}'}.", err=not mark.ok)
