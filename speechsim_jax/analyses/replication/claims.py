"""What El Kheir et al. 2024 (arXiv 2406.16099) claim, and the statistic that tests each claim.

Every claim is tested by margins, one a measure: numbers that are positive where the claim is right
(`verdicts` says what groups of utterances make of them). Which layers are set against which:

- *same depth*: each layer of x with the layer of y at the nearest relative depth, the mean over
  layers; x and y in turn for scores that are asymmetric;
- *untrained*: a trained model's layers as rows, in columns the random weights that training of the
  other model started from: how well that accounts for a trained model's layers;
- where models of different initial weights are on the two sides, a score is above another one only
  if it is so by more than 0.03: random stand-ins for trained models, which had learned nothing,
  differed by up to 0.016 (lincka, mean of two pairs), and intervals over utterances know nothing
  of that;
- *localisation* = (maxcorr - rotcorr) / (linreg - rotcorr): 0 if the axes of y mean nothing to x
  (what a random rotation of y would give), 1 if for every neuron of x one single neuron of y says
  all that y knows about it. maxcorr cannot exceed linreg, so a neuron-level score below a
  layer-level one by itself says nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from speechsim_jax.analyses.replication.margins import (
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
"""What the claims need of the neuron and layer levels; attention is `ATTENTION`."""

ModelPair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which model is what. `paradigms`: those of the pretrained models, "contrastive" or another.

    `sizes`: width and depth of each pretrained model. `untrained`: the random model of a pretrained
    one's architecture. `seeds`: a pretrained model and the same recipe with another seed.
    `finetuned`: a fine-tuned model and the pretrained one that it was made from.
    """

    paradigms: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]]
    untrained: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[ModelPair, ...] = ()
    finetuned: tuple[ModelPair, ...] = ()

    @property
    def crossed(self) -> tuple[ModelPair, ...]:
        """Two paradigms, one size; any two sizes if there are no two models of one."""
        pairs = [(x, y) for x, y in self._pairs() if self.paradigms[x] != self.paradigms[y]]
        alike = [(x, y) for x, y in pairs if self.sizes[x] == self.sizes[y]]
        return tuple(alike or pairs)

    @property
    def resized(self) -> tuple[ModelPair, ...]:
        """One paradigm, two sizes."""
        return tuple(
            (x, y)
            for x, y in self._pairs()
            if self.paradigms[x] == self.paradigms[y] and self.sizes[x] != self.sizes[y]
        )

    def _pairs(self) -> Iterable[ModelPair]:
        models = list(self.paradigms)
        return ((x, y) for i, x in enumerate(models) for y in models[i + 1 :])


NOTICEABLE = 0.03

Statistic = Callable[[Scores], float]


@dataclasses.dataclass(frozen=True)
class Test:
    """A margin, positive where the claim is right; the value that is shown, and beside it others.

    `measure` names it in tables; `threshold` says what `value` is held against.
    """

    measure: str
    value: Statistic
    margin: Statistic
    threshold: str
    baselines: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim in words, where it is made, and the tests of it.

    `needs` names what must be among the models; there are no tests without.
    """

    name: str
    text: str
    source: str
    statistic: str
    needs: str
    tests: Callable[[Roles], list[Test]]


def untrained_partner(scores: Scores, measure: str, x: str, y: str, roles: Roles) -> float:
    """How well an untrained y accounts for x, and an untrained x for y."""
    at = roles.untrained
    return (same_depth(scores, measure, x, at[y]) + same_depth(scores, measure, y, at[x])) / 2


def _mean(statistic: Callable[..., float], pairs: Iterable[ModelPair]) -> Statistic:
    """The mean of a statistic of (scores, x, y) over pairs of models."""
    chosen = list(pairs)
    return lambda scores: float(np.mean([statistic(scores, x, y) for x, y in chosen]))


def _over_models(statistic: Callable[..., float], models: Iterable[str]) -> Statistic:
    chosen = list(models)
    return lambda scores: float(np.mean([statistic(scores, model) for model in chosen]))


def _of(measure: str, statistic: Callable[..., float], **given: object) -> Callable[..., float]:
    """A statistic of (scores, measure, ...) with its measure put in."""
    return lambda scores, *models: statistic(scores, measure, *models, **given)


def _less(a: Statistic, b: Statistic) -> Statistic:
    return lambda scores: a(scores) - b(scores)


def _above(a: Statistic, b: Statistic) -> Statistic:
    """a less b, noticeably: other initial weights would have given other scores, too."""
    return lambda scores: a(scores) - b(scores) - NOTICEABLE


def _middle(a: Statistic, b: Statistic) -> Statistic:
    return lambda scores: (a(scores) + b(scores)) / 2


def _local(pairs: Iterable[ModelPair], how: Callable[..., float] = both_ways) -> Callable:
    """Score by measure, the mean over pairs: what `localisation` and `delocalised` ask for."""
    chosen = list(pairs)
    return lambda scores, measure: float(np.mean([how(scores, measure, x, y) for x, y in chosen]))


def _localised(score: Callable[[Scores, str], float], of: Callable[..., float]) -> Statistic:
    return lambda scores: of(partial(score, scores))


# --- the claims ---


def _trained(roles: Roles) -> list[ModelPair]:
    """The pairs of two paradigms that have untrained counterparts."""
    return [pair for pair in roles.crossed if set(pair) <= roles.untrained.keys()]


def _subspaces(roles: Roles, measures: Sequence[str] = LAYER) -> list[Test]:
    pairs = _trained(roles)
    tests = []
    for measure in measures if pairs else ():
        value = _mean(_of(measure, both_ways), pairs)
        floor = _mean(_of(measure, untrained_partner, roles=roles), pairs)
        others = {"untrained partner": floor, "both untrained": _both_untrained(measure, roles)}
        if roles.seeds:
            others["other seed"] = _mean(_of(measure, both_ways), roles.seeds)
        tests.append(
            Test(
                measure, value, _above(value, floor), f"> untrained partner + {NOTICEABLE}", others
            )
        )
    return tests


def _both_untrained(measure: str, roles: Roles) -> Statistic:
    at = roles.untrained
    return _mean(_of(measure, both_ways), [(at[x], at[y]) for x, y in _trained(roles)])


def _converge(roles: Roles) -> list[Test]:
    pairs, tests = _trained(roles), []
    for measure in LAYER if pairs else ():
        value, before = _mean(_of(measure, both_ways), pairs), _both_untrained(measure, roles)
        tests.append(
            Test(
                measure,
                value,
                _above(value, before),
                f"> both untrained + {NOTICEABLE}",
                {"both untrained": before},
            )
        )
    return tests


def _ceiling(roles: Roles) -> list[Test]:
    seeded = {model for pair in roles.seeds for model in pair}
    pairs = [pair for pair in _trained(roles) if set(pair) & seeded]
    tests = []
    for measure in LAYER if pairs else ():
        value = _mean(_of(measure, both_ways), pairs)
        floor = _mean(_of(measure, untrained_partner, roles=roles), pairs)
        ceiling = _mean(_of(measure, both_ways), roles.seeds)
        halfway = _middle(floor, ceiling)
        others = {"untrained partner": floor, "other seed": ceiling}
        tests.append(
            Test(
                measure, value, _above(value, halfway), f"> half way between + {NOTICEABLE}", others
            )
        )
    return tests


def _neurons(roles: Roles) -> list[Test]:
    if not roles.crossed:
        return []
    others = {}
    if roles.seeds:
        others["other seed"] = _localised(_local(roles.seeds), localisation)
    if roles.finetuned:
        others["fine-tuned"] = _localised(_local(roles.finetuned), localisation)
    for measure in ("maxcorr", "rotcorr", "linreg"):
        others[measure] = _mean(_of(measure, both_ways), roles.crossed)
    score = _local(roles.crossed)
    value, margin = _localised(score, localisation), _localised(score, delocalised)
    return [Test("localisation", value, margin, "< 1/2", others)]


def _seeds(roles: Roles) -> list[Test]:
    if not roles.seeds:
        return []
    score = _local(roles.seeds)
    others = {m: _mean(_of(m, both_ways), roles.seeds) for m in ("maxcorr", "rotcorr", "linreg")}
    value, margin = _localised(score, localisation), _localised(score, delocalised)
    return [Test("localisation", value, margin, "< 1/2", others)]


def _objective(roles: Roles) -> list[Test]:
    tests = []
    for measure in LAYER if roles.resized and roles.crossed else ():
        value = _mean(_of(measure, both_ways), roles.resized)
        other = _mean(_of(measure, both_ways), roles.crossed)
        tests.append(
            Test(
                measure,
                value,
                _above(value, other),
                f"> other objective + {NOTICEABLE}",
                {"other objective": other},
            )
        )
    return tests


def _neighbours(measures: Sequence[str], roles: Roles) -> list[Test]:
    tests = []
    for measure in measures if roles.paradigms else ():
        value = _over_models(_of(measure, next_layer), roles.paradigms)
        far = _over_models(_of(measure, far_layers), roles.paradigms)
        others = {"far layers": far}
        if roles.untrained:
            before = _over_models(_of(measure, next_layer), dict.fromkeys(roles.untrained.values()))
            others["untrained"] = before
        tests.append(Test(measure, value, _less(value, far), "> far layers", others))
    return tests


def _own_neurons(roles: Roles) -> list[Test]:
    if not roles.crossed:
        return []

    def excess(own: bool) -> Statistic:
        models = [(x,) for x in roles.paradigms] if own else roles.crossed
        how = next_layer if own else both_ways
        return lambda scores: float(
            np.mean([how(scores, "maxcorr", *m) - how(scores, "rotcorr", *m) for m in models])
        )

    value, other = excess(True), excess(False)
    return [
        Test(
            "maxcorr - rotcorr",
            value,
            _above(value, other),
            f"> other model + {NOTICEABLE}",
            {"other model": other},
        )
    ]


def _attention_within(roles: Roles) -> list[Test]:
    tests = []
    for measure in ATTENTION if roles.crossed else ():
        value = _over_models(_of(measure, next_layer), roles.paradigms)
        other = _mean(_of(measure, both_ways), roles.crossed)
        tests.append(
            Test(
                measure,
                value,
                _above(value, other),
                f"> other model + {NOTICEABLE}",
                {"other model": other},
            )
        )
    return tests


def _halves(roles: Roles) -> list[Test]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned else ():
        lower, upper = (
            _mean(_of(measure, half, upper=upper), roles.finetuned) for upper in (False, True)
        )
        tests.append(
            Test(measure, upper, _less(lower, upper), "< lower half", {"lower half": lower})
        )
    return tests


def _lower(roles: Roles) -> list[Test]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned else ():
        value = _mean(_of(measure, half, upper=False), roles.finetuned)
        step = _over_models(_of(measure, lower_steps), [before for _, before in roles.finetuned])
        tests.append(Test(measure, value, _less(value, step), "> next layer", {"next layer": step}))
    return tests


def _kept_neurons(roles: Roles) -> list[Test]:
    if not roles.finetuned:
        return []
    score = _local(roles.finetuned)
    others = {
        m: _mean(_of(m, both_ways), roles.finetuned) for m in ("maxcorr", "rotcorr", "linreg")
    }
    if roles.seeds:
        others["other seed"] = _localised(_local(roles.seeds), localisation)
    value, margin = _localised(score, localisation), _localised(score, delocalised)
    own = _mean(lambda scores, x, y: scores.same_winner(x, y), roles.finetuned)
    shares = {}
    if roles.seeds:
        shares["other seed"] = _mean(lambda scores, x, y: scores.same_winner(x, y), roles.seeds)
    return [
        Test("localisation", value, lambda scores: -margin(scores), "> 1/2", others),
        Test("own number wins", own, lambda scores: own(scores) - 0.5, "> 1/2", shares),
    ]


def _close(roles: Roles) -> list[Test]:
    tests = []
    for measure in ("maxcorr", *LAYER) if roles.finetuned and roles.crossed else ():
        value = _mean(_of(measure, both_ways), roles.finetuned)
        other = _mean(_of(measure, both_ways), roles.crossed)
        others = {"other objective": other}
        if roles.seeds:
            others["other seed"] = _mean(_of(measure, both_ways), roles.seeds)
        tests.append(
            Test(measure, value, _above(value, other), f"> other objective + {NOTICEABLE}", others)
        )
    return tests


_ABSTRACT = "abstract"
_MAPS = "published maps"
_OURS = "not in the paper"
_CROSSED = "a contrastive and a predictive model"
_UNTRAINED = f"{_CROSSED}, and untrained models of their architectures"
_SEED = "another seed of one model"
_FINETUNED = "a fine-tuned model and what it was made from"

CLAIMS = (
    Claim(
        "subspaces",
        "Contrastive and predictive models come to similar representation subspaces.",
        _ABSTRACT,
        "same-depth score of the two paradigms, above that of each with the other untrained",
        _UNTRAINED,
        _subspaces,
    ),
    Claim(
        "converge",
        "They converge: training makes the two paradigms more alike than they were at the start.",
        _ABSTRACT,
        "same-depth score of the two paradigms, above that of the same two models untrained",
        _UNTRAINED,
        _converge,
    ),
    Claim(
        "ceiling",
        "The other paradigm is at least half as good as another run of one's own recipe.",
        _OURS,
        "same-depth score of the two paradigms, above the middle between the untrained partner "
        "and another seed",
        f"{_UNTRAINED}, and {_SEED}",
        _ceiling,
    ),
    Claim(
        "neurons",
        "... but not to the same neurons: what they share is not localised in single neurons.",
        _ABSTRACT,
        "localisation at the same depth between the two paradigms, below 1/2",
        _CROSSED,
        _neurons,
    ),
    Claim(
        "seeds",
        "Not even two runs of one recipe come to the same neurons.",
        _OURS,
        "localisation at the same depth between two seeds, below 1/2",
        _SEED,
        _seeds,
    ),
    Claim(
        "objective",
        "The objective decides more than the size: one objective in two sizes is more alike than "
        "two objectives in one size.",
        _MAPS,
        "same-depth score of one paradigm's two sizes, above that of two paradigms of one size",
        "models of two paradigms, one of them in two sizes",
        _objective,
    ),
    Claim(
        "neighbours",
        "Within a model, neighbouring layers are more alike than distant ones.",
        _MAPS,
        "score of neighbouring layers, above that of layers at least half the depth apart, mean "
        "over pretrained models",
        "a pretrained model",
        partial(_neighbours, LAYER),
    ),
    Claim(
        "own neurons",
        "Single neurons are found again in the next layer of their model rather than in another "
        "model.",
        _MAPS,
        "maxcorr less rotcorr of neighbouring layers, above that of the other paradigm at the same "
        "depth",
        _CROSSED,
        _own_neurons,
    ),
    Claim(
        "attention",
        "Contrastive and predictive models come to similar attention.",
        _ABSTRACT,
        "same-depth score of the two paradigms' heads, above that of each with the other untrained",
        _UNTRAINED,
        partial(_subspaces, measures=ATTENTION),
    ),
    Claim(
        "attention within",
        "Heads are more like those of the next layer than like those of another model.",
        _MAPS,
        "score of neighbouring layers' heads, above that of the other paradigm at the same depth",
        _CROSSED,
        _attention_within,
    ),
    Claim(
        "lower layers",
        "Fine-tuning barely changes the lower layers: by less than one layer's step.",
        _MAPS,
        "score of the same layers before and after, lower half, above that of a layer with its "
        "neighbours before",
        _FINETUNED,
        _lower,
    ),
    Claim(
        "top layers",
        "Fine-tuning changes the top layers most.",
        _MAPS,
        "score of the same layers before and after, upper half, below that of the lower half",
        _FINETUNED,
        _halves,
    ),
    Claim(
        "kept neurons",
        "Fine-tuning leaves the neurons where they are.",
        _MAPS,
        "localisation of the same layers before and after, above 1/2; share of neurons whose best "
        "counterpart is the neuron of the same number, above 1/2",
        _FINETUNED,
        _kept_neurons,
    ),
    Claim(
        "close",
        "A fine-tuned model is closer to what it was made from than to a model of the other "
        "objective.",
        _MAPS,
        "score of the same layers before and after, above the same-depth score of two paradigms",
        f"{_FINETUNED}, and {_CROSSED}",
        _close,
    ),
)
