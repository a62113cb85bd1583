"""The claims of El Kheir et al. 2024 (arXiv 2406.16099), and the statistic that tests each claim.

Every claim is tested by margins, one a measure: numbers that are positive where the claim is right
(the rule of `verdicts` turns them into a verdict). Which layers are compared with which:

- *same depth*: each layer of x with the layer of y at the nearest relative depth, the mean over
  layers; x and y in turn for scores that are asymmetric;
- *untrained*: a trained model's layers as rows, with the untrained layers of the other model's
  architecture as columns: how well random weights account for a trained model's layers;
- where models of different initial weights are on the two sides, a score is above another one only
  if it is so by more than 0.03: random stand-ins for trained models, which had learned nothing,
  differed by up to 0.016 (lincka, mean of two pairs), which intervals over utterances cannot
  cover;
- *localisation* = (maxcorr - rotcorr) / (linreg - rotcorr): 0 if the axes of y carry no information
  about x (as after a random rotation of y), 1 if for every neuron of x a single neuron of y
  predicts it as well as all of y. maxcorr cannot exceed linreg, so a neuron-level score below a
  layer-level one is no evidence by itself.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from speechsim_jax.analyses.replication.margins import (
    Number,
    Scores,
    both_ways,
    delocalised,
    far_layers,
    half,
    localisation,
    lower_steps,
    next_layer,
    same_depth,
)

LAYER = ("svcca", "pwcca", "lincka", "linreg")
ATTENTION = ("attn_js", "attn_pearson")
MEASURES = ("maxcorr", "rotcorr", "linreg", "lincka", "svcca", "pwcca")
"""The measures of neurons and layers that the claims need; those of attention are `ATTENTION`."""

ModelPair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Roles:
    """The role of each model of a replication.

    Attributes:
        paradigms: Pretraining objective of each pretrained model (`members.paradigm`).
        sizes: Depth and width of each pretrained model.
        untrained: By pretrained model, the model of the same architecture with random weights.
        seeds: Each pretrained model with the model of the same recipe and another seed.
        finetuned: Each fine-tuned model with the pretrained model that it started from.
    """

    paradigms: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]]
    untrained: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[ModelPair, ...] = ()
    finetuned: tuple[ModelPair, ...] = ()

    @property
    def crossed(self) -> tuple[ModelPair, ...]:
        """Pairs of two paradigms and one size; of any sizes if there are none of one size."""
        pairs = [(x, y) for x, y in self._pairs() if self.paradigms[x] != self.paradigms[y]]
        alike = [(x, y) for x, y in pairs if self.sizes[x] == self.sizes[y]]
        return tuple(alike or pairs)

    @property
    def resized(self) -> tuple[ModelPair, ...]:
        """Pairs of one paradigm and two sizes."""
        return tuple(
            (x, y)
            for x, y in self._pairs()
            if self.paradigms[x] == self.paradigms[y] and self.sizes[x] != self.sizes[y]
        )

    def _pairs(self) -> Iterable[ModelPair]:
        models = list(self.paradigms)
        return ((x, y) for i, x in enumerate(models) for y in models[i + 1 :])


NOTICEABLE = 0.03
"""Difference from which on scores of models with different initial weights count as different."""

Statistic = Callable[[Scores], Number]
"""A number computed from the scores of one comparison; of `MovedScores` an array [row]."""


@dataclasses.dataclass(frozen=True)
class ClaimTest:
    """A test of a claim by one measure.

    Attributes:
        measure: Name of the test in tables.
        value: The statistic that is shown.
        margin: The statistic that decides, positive where the claim is right.
        threshold: What `value` is compared with, in words.
        baselines: Other statistics that are shown next to `value`, by name.
    """

    measure: str
    value: Statistic
    margin: Statistic
    threshold: str
    baselines: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: Short name.
        text: The claim in a sentence.
        source: Where the claim is made.
        statistic: The statistic that tests it, in words.
        needs: What the tests need, in words.
    """

    name: str
    text: str
    source: str
    statistic: str
    needs: str


@dataclasses.dataclass(frozen=True)
class ScoreClaim(Claim):
    """A claim that is tested by scores of representations or heads.

    Attributes:
        tests: The tests for given roles; none if a model is missing.
    """

    tests: Callable[[Roles], list[ClaimTest]]


def untrained_partner(scores: Scores, measure: str, x: str, y: str, roles: Roles) -> Number:
    """Mean of `same_depth` of x with y untrained and of y with x untrained."""
    random = roles.untrained
    with_y, with_x = (
        same_depth(scores, measure, x, random[y]),
        same_depth(scores, measure, y, random[x]),
    )
    return (with_y + with_x) / 2


def _average(values: Iterable[Any]) -> Number:
    """The mean of statistics of several models."""
    return np.mean(list(values), axis=0)


def _mean(statistic: Callable[..., Number], pairs: Iterable[ModelPair]) -> Statistic:
    """The mean of a statistic of (scores, x, y) over pairs of models."""
    chosen = list(pairs)
    return lambda scores: _average(statistic(scores, x, y) for x, y in chosen)


def _over_models(statistic: Callable[..., Number], models: Iterable[str]) -> Statistic:
    """The mean of a statistic of (scores, model) over models."""
    chosen = list(models)
    return lambda scores: _average(statistic(scores, model) for model in chosen)


def _of(measure: str, statistic: Callable[..., Number], **options: object) -> Callable[..., Number]:
    """A statistic of (scores, measure, *models) as one of (scores, *models)."""
    return lambda scores, *models: statistic(scores, measure, *models, **options)


def _difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda scores: a(scores) - b(scores)


def _above(
    measure: str, value: Statistic, baseline: str, others: Mapping[str, Statistic]
) -> ClaimTest:
    """Whether a value is above one of `others` by 0.03: initial weights alone make differences."""
    other = others[baseline]

    def margin(scores: Scores) -> Number:
        return value(scores) - other(scores) - NOTICEABLE

    return ClaimTest(measure, value, margin, f"> {baseline} + {NOTICEABLE}", others)


def _mean_of_two(a: Statistic, b: Statistic) -> Statistic:
    return lambda scores: (a(scores) + b(scores)) / 2


def _by_measure(pairs: Iterable[ModelPair]) -> Callable[[Scores, str], Number]:
    """The mean of `both_ways` over pairs of models, as a function of scores and measure."""
    chosen = list(pairs)
    return lambda scores, measure: _average(both_ways(scores, measure, x, y) for x, y in chosen)


def _combined(
    score: Callable[[Scores, str], Number], combination: Callable[..., Number]
) -> Statistic:
    """`localisation` or `delocalised` of scores by measure."""
    return lambda scores: combination(partial(score, scores))


# --- the claims ---


def _crossed_with_untrained(roles: Roles) -> list[ModelPair]:
    """The pairs of two paradigms with untrained counterparts of both."""
    return [pair for pair in roles.crossed if set(pair) <= roles.untrained.keys()]


def _subspaces(roles: Roles, measures: Sequence[str] = LAYER) -> list[ClaimTest]:
    pairs = _crossed_with_untrained(roles)
    tests = []
    for measure in measures if pairs else ():
        value = _mean(_of(measure, both_ways), pairs)
        floor = _mean(_of(measure, untrained_partner, roles=roles), pairs)
        others = {"untrained partner": floor, "both untrained": _both_untrained(measure, roles)}
        if roles.seeds:
            others["other seed"] = _mean(_of(measure, both_ways), roles.seeds)
        tests.append(_above(measure, value, "untrained partner", others))
    return tests


def _both_untrained(measure: str, roles: Roles) -> Statistic:
    random = roles.untrained
    pairs = [(random[x], random[y]) for x, y in _crossed_with_untrained(roles)]
    return _mean(_of(measure, both_ways), pairs)


def _converge(roles: Roles) -> list[ClaimTest]:
    pairs, tests = _crossed_with_untrained(roles), []
    for measure in LAYER if pairs else ():
        value, before = _mean(_of(measure, both_ways), pairs), _both_untrained(measure, roles)
        tests.append(_above(measure, value, "both untrained", {"both untrained": before}))
    return tests


def _ceiling(roles: Roles) -> list[ClaimTest]:
    seeded = {model for pair in roles.seeds for model in pair}
    pairs = [pair for pair in _crossed_with_untrained(roles) if set(pair) & seeded]
    tests = []
    for measure in LAYER if pairs else ():
        value = _mean(_of(measure, both_ways), pairs)
        floor = _mean(_of(measure, untrained_partner, roles=roles), pairs)
        ceiling = _mean(_of(measure, both_ways), roles.seeds)
        baselines = {"untrained partner": floor, "other seed": ceiling}
        halfway = {"half way between": _mean_of_two(floor, ceiling)}
        above = _above(measure, value, "half way between", halfway)
        tests.append(dataclasses.replace(above, baselines=baselines))
    return tests


def _neurons(roles: Roles) -> list[ClaimTest]:
    if not roles.crossed:
        return []
    others = {}
    if roles.seeds:
        others["other seed"] = _combined(_by_measure(roles.seeds), localisation)
    if roles.finetuned:
        others["fine-tuned"] = _combined(_by_measure(roles.finetuned), localisation)
    for measure in ("maxcorr", "rotcorr", "linreg"):
        others[measure] = _mean(_of(measure, both_ways), roles.crossed)
    score = _by_measure(roles.crossed)
    value, margin = _combined(score, localisation), _combined(score, delocalised)
    return [ClaimTest("localisation", value, margin, "< 1/2", others)]


def _seeds(roles: Roles) -> list[ClaimTest]:
    if not roles.seeds:
        return []
    score = _by_measure(roles.seeds)
    others = {m: _mean(_of(m, both_ways), roles.seeds) for m in ("maxcorr", "rotcorr", "linreg")}
    value, margin = _combined(score, localisation), _combined(score, delocalised)
    return [ClaimTest("localisation", value, margin, "< 1/2", others)]


def _objective(roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in LAYER if roles.resized and roles.crossed else ():
        value = _mean(_of(measure, both_ways), roles.resized)
        other = _mean(_of(measure, both_ways), roles.crossed)
        tests.append(_above(measure, value, "other objective", {"other objective": other}))
    return tests


def _neighbours(measures: Sequence[str], roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in measures if roles.paradigms else ():
        value = _over_models(_of(measure, next_layer), roles.paradigms)
        far = _over_models(_of(measure, far_layers), roles.paradigms)
        others = {"far layers": far}
        if roles.untrained:
            before = _over_models(_of(measure, next_layer), dict.fromkeys(roles.untrained.values()))
            others["untrained"] = before
        tests.append(ClaimTest(measure, value, _difference(value, far), "> far layers", others))
    return tests


def _neurons_within(roles: Roles) -> list[ClaimTest]:
    if not roles.crossed:
        return []

    def excess(statistic: Callable[..., Number], models: Iterable[tuple[str, ...]]) -> Statistic:
        chosen = list(models)
        return lambda scores: _average(
            statistic(scores, "maxcorr", *m) - statistic(scores, "rotcorr", *m) for m in chosen
        )

    value = excess(next_layer, [(x,) for x in roles.paradigms])
    other = excess(both_ways, roles.crossed)
    return [_above("maxcorr - rotcorr", value, "other model", {"other model": other})]


def _attention_within(roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in ATTENTION if roles.crossed else ():
        value = _over_models(_of(measure, next_layer), roles.paradigms)
        other = _mean(_of(measure, both_ways), roles.crossed)
        tests.append(_above(measure, value, "other model", {"other model": other}))
    return tests


def _halves(roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned else ():
        lower, upper = (
            _mean(_of(measure, half, upper=upper), roles.finetuned) for upper in (False, True)
        )
        tests.append(
            ClaimTest(
                measure, upper, _difference(lower, upper), "< lower half", {"lower half": lower}
            )
        )
    return tests


def _lower(roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned else ():
        value = _mean(_of(measure, half, upper=False), roles.finetuned)
        step = _over_models(_of(measure, lower_steps), [before for _, before in roles.finetuned])
        tests.append(
            ClaimTest(
                measure, value, _difference(value, step), "> next layer", {"next layer": step}
            )
        )
    return tests


def _kept_neurons(roles: Roles) -> list[ClaimTest]:
    if not roles.finetuned:
        return []
    score = _by_measure(roles.finetuned)
    others = {
        m: _mean(_of(m, both_ways), roles.finetuned) for m in ("maxcorr", "rotcorr", "linreg")
    }
    if roles.seeds:
        others["other seed"] = _combined(_by_measure(roles.seeds), localisation)
    value, margin = _combined(score, localisation), _combined(score, delocalised)
    same = _mean(lambda scores, x, y: scores.same_winner(x, y), roles.finetuned)
    shares = {}
    if roles.seeds:
        shares["other seed"] = _mean(lambda scores, x, y: scores.same_winner(x, y), roles.seeds)
    return [
        ClaimTest("localisation", value, lambda scores: -margin(scores), "> 1/2", others),
        ClaimTest("own number wins", same, lambda scores: same(scores) - 0.5, "> 1/2", shares),
    ]


def _close(roles: Roles) -> list[ClaimTest]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned and roles.crossed else ():
        value = _mean(_of(measure, both_ways), roles.finetuned)
        other = _mean(_of(measure, both_ways), roles.crossed)
        others = {"other objective": other}
        if roles.seeds:
            others["other seed"] = _mean(_of(measure, both_ways), roles.seeds)
        tests.append(_above(measure, value, "other objective", others))
    return tests


_ABSTRACT = "abstract"
_MAPS = "published maps"
_OURS = "not in the paper"
_CROSSED = "a contrastive and a predictive model"
_UNTRAINED = f"{_CROSSED}, and untrained models of their architectures"
_SEED = "another seed of one model"
_FINETUNED = "a fine-tuned model and what it was made from"

CLAIMS = (
    ScoreClaim(
        "subspaces",
        "Contrastive and predictive models come to similar representation subspaces.",
        _ABSTRACT,
        "same-depth score of the two paradigms, above that of each with the other untrained",
        _UNTRAINED,
        _subspaces,
    ),
    ScoreClaim(
        "converge",
        "They converge: training makes the two paradigms more alike than they were at the start.",
        _ABSTRACT,
        "same-depth score of the two paradigms, above that of the same two models untrained",
        _UNTRAINED,
        _converge,
    ),
    ScoreClaim(
        "ceiling",
        "The other paradigm is at least half as good as another run of one's own recipe.",
        _OURS,
        "same-depth score of the two paradigms, above the middle between the untrained partner "
        "and another seed",
        f"{_UNTRAINED}, and {_SEED}",
        _ceiling,
    ),
    ScoreClaim(
        "neurons",
        "... but not to the same neurons: what they share is not localised in single neurons.",
        _ABSTRACT,
        "localisation at the same depth between the two paradigms, below 1/2",
        _CROSSED,
        _neurons,
    ),
    ScoreClaim(
        "seeds",
        "Not even two runs of one recipe come to the same neurons.",
        _OURS,
        "localisation at the same depth between two seeds, below 1/2",
        _SEED,
        _seeds,
    ),
    ScoreClaim(
        "objective",
        "The objective decides more than the size: one objective in two sizes is more alike than "
        "two objectives in one size.",
        _MAPS,
        "same-depth score of one paradigm's two sizes, above that of two paradigms of one size",
        "models of two paradigms, one of them in two sizes",
        _objective,
    ),
    ScoreClaim(
        "neighbours",
        "Within a model, neighbouring layers are more alike than distant ones.",
        _MAPS,
        "score of neighbouring layers, above that of layers at least half the depth apart, mean "
        "over pretrained models",
        "a pretrained model",
        partial(_neighbours, LAYER),
    ),
    ScoreClaim(
        "own neurons",
        "Single neurons are found again in the next layer of their model rather than in another "
        "model.",
        _MAPS,
        "maxcorr less rotcorr of neighbouring layers, above that of the other paradigm at the same "
        "depth",
        _CROSSED,
        _neurons_within,
    ),
    ScoreClaim(
        "attention",
        "Contrastive and predictive models come to similar attention.",
        _ABSTRACT,
        "same-depth score of the two paradigms' heads, above that of each with the other untrained",
        _UNTRAINED,
        partial(_subspaces, measures=ATTENTION),
    ),
    ScoreClaim(
        "attention within",
        "Heads are more like those of the next layer than like those of another model.",
        _MAPS,
        "score of neighbouring layers' heads, above that of the other paradigm at the same depth",
        _CROSSED,
        _attention_within,
    ),
    ScoreClaim(
        "lower layers",
        "Fine-tuning barely changes the lower layers: by less than one layer's step.",
        _MAPS,
        "score of the same layers before and after, lower half, above that of a layer with its "
        "neighbours before",
        _FINETUNED,
        _lower,
    ),
    ScoreClaim(
        "top layers",
        "Fine-tuning changes the top layers most.",
        _MAPS,
        "score of the same layers before and after, upper half, below that of the lower half",
        _FINETUNED,
        _halves,
    ),
    ScoreClaim(
        "kept neurons",
        "Fine-tuning leaves the neurons in their places.",
        _MAPS,
        "localisation of the same layers before and after, above 1/2; share of neurons whose best "
        "counterpart is the neuron of the same number, above 1/2",
        _FINETUNED,
        _kept_neurons,
    ),
    ScoreClaim(
        "close",
        "A fine-tuned model is closer to what it was made from than to a model of the other "
        "objective.",
        _MAPS,
        "score of the same layers before and after, above the same-depth score of two paradigms",
        f"{_FINETUNED}, and {_CROSSED}",
        _close,
    ),
)
