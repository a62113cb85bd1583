"""The classes of a label track."""

from collections.abc import Mapping

from speechsim_jax.errors import UserError

MOST_CLASSES = 2000
"""Of a label track: each is a column, and pairs of columns are summed."""


def classes_of(name: str, amounts: Mapping[str, int], min_share: float | int) -> tuple[str, ...]:
    """The labels that are classes, by amount and then by name.

    Args:
      name: of the track.
      amounts: rows, or time, of each label.
      min_share: labels of a smaller share of all that is labelled are no classes.

    Raises:
      UserError: a share that is none; no class, or more than 2,000.
    """
    number = isinstance(min_share, int | float) and not isinstance(min_share, bool)
    if not number or not 0 <= min_share < 1:
        raise UserError(f"label_min_share is {min_share!r}; expected a share, at least 0, below 1")
    least = min_share * sum(amounts.values())
    classes = sorted(
        (label for label, amount in amounts.items() if amount >= least),
        key=lambda label: (-amounts[label], label),
    )
    if not classes:
        missing = "no row has one" if not amounts else f"none has a share of {min_share:g}"
        raise UserError(f"labels of {name}: {missing}")
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"labels of {name}: {len(classes):,} classes are more than {MOST_CLASSES:,}; "
            "label_min_share leaves rare ones out"
        )
    return tuple(classes)
