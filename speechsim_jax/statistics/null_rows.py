"""Which rows a null pairs: those of another time, or those of another speaker's utterance.

Everything follows from names and a seed, so batches, shards, order and devices do not change it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.sample import text_hash

LEAST_ROWS = 8
"""An utterance with fewer rows has none of another time."""


def shift_pairs(rows: BatchRows, draw: int, seed: int) -> Int64[np.ndarray, "2 row"]:
    """Positions of the rows, and of those of a later or earlier time in the same utterance.

    Within each utterance (or piece) of T rows, y's rows are rolled by an offset from T/4 to 3T/4.
    Utterances of fewer than 8 rows are left out.

    Args:
      rows: of a batch.
      draw: its number.
      seed: of the offsets.
    """
    pairs = [np.zeros((2, 0), np.int64)]
    for name, positions in by_utterance(rows):
        if len(positions) >= LEAST_ROWS:
            offset = shift_offset(name, len(positions), draw, seed)
            pairs.append(np.stack([positions, np.roll(positions, offset)]))
    return np.concatenate(pairs, axis=1)


def by_utterance(rows: BatchRows) -> list[tuple[str, Int64[np.ndarray, " _"]]]:
    """The id of each utterance or piece, and the positions of its rows in order."""
    order = np.argsort(rows.utterance, kind="stable")
    counts = np.bincount(rows.utterance, minlength=len(rows.ids))
    parts = np.split(rows.positions[order], np.cumsum(counts)[:-1])
    return list(zip(rows.ids, parts, strict=True))


def shift_offset(name: str, rows: int, draw: int, seed: int) -> int:
    """By how many rows those of y are rolled, from T/4 to 3T/4 of T rows.

    Args:
      name: of the utterance or piece.
      rows: T.
      draw: number of the draw.
      seed: of the offsets.
    """
    first = -(-rows // 4)
    return first + text_hash(f"{seed}\0shift {draw}\0{name}") % (rows - 2 * first + 1)


def swap_ring(speakers: Mapping[str, str], seed: int, draws: int = 1) -> tuple[str, ...]:
    """The utterances in a seeded order in which those of one speaker are evenly spread.

    Args:
      speakers: of each utterance; "" where not known, which is a speaker of its own.
      seed: of the order.
      draws: of the null, each of which takes the utterance one further on.

    Raises:
      UserError: not more utterances than draws, or fewer than two speakers.
    """
    if len(speakers) <= draws:
        raise UserError(
            f"null='swap' needs more utterances than null_draws={draws}; there are {len(speakers)}"
        )
    if len(set(speakers.values())) == 1 and "" not in speakers.values():
        raise UserError("null='swap' needs utterances of at least two speakers (groups)")
    by_speaker: dict[str, list[str]] = {}
    for name, speaker in speakers.items():
        by_speaker.setdefault(f"s{speaker}" if speaker else f"u{name}", []).append(name)

    def share(text: str) -> float:
        return text_hash(f"{seed}\0swap\0{text}") / 2**64

    places: list[tuple[float, str]] = []
    for speaker, names in by_speaker.items():
        order = sorted(names, key=lambda name: (share(f"u{name}"), name))
        places += [((k + share(speaker)) / len(order), name) for k, name in enumerate(order)]
    return tuple(name for _, name in sorted(places))


def swap_partners(ring: Sequence[str], speakers: Mapping[str, str], draw: int) -> dict[str, str]:
    """The utterance whose rows of y each utterance's rows of x are paired with.

    It is the one that follows by `draw` + 1 in the ring; none for two of one speaker.

    Args:
      ring: from `swap_ring`.
      speakers: of each utterance; "" where not known.
      draw: its number, from 0 on.
    """
    pairs = ((name, ring[(k + draw + 1) % len(ring)]) for k, name in enumerate(ring))
    return {
        name: other
        for name, other in pairs
        if name != other and not (speakers[name] and speakers[name] == speakers[other])
    }
