"""The exception that a user's mistake raises, and the wording of messages."""

import difflib
import re
from collections.abc import Iterable

# Control characters, marks and overrides of direction, line separators, what is no character.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class UserError(ValueError):
    """A bad input, described in one line: what is wrong, where, and what to do.

    The commands print the message alone and exit with code 2; anything else is a bug
    and keeps its traceback.

    >>> ss.compare([], "speech")
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: no models given; expected hub ids or folders
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class StorageError(UserError):
    """Something cannot be written; the message says where, why and what is complete.

    The commands exit with code 1: nothing was wrong with how they were called.
    """


def printable(text: object) -> str:
    r"""Text as it is shown: what a terminal or a page would obey instead is written as an escape.

    Names of files, models and labels come from anybody.

    >>> print(printable("a\x1b[31m.wav"))
    a\u001b[31m.wav
    """
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def printable_lines(text: str) -> str:
    """`printable`, but for the ends of lines."""
    return "\n".join(map(printable, text.split("\n")))


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1: "1 file", "41 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name that is closest, or "" if none is close.

    >>> did_you_mean("linkca", ["lincka", "svcca"])
    "; did you mean 'lincka'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""
