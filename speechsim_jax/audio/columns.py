"""What manifests and datasets say of an utterance besides its audio, speaker and transcript."""

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

GENDER = "gender"
GENDER_NAMES = (GENDER, "sex")
"""Columns of the speaker's gender."""

# As pandas and others write what is missing.
MISSING = ("", "nan", "none", "null", "n/a", "<na>")
_LONGEST = 200  # longer texts are no labels
_GENDERS = {
    spelling: gender
    for gender, spellings in (
        ("female", ("f", "female", "female_feminine", "woman")),
        ("male", ("m", "male", "male_masculine", "man")),
    )
    for spelling in spellings
}


class Columns(Mapping[str, str]):
    """Texts by column; several hundred thousand of them share names and equal texts."""

    __slots__ = ("_names", "_texts")

    def __init__(self, names: tuple[str, ...] = (), texts: tuple[str, ...] = ()) -> None:
        self._names, self._texts = names, texts

    def __getitem__(self, name: str) -> str:
        try:
            return self._texts[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Columns({dict(self)})"


def columns_of(row: Mapping[str, Any]) -> Columns:
    """The columns that are filled with a short text, number or truth value."""
    texts = {name.strip(): stated(value) for name, value in row.items()}
    texts = {name: text for name, text in texts.items() if name and 0 < len(text) <= _LONGEST}
    return Columns(_shared(tuple(texts)), tuple(map(sys.intern, texts.values())))


@functools.lru_cache(maxsize=256)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    return names


def stated(value: Any) -> str:
    """A value as text; "" if there is none, or it says that it is not known."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        return ""
    text = str(value).strip()
    return "" if text.lower() in (*MISSING, "unknown") else text


def gender_of(value: Any) -> str:
    """A gender in one spelling: "female", "male", or as it is written."""
    text = stated(value)
    return _GENDERS.get(text.lower(), text)
