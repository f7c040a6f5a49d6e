"""Types of a message's fields. Each turns a decoded CBOR item into a plain value, or refuses it."""

from dataclasses import dataclass
from typing import Protocol

from fleet.wire.errors import Malformed, TooLarge


class FieldType(Protocol):
    def check(self, value: object, name: str) -> object:
        """`value` as a value of this type. Raises: Malformed, TooLarge, naming the field `name`."""


@dataclass(frozen=True, slots=True)
class Uint:
    maximum: int
    minimum: int = 0

    def check(self, value: object, name: str) -> int:
        # bool is a subclass of int; CBOR's true is not the number one.
        if not isinstance(value, int) or isinstance(value, bool):
            raise Malformed(f"{name} is not an unsigned integer.")
        if not self.minimum <= value <= self.maximum:
            raise Malformed(f"{name} is not between {self.minimum} and {self.maximum}.")
        return int(value)


@dataclass(frozen=True, slots=True)
class Bool:
    def check(self, value: object, name: str) -> bool:
        if type(value) is not bool:
            raise Malformed(f"{name} is neither true nor false.")
        return value


@dataclass(frozen=True, slots=True)
class Bytes:
    maximum: int
    minimum: int = 0

    def check(self, value: object, name: str) -> bytes:
        if type(value) is not bytes:
            raise Malformed(f"{name} is not a byte string.")
        if len(value) > self.maximum:
            raise TooLarge(f"{name} is over {self.maximum} octets.")
        if len(value) < self.minimum:
            raise Malformed(f"{name} is under {self.minimum} octets.")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8, sizes in octets, printable characters only: it is printed on terminals and written to ledgers."""

    maximum: int
    minimum: int = 0

    def check(self, value: object, name: str) -> str:
        if type(value) is not str:
            raise Malformed(f"{name} is not a text string.")
        if not value.isprintable():
            raise Malformed(f"{name} holds a character that cannot be printed.")
        size = len(value.encode())  # printable text has no lone surrogates
        if size > self.maximum:
            raise TooLarge(f"{name} is over {self.maximum} octets.")
        if size < self.minimum:
            raise Malformed(f"{name} is under {self.minimum} octets.")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    choices: tuple[str, ...]

    def check(self, value: object, name: str) -> str:
        if type(value) is not str or value not in self.choices:
            raise Malformed(f"{name} is none of: {', '.join(self.choices)}.")
        return value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of items of one type, at least one."""

    item: FieldType
    maximum: int

    def check(self, value: object, name: str) -> tuple[object, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise Malformed(f"{name} is not a list of at least one item.")
        if len(value) > self.maximum:
            raise TooLarge(f"{name} holds more than {self.maximum} items.")
        return tuple(self.item.check(item, name) for item in value)


def printable(text: str, maximum: int) -> str:
    """The printable part of `text`, cut to `maximum` octets."""
    shown = "".join(character for character in text if character.isprintable())
    return shown.encode()[:maximum].decode(errors="ignore")
