"""`device-agent reset`: the wipe of a home."""

from pathlib import Path

import click

from device_agent.cli import wiping as wiping
from device_agent.cli.options import pass_home
from device_agent.config.agent_config import AgentConfig, read_config
from device_agent.errors import AgentError
from fleet.est_client.errors import ClientError


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--stop", is_flag=True, help="Stop a running agent first, instead of refusing.")
@click.option("--all", "settings", is_flag=True, help="Also erase agent.toml and ca.pem, and the home itself.")
@pass_home
def reset(home: Path, yes: bool, stop: bool, settings: bool) -> None:
    """Erase the device's keys, certificates, messages and state, before it is given away.

    Asks for the device id first. agent.toml and ca.pem are kept, for the next `enroll`; copies that hooks have made
    elsewhere are erased. A reset that was interrupted is finished by the next one.

    Files are overwritten once and removed. Flash memory keeps overwritten blocks until it reuses them: what makes the
    key worthless is to take the device out of the fleet (fleet device retire ID).
    """
    wiping.check_home(home)
    config: AgentConfig | None = None
    try:
        config = read_config(home)
    except ClientError as error:
        click.echo(f"Copies of hooks are not erased: {error.message}", err=True)
    expected = wiping.expected_answer(home, config)
    if not yes:
        what = "all files" if settings else "all files but agent.toml and ca.pem"
        click.echo(f"This erases the key and certificate of {expected}, and {what} in {home}.", err=True)
        wiping.check_answer(click.prompt(f"Type {expected} to confirm", err=True), expected)
    with wiping.exclusive(home, stop=stop):
        erased, left = wiping.wipe_copies(config) if config is not None else ([], [])
        for path in erased:
            click.echo(f"Erased {path}: the program that uses it has no key now.", err=True)
        wiping.wipe(home, settings=settings)
    if left:
        raise AgentError(
            f"The home is erased. This user may not erase the copies {', '.join(map(str, left))}.",
            f"Look at them, and remove them as root. Take the device out of the fleet: fleet device retire {expected}",
        )
    click.echo(f"Erased. Now take it out of the fleet: fleet device retire {expected}")
