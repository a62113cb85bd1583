"""Which pairs of representations are compared."""

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.pipeline.pass_memory import IndexPair
from speechsim_jax.results.depth import nearest_depth
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.settings import PAIRS


def chosen_pairs(
    pairs: Sequence[str],
    names: Sequence[RepresentationName],
    depths: Sequence[float],
    tracks: Collection[int] = (),
    given: Sequence[str] = (),
) -> frozenset[IndexPair] | None:
    """The pairs that are meant.

    Each representation is paired with itself, and each track and what is given with everything, in
    any case.

    Args:
      pairs: as `Settings.pairs`.
      names: of the representations.
      depths: the relative depth of each.
      tracks: numbers of those that are tracks.
      given: names of those that are regressed out of the others; as `Settings.given`.

    Returns:
      None for all.

    Raises:
      UserError: a name that is none of these; between or same_depth of one model.
    """
    if tuple(pairs) == ("all",):
        return None
    models = [k for k in range(len(names)) if k not in tracks]
    chosen = {(k, k) for k in range(len(names))}
    keys = set(given) | {f"{key}/0" for key in given}
    always = {*tracks, *(k for k, name in enumerate(names) if str(name) in keys)}
    chosen |= {(min(k, one), max(k, one)) for one in always for k in range(len(names))}
    word = pairs[0]
    if word not in PAIRS:
        return frozenset(chosen | {_named(pair, names) for pair in pairs})
    several = len({names[k].model for k in models}) > 1
    if word != "within" and not several and not tracks:
        raise UserError(f"pairs={word!r} needs two models, and there is {names[0].model} alone")
    if word == "same_depth":
        return frozenset(chosen.union(_of_same_depth(names, depths, models)))
    for i, j in itertools.combinations(models, 2):
        if (names[i].model == names[j].model) == (word == "within"):
            chosen.add((i, j))
    return frozenset(chosen)


def _named(pair: str, names: Sequence[RepresentationName]) -> IndexPair:
    """The pair that "model/3:other/5" names; names may hold colons themselves."""
    known = {str(name): k for k, name in enumerate(names)}
    parts = pair.split(":")
    halves = [(":".join(parts[:k]), ":".join(parts[k:])) for k in range(1, len(parts))]
    for x, y in halves:
        if x in known and y in known:
            i, j = sorted((known[x], known[y]))
            return i, j
    unknown = next((name for half in halves[:1] for name in half if name not in known), pair)
    raise UserError(
        f"pairs: no representation {unknown!r}{did_you_mean(unknown, known)}; expected "
        f"{', '.join(PAIRS)}, or pairs as {names[0]}:{names[-1]}"
    )


def _of_same_depth(
    names: Sequence[RepresentationName], depths: Sequence[float], layers: Sequence[int]
) -> Iterator[IndexPair]:
    """Each layer with that of every other model at the same relative depth."""
    depth = np.array(depths)
    of_model = {
        model: np.array([k for k in layers if names[k].model == model])
        for model in dict.fromkeys(names[k].model for k in layers)
    }
    for x, y in itertools.permutations(of_model.values(), 2):
        for i, j in zip(x.tolist(), y[nearest_depth(depth[x], depth[y])].tolist()):
            yield min(i, j), max(i, j)
