"""The exception that a user's mistake raises, and the wording of messages."""

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """A bad input, described in one line: what is wrong, where, and what to do.

    The commands print the message alone and exit with code 2; anything else is a bug
    and keeps its traceback.

    >>> ss.compare([], "speech")
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: no models given; expected hub ids or folders
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class StorageError(UserError):
    """Something cannot be written; the message says where, why and what is complete.

    The commands exit with code 1: nothing was wrong with how they were called.
    """


def one_line(text: str) -> str:
    r"""The text with line ends and other control characters escaped, as names may contain them.

    >>> print(one_line("two\nlines"))
    two\nlines
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )


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
