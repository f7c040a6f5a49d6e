"""`device-agent emulate`: a board on a serial port. The one command that needs the extra `board`."""

from pathlib import Path

import click

from device_agent.cli.options import pass_home
from device_agent.emulated.board import Hardware
from device_agent.emulated.emulator import Faults, run_emulator
from fleet.wire.serial.messages import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN

_DEFAULT = Hardware()


@click.command()
@click.option(
    "--pty",
    "link",
    required=True,
    type=click.Path(path_type=Path),
    help="Path of the port: a symbolic link to the pseudo-terminal.",
)
@click.option("--hardware-serial", default=_DEFAULT.serial, show_default=True, help="Hardware serial number.")
@click.option("--model", default=_DEFAULT.model, show_default=True, help="Model that the board reports.")
@click.option("--firmware", default=_DEFAULT.firmware, show_default=True, help="Firmware version that it reports.")
@click.option(
    "--chunk-size",
    type=click.IntRange(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX),
    default=_DEFAULT.chunk_size_max,
    show_default=True,
    help="Octets of data that the board accepts in one message.",
)
@click.option("--once", is_flag=True, help="Exit once provisioned. Otherwise run until interrupted.")
@click.option("--boot-log", is_flag=True, help="Write a boot log to the line at start.")
@click.option("--noise", is_flag=True, help="Write a log line before each answer.")
@click.option("--drop-rate", type=click.FloatRange(0, 0.9), default=0.0, help="Share of answers that are lost.")
@click.option("--restart-after", type=click.IntRange(0), default=0, help="Restart once, after this number of requests.")
@click.option("--seed", type=int, default=0, help="Seed of the losses, to repeat a run.")
@pass_home
def emulate(
    home: Path,
    link: Path,
    hardware_serial: str,
    model: str,
    firmware: str,
    chunk_size: int,
    once: bool,
    boot_log: bool,
    noise: bool,
    drop_rate: float,
    restart_after: int,
    seed: int,
) -> None:
    """Emulate a board on a serial port, to be provisioned by fleet-station.

    The board keeps its state in --home. Once provisioned, it is a device's home: `device-agent run`.
    """
    hardware = Hardware(hardware_serial, model, firmware, chunk_size)
    faults = Faults(boot_log, noise, drop_rate, restart_after, seed)
    raise SystemExit(run_emulator(home, link, hardware, faults, once=once))
