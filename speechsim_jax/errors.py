"""The one exception a user's mistake raises."""


class UserError(ValueError):
    """A bad input, said in one line: what is wrong, where, and what to do.

    The experiment scripts print the message alone and exit with code 2; anything else is a bug
    and keeps its traceback.

    >>> ss.compare([], "speech")
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: no models given; expected hub ids or folders
    """
