"""Commands on records of one kind in the API, declared: list them, show some, act on some.

    STATIONS = Records(station, STATION, ("name", "models", "created_at"))
    STATIONS.list("List the stations.")
    STATIONS.act("revoke", "Revoke stations.", {"state": "revoked"})

Of several ids or names each is a request of its own, and one that fails does not stop the others.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import click
from msgspec import Struct

from fleet.cli.errors import CliError, attempting
from fleet.cli.options import client_option, limit_option, reason_option
from fleet.cli.output import Column, Row, output_option, print_array, print_rows, print_value
from fleet.cli.parameters import ListedName
from fleet.client.client import Client, path_of
from fleet.config.streams import EXIT_FAILED
from fleet.domain.crl import GIVEN_REASONS, CrlReason

Given = TypeVar("Given")
TableOf = Callable[[Row], Row]
Ask = Callable[[Client, str], Row]
Option = Callable[[Callable[..., object]], Callable[..., object]]

crl_reason_option = click.option(
    "--crl-reason",
    type=click.Choice(list(GIVEN_REASONS)),
    default=CrlReason.UNSPECIFIED.text,
    help="The reason that CRLs and OCSP give (RFC 5280, 5.3.1).",
)


NONE = "There are none."


def same(given: Given) -> Given:
    return given


def body_of(**given: str) -> dict[str, str]:
    """What the options say, as a body says it: the reason for CRLs only where there is one."""
    return {name: text for name, text in given.items() if (name, text) != ("crl_reason", CrlReason.UNSPECIFIED.text)}


def revocation_options(command: Callable[..., object]) -> Callable[..., object]:
    """Give a command `--reason` and `--crl-reason`."""
    return reason_option(crl_reason_option(command))


class Records(Struct, frozen=True):
    """Records that the API lists by the ids or names of `type`."""

    group: click.Group
    """Named as one of them is: "station"; the commands are added to it."""
    type: ListedName
    columns: Sequence[str | Column]
    """Of the list."""
    shown: TableOf = same
    """What commands print of the API's record."""

    def list(self, text: str) -> None:
        """`list`; `text` is its help, here and below."""

        @self.group.command("list", help=text)
        @client_option
        @limit_option
        @output_option
        def list_(client: Client, limit: int | None, output: str) -> None:
            with attempting(f"listing the {self.group.name}s"):
                print_rows(self.columns, map(self.shown, client.items(self.type.path, limit)), output, NONE)

    def show(self, text: str, ask: Ask | None = None, table: TableOf = same) -> None:
        """`show`: what `ask` has of a record, all that the API has unless given; `table` is what people get of it."""

        @self.group.command("show", help=text)
        @client_option
        @ids_of(self.type)
        @output_option
        def show(client: Client, ids: tuple[str, ...], output: str) -> None:
            attempted = f"showing {self.group.name} '{{}}'"
            print_each(ids, attempted, lambda each: (ask or self.get)(client, each), output, table)

    def act(
        self,
        verb: str,
        text: str,
        done: Row | None = None,
        *,
        options: Option = reason_option,
        argument: Option | None = None,
    ) -> None:
        """The command `verb`: it prints what is `done`, or the API's answer. `options`: what the body says; `argument`:
        the ids, where it is another than that of the other commands."""

        @self.group.command(verb, help=text)
        @client_option
        @(argument or ids_of(self.type))
        @options
        @output_option
        def act(client: Client, ids: tuple[str, ...], output: str, **given: str) -> None:
            def ask(each: str) -> Row:
                answer: Row = client.post(f"{self.path(each)}/{verb}", body_of(**given) or None)
                return answer if done is None else {self.type.key: each, **done}

            print_each(ids, f"{verb.removesuffix('e')}ing {self.group.name} '{{}}'", ask, output)

    def get(self, client: Client, each: str) -> Row:
        """The record with this id or name, as commands show it."""
        return self.shown(client.get(self.path(each)))

    def get_with_certificates(self, client: Client, each: str) -> Row:
        return {**self.get(client, each), "certificates": client.all_items(f"{self.path(each)}/credentials")}

    def path(self, each: str) -> str:
        return path_of(f"{self.type.path}/{{}}", each)


def ids_of(kind: ListedName, metavar: str = "") -> Option:
    """Give a command one or several of `kind`, passed as `ids`."""
    return click.argument("ids", type=kind, nargs=-1, required=True, metavar=metavar or f"{kind.name}...")


def print_each(
    names: Sequence[str], attempted: str, ask: Callable[[str], Row], output: str, table: TableOf = same
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
