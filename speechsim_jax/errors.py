"""The one exception that a user's mistake raises, and the guess at a misspelt name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A bad input, reported in one line: what is wrong, where, and what to do.

    The experiment scripts print the message alone and exit with code 2; anything else is a bug
    and keeps its traceback.

    >>> ss.compare([], "speech")
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: no models given; expected hub ids or folders
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or "".

    Args:
        name: the name as the user wrote it.
        known: the names that there are.

    Returns:
        The known name that is most like `name`, as a question; empty if none is like it.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
