"""Text from outside in Markdown pages."""

import re

from speechsim_jax.errors import printable

# What begins markup within a line; an underscore does only at the edge of a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def literal(text: object) -> str:
    r"""Text that a Markdown page, or a cell of its tables, shows as it is.

    >>> print(literal("<b>|[a](b)"))
    \<b\>\|\[a\](b)
    """
    return _MARKUP.sub(r"\\\g<0>", printable(text))
