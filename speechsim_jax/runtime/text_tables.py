"""Tables as text, for people, spreadsheets and programs: all CSV and TSV files of results.

Manifests, which are read back, are no such tables: their cells stay as they are.
"""

import math
import numbers
import os
from collections.abc import Iterable, Sequence

from speechsim_jax.errors import printable
from speechsim_jax.runtime.atomic_write import AnyPath, write_text

# With these a spreadsheet's formula begins; tabs and line ends have been escaped before.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Whatever a spreadsheet of some language may take for the end of a cell.
_SEPARATORS = frozenset(',;|"')


def write_csv(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> AnyPath:
    """Write rows as CSV: numbers with all digits, NaN as an empty cell.

    Args:
        path: the file; its folder is made if needed.
        rows: the headings, then the cells: texts and numbers. A text that a spreadsheet would take
            for a formula gets an apostrophe in front, control characters are written as escapes.

    Returns:
        The path.
    """
    return write_text(path, "".join(",".join(map(_quoted, row)) + "\n" for row in rows))


def write_tsv(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> AnyPath:
    """Write rows between tabs, without quotes; cells as those of `write_csv`.

    Args:
        path: the file; its folder is made if needed.
        rows: the headings, then the cells.

    Returns:
        The path.
    """
    return write_text(path, "".join("\t".join(map(_cell, row)) + "\n" for row in rows))


def _cell(value: object) -> str:
    if isinstance(value, numbers.Real):
        return "" if math.isnan(value) else str(value)
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _quoted(value: object) -> str:
    text = _cell(value)
    return '"' + text.replace('"', '""') + '"' if _SEPARATORS & set(text) else text
