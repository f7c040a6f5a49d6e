"""Commands that take one id or several: each is a request of its own, and one that fails does not stop the others."""

import sys
from collections.abc import Callable, Iterator, Sequence

import click

from fleet.cli.errors import EXIT_FAILED, CliError, attempting
from fleet.cli.output import Row, print_array, print_value

TableOf = Callable[[Row], Row]


def print_each(
    names: Sequence[str], attempted: str, ask: Callable[[str], Row], output: str, table: TableOf = lambda row: row
) -> None:
    """Ask for each of `names` and print the answer: one value for one name, an array or blocks for several.

    `attempted` holds a {} for the name. Exit 1 when any failed, each with its error on stderr.
    """
    if len(names) == 1:
        with attempting(attempted.format(names[0])):
            value = ask(names[0])
        print_value(value, output, table(value))
        return
    failed: list[CliError] = []

    def answers() -> Iterator[Row]:
        for name in dict.fromkeys(names):
            try:
                with attempting(attempted.format(name)):
                    value = ask(name)
            except CliError as error:
                error.show()
                failed.append(error)
            else:
                yield value

    if output == "json":
        print_array(answers())
    else:
        for number, value in enumerate(answers()):
            if number:
                click.echo()
            print_value(value, output, table(value))
    if failed:
        sys.exit(EXIT_FAILED)
