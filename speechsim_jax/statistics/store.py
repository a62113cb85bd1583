"""What a pass has accumulated, in memory or in a folder: all that scores are made of.

    facts.json      what else there is to know; written last
    moments/*.npy   the sums of `statistics.moments` in float64, lost digits added in
    sample/*.npy    the rows of `statistics.sample`, their keys and numbers
    attention/*.npy the sums of `statistics.attention`

Cross moments are written pair by pair and read when a pair is scored, so that those of many passes
need not be in memory together.
"""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.statistics import (
    attention_finished,
    attention_sums,
    moments,
    moments_merge,
    sample,
)
from speechsim_jax.statistics.attention_finished import HeadSums
from speechsim_jax.statistics.moments import ModelShape, Moments, Tile
from speechsim_jax.statistics.moments_finished import LayerIndex, PassMoments
from speechsim_jax.statistics.moments_merge import CrossMoments
from speechsim_jax.statistics.sample import Sample

# Of the files; another one is refused.
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class StoredStatistics:
    """The statistics of one pass; None for one that it did not need.

    `places`: stream and layer of each representation of moments and sample, rising.
    """

    places: tuple[LayerIndex, ...]
    moments: PassMoments | None = None
    sample: Sample | None = None
    heads: HeadSums | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Coming:
    """Moments that come pair by pair, in order; `rest` is the state without them, at the end."""

    streams: tuple[ModelShape, ...]
    tiles: tuple[Tile, ...]
    block: Callable[[int, int], CrossMoments]
    rest: Callable[[], Moments]


def write(folder: Path, found: StoredStatistics, facts: dict[str, Any]) -> None:
    """Write into a new folder; it has its name only once it is complete.

    Raises UserError if it cannot be written.
    """
    part = found.moments
    if part is None:
        return write_coming(folder, found, None, facts)
    state = part.state
    coming = Coming(
        state.streams,
        state.tiles,
        lambda tile, pair: total(part, tile, pair),
        lambda: moments_merge.on_host(moments_merge.without_cross(state)),
    )
    return write_coming(folder, found, coming, facts)


def write_merged(folder: Path, founds: Sequence[StoredStatistics], facts: dict[str, Any]) -> None:
    """Write the statistics over the rows of all, of the same models, layers and layer pairs.

    Moments of different pilots are brought to one (`merging`), a pair at a time. Raises UserError
    for statistics of others, and if they cannot be written.
    """
    first = founds[0]
    for found in founds[1:]:
        lacking = [(f.moments is None, f.sample is None, f.heads is None) for f in (first, found)]
        if found.places != first.places or lacking[0] != lacking[1]:
            raise UserError("statistics of other models, layers or measures cannot be merged")
    parts = [found.moments for found in founds if found.moments is not None]
    samples = [found.sample for found in founds if found.sample is not None]
    sums = [found.heads for found in founds if found.heads is not None]
    whole = StoredStatistics(
        first.places,
        sample=functools.reduce(sample.merge_samples, samples) if samples else None,
        heads=functools.reduce(attention_finished.merge_attention, sums) if sums else None,
    )
    coming = None
    if parts:
        smalls = [moments_merge.without_cross(part.state) for part in parts]
        coming = merged(smalls, lambda t, k: [total(part, t, k) for part in parts])
    write_coming(folder, whole, coming, facts)


def merged(
    smalls: Sequence[Moments], blocks: Callable[[int, int], Sequence[CrossMoments]]
) -> Coming:
    """The moments over the rows of several states, of which `blocks` gives a pair's of each."""
    all_ = moments_merge.Merging(smalls)
    return Coming(all_.streams, all_.tiles, lambda t, k: all_.block(t, k, blocks(t, k)), all_.rest)


def write_coming(
    folder: Path, found: StoredStatistics, coming: Coming | None, facts: dict[str, Any]
) -> None:
    """`write`, of moments that come pair by pair instead of those of `found`."""
    new = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        told: dict[str, Any] = {"format": _FORMAT, "places": found.places, "facts": facts}
        if coming is not None:
            told["moments"] = _write_moments(new / "moments", coming)
        if found.sample is not None:
            told["sample"] = _write_sample(new / "sample", found.sample)
        if found.heads is not None:
            told["attention"] = _write_heads(new / "attention", found.heads)
        (new / "facts.json").write_text(json.dumps(told))
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)
    except OSError as error:
        raise UserError(f"statistics cannot be kept in {folder}: {error.strerror}") from error


def read(folder: Path) -> tuple[StoredStatistics, dict[str, Any]]:
    """What `write` has written, and its facts; raises UserError for a folder that it did not."""
    try:
        told = json.loads((folder / "facts.json").read_text())
        if told["format"] != _FORMAT:
            raise UserError(f"{folder}: statistics of format {told['format']}, not {_FORMAT}")
        places = tuple((stream, layer) for stream, layer in told["places"])
        found = StoredStatistics(
            places,
            _read_moments(folder / "moments", told["moments"], places)
            if "moments" in told
            else None,
            _read_sample(folder / "sample", told["sample"]) if "sample" in told else None,
            _read_heads(folder / "attention", told["attention"]) if "attention" in told else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no statistics that can be read: {error}") from error
    return found, told["facts"]


def total(part: PassMoments, tile: int, pair: int) -> CrossMoments:
    """Cross moments of one pair in float64, lost digits added in."""
    return np.asarray(part.block(tile, pair)).sum(axis=0, dtype=np.float64)


def _write_moments(folder: Path, coming: Coming) -> dict[str, Any]:
    folder.mkdir()
    for t, tile in enumerate(coming.tiles):
        blocks = (coming.block(t, k)[None] for k in range(len(tile.pairs)))
        _write_blocks(folder / f"cross-{t}.npy", len(tile.pairs), blocks)
    for number, leaf in enumerate(jax.tree.leaves(coming.rest())):
        np.save(folder / f"small-{number}.npy", leaf)
    return {
        "streams": [dataclasses.astuple(stream) for stream in coming.streams],
        "tiles": [dataclasses.astuple(tile) for tile in coming.tiles],
    }


def _write_blocks(path: Path, count: int, blocks: Iterator[np.ndarray]) -> None:
    """A .npy file of so many arrays of one shape, one after the other in memory."""
    with path.open("wb") as file:
        for number, block in enumerate(blocks):
            if number == 0:
                told = {"descr": "<f8", "fortran_order": False, "shape": (count, *block.shape)}
                np.lib.format.write_array_header_1_0(file, told)
            file.write(np.ascontiguousarray(block, "<f8").data)


def _read_moments(
    folder: Path, told: dict[str, Any], places: tuple[LayerIndex, ...]
) -> PassMoments:
    streams = tuple(ModelShape(*stream) for stream in told["streams"])
    tiles = tuple(Tile(a, b, tuple((l, m) for l, m in pairs)) for a, b, pairs in told["tiles"])
    structure = jax.tree.structure(moments_merge.without_cross(moments.zero(streams, ())))
    leaves = [np.load(folder / f"small-{number}.npy") for number in range(structure.num_leaves)]
    small = jax.tree.unflatten(structure, leaves)

    @functools.cache
    def layout(tile: int) -> tuple[tuple[int, ...], int]:
        """The shape of a block, and where the first begins in the file."""
        blocks = np.load(folder / f"cross-{tile}.npy", mmap_mode="r")
        return blocks.shape[1:], blocks.offset

    def block(tile: int, pair: int) -> np.ndarray:
        # Read, not mapped: what is mapped counts as memory of the process.
        shape, start = layout(tile)
        count = math.prod(shape)
        path = folder / f"cross-{tile}.npy"
        return np.fromfile(path, "<f8", count, offset=start + 8 * count * pair).reshape(shape)

    return PassMoments(dataclasses.replace(small, tiles=tiles), places, block)


def _write_sample(folder: Path, found: Sample) -> dict[str, Any]:
    folder.mkdir()
    np.save(folder / "keys.npy", found.keys)
    np.save(folder / "numbers.npy", found.numbers)
    for number, rows in enumerate(found.rows):
        np.save(folder / f"rows-{number}.npy", rows)
    return {
        "size": found.size,
        "seed": found.seed,
        "utterances": found.utterances.tolist(),
        "streams": len(found.rows),
    }


def _read_sample(folder: Path, told: dict[str, Any]) -> Sample:
    return Sample(
        size=told["size"],
        seed=told["seed"],
        keys=np.load(folder / "keys.npy"),
        utterances=np.array(told["utterances"], object),
        numbers=np.load(folder / "numbers.npy"),
        rows=tuple(np.load(folder / f"rows-{number}.npy") for number in range(told["streams"])),
    )


def _write_heads(folder: Path, found: HeadSums) -> dict[str, Any]:
    folder.mkdir()
    for number, leaf in enumerate(jax.tree.leaves(found.sums)):
        np.save(folder / f"sums-{number}.npy", leaf)
    return {
        "streams": [dataclasses.astuple(stream) for stream in found.streams],
        "wanted": found.wanted,
        "dtype": found.dtype,
        "lengths": found.lengths,
    }


def _read_heads(folder: Path, told: dict[str, Any]) -> HeadSums:
    structure = jax.tree.structure(attention_sums.zero(1))
    leaves = [np.load(folder / f"sums-{number}.npy") for number in range(structure.num_leaves)]
    return HeadSums(
        streams=tuple(ModelShape(*stream) for stream in told["streams"]),
        wanted=tuple(told["wanted"]),
        dtype=told["dtype"],
        sums=jax.tree.unflatten(structure, leaves),
        lengths=tuple(told["lengths"]),
    )
