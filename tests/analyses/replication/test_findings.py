"""Findings on representations whose relation is known have the right verdicts, or none."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats

import speechsim_jax as ss
from speechsim_jax.analyses.replication import findings, jackknife
from speechsim_jax.analyses.replication.claims import CLAIMS, MEASURES, Roles
from speechsim_jax.analyses.replication.findings import evaluate_claims
from speechsim_jax.analyses.replication.jackknife import Estimate, Groups, jackknife_estimate
from speechsim_jax.analyses.replication.margins import (
    Number,
    Scores,
    far_layers,
    half,
    localisation,
    lower_steps,
    next_layer,
    same_depth,
    with_error,
)
from speechsim_jax.analyses.replication.verdicts import Verdict, combine, verdict
from speechsim_jax.inference.contrast import Contrast
from speechsim_jax.results.result import RepresentationName, SimilarityResult

pytestmark = pytest.mark.slow

WIDTH, LAYERS, ROWS, GROUPS, SPEAKERS = 12, 3, 3200, 4, 40
# Directions of falling variance, as in trained models: among equal ones svcca's cut is arbitrary.
SPREAD = 0.8 ** np.arange(WIDTH)[:, None] * np.linalg.qr(np.vander(np.linspace(0.5, 1.5, WIDTH)))[0]
ROLES = Roles(
    paradigms={"c": "contrastive", "p": "predictive"},
    sizes={"c": (LAYERS - 1, WIDTH), "p": (LAYERS - 1, WIDTH)},
    untrained={"c": "c0", "p": "p0"},
)
Layers = list[np.ndarray]


def rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]


def noise_of(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((ROWS, WIDTH)) @ SPREAD


def mixed(rng: np.random.Generator, signal: np.ndarray, share: float) -> np.ndarray:
    """A signal with independent noise; `share` of the variance is the signal's."""
    noise = noise_of(rng)
    return math.sqrt(share) * signal + math.sqrt(1 - share) * noise


def deep(rng: np.random.Generator, first: np.ndarray) -> Layers:
    """Layers that drift away from the first, a seventh of the variance at each step."""
    layers = [first]
    for _ in range(LAYERS - 1):
        layers.append(mixed(rng, layers[-1], 6 / 7))
    return layers


@pytest.fixture(scope="module")
def contrastive() -> Layers:
    rng = np.random.default_rng(0)
    return deep(rng, noise_of(rng))


@pytest.fixture(scope="module")
def untrained(contrastive) -> dict[str, Layers]:
    """Two models that share a fifth of their variance with the input, each rotated differently."""
    rng = np.random.default_rng(1)
    return {
        name: deep(rng, mixed(rng, contrastive[0] @ rotation(rng), 0.2)) for name in ("c0", "p0")
    }


def compared(models: dict[str, Layers], rows: np.ndarray, **errors) -> SimilarityResult:
    arrays = {f"{name}/{l}": x[rows] for name, xs in models.items() for l, x in enumerate(xs)}
    return ss.compare_activations(arrays, measures=MEASURES, rows_per_update=ROWS, **errors)


def result_of(models: dict[str, Layers]) -> SimilarityResult:
    """Of all rows, with standard errors over 40 speakers."""
    every = np.arange(ROWS)
    return compared(models, every, errors=True, groups=every % SPEAKERS, heldout=True)


def groups_of(models: dict[str, Layers]) -> Groups:
    """All rows, and all but each fourth of them."""
    every = np.arange(ROWS)
    without = [[compared(models, every[every % GROUPS != g])] for g in range(GROUPS)]
    return Groups([compared(models, every)], without)


def verdict_of(outcomes: list[findings.Finding], name: str) -> Verdict:
    return next(finding.verdict for finding in outcomes if finding.claim.name == name)


def by_measure(outcomes: list[findings.Finding], name: str) -> dict[str, findings.ClaimTestResult]:
    finding = next(finding for finding in outcomes if finding.claim.name == name)
    return {test.measure: test for test in finding.tests}


def claims_named(*names: str) -> list:
    return [claim for claim in CLAIMS if claim.name in names]


@pytest.fixture(scope="module")
def turned(contrastive, untrained) -> dict[str, Layers]:
    """The predictive model is the contrastive one on other axes."""
    rng = np.random.default_rng(2)
    other = [mixed(rng, x @ rotation(rng), 0.95) for x in contrastive]
    return {"c": contrastive, "p": other} | untrained


@pytest.fixture(scope="module")
def turned_result(turned) -> SimilarityResult:
    return result_of(turned)


@pytest.fixture(scope="module")
def rotated(turned_result) -> list[findings.Finding]:
    return evaluate_claims([turned_result], ROLES)


def test_a_rotation_shares_subspaces_but_no_neurons(rotated):
    assert verdict_of(rotated, "subspaces") == Verdict.HOLDS
    assert verdict_of(rotated, "converge") == Verdict.HOLDS
    assert verdict_of(rotated, "neurons") == Verdict.HOLDS
    value = by_measure(rotated, "neurons")["localisation"].value
    assert abs(value.difference) < 0.1
    assert 0 < value.standard_error < 0.05


def test_a_permutation_shares_both(contrastive, untrained):
    rng = np.random.default_rng(3)
    order = rng.permutation(WIDTH)
    copied = [mixed(rng, x[:, order], 0.95) for x in contrastive]
    result = result_of({"c": contrastive, "p": copied} | untrained)
    outcomes = evaluate_claims([result], ROLES, claims=claims_named("subspaces", "neurons"))
    assert verdict_of(outcomes, "subspaces") == Verdict.HOLDS
    assert verdict_of(outcomes, "neurons") == Verdict.FAILS
    assert by_measure(outcomes, "neurons")["localisation"].value.difference > 0.9


def test_unrelated_models_share_nothing(contrastive, untrained):
    rng = np.random.default_rng(4)
    other = deep(rng, noise_of(rng))
    result = result_of({"c": contrastive, "p": other} | untrained)
    outcomes = evaluate_claims([result], ROLES, claims=claims_named("subspaces", "converge"))
    assert verdict_of(outcomes, "subspaces") == Verdict.FAILS
    assert verdict_of(outcomes, "converge") == Verdict.FAILS


def test_groups_that_disagree_decide_nothing(contrastive, untrained):
    """In half of the groups the second model turns the first one, in the others it is noise."""
    rng = np.random.default_rng(5)
    good = (np.arange(ROWS) % GROUPS < GROUPS // 2)[:, None]
    half_turned = [np.where(good, x @ rotation(rng), noise_of(rng)) for x in contrastive]
    # What all groups agree on lies in the middle: half of the relation everywhere.
    partners = {
        name: [mixed(rng, x @ rotation(rng), 0.25) for x in contrastive] for name in ("c0", "p0")
    }
    models = {"c": contrastive, "p": half_turned} | partners
    (outcome,) = evaluate_claims(
        [result_of(models)], ROLES, claims=claims_named("subspaces"), groups=groups_of(models)
    )
    assert outcome.verdict == outcome.grouped == Verdict.UNDECIDED
    grouped = [test.grouped for test in outcome.tests]
    assert "2/4" in {jackknife.votes(one.margin) for one in grouped if one}


def test_what_is_not_there_is_not_tested(rotated):
    lacking = {one.claim.name: one.lacking for one in rotated if not one.tests}
    assert {"top layers", "kept neurons", "seeds", "objective", "attention"} <= lacking.keys()
    assert "fine-tuned" in lacking["top layers"]
    assert "attn_js" in lacking["attention"]
    assert all(one.verdict == Verdict.UNTESTED for one in rotated if one.claim.name in lacking)


def test_layers_within_a_model(rotated):
    assert verdict_of(rotated, "neighbours") == Verdict.HOLDS
    assert verdict_of(rotated, "own neurons") == Verdict.HOLDS


# --- fine-tuning ---

FINETUNED = dataclasses.replace(ROLES, untrained={}, finetuned=(("ft", "c"),))


def finetuned(contrastive: Layers, tuned: Layers) -> list[findings.Finding]:
    rng = np.random.default_rng(6)
    other = [mixed(rng, x @ rotation(rng), 0.5) for x in contrastive]
    return evaluate_claims([result_of({"c": contrastive, "p": other, "ft": tuned})], FINETUNED)


def test_changes_that_grow_with_depth(contrastive):
    rng = np.random.default_rng(7)
    shares = 1 - np.linspace(0.02, 0.6, LAYERS)
    tuned = [mixed(rng, x, share) for x, share in zip(contrastive, shares)]
    outcomes = finetuned(contrastive, tuned)
    for name in ("lower layers", "top layers", "kept neurons", "close"):
        assert verdict_of(outcomes, name) == Verdict.HOLDS, name
    kept = by_measure(outcomes, "kept neurons")["own number wins"]
    assert kept.value.difference == 1 and kept.verdict == Verdict.UNTESTED


def test_changes_that_shrink_with_depth(contrastive):
    rng = np.random.default_rng(8)
    shares = 1 - np.linspace(0.6, 0.02, LAYERS)
    tuned = [mixed(rng, x, share) for x, share in zip(contrastive, shares)]
    outcomes = finetuned(contrastive, tuned)
    assert verdict_of(outcomes, "top layers") == Verdict.FAILS
    assert verdict_of(outcomes, "lower layers") == Verdict.FAILS


def test_neurons_that_are_moved_or_mixed(contrastive):
    rng = np.random.default_rng(9)
    order = np.roll(np.arange(WIDTH), 1)
    moved = finetuned(contrastive, [mixed(rng, x[:, order], 0.9) for x in contrastive])
    kept = by_measure(moved, "kept neurons")
    assert kept["localisation"].verdict == Verdict.HOLDS
    # Which neuron wins has no standard error: it cannot decide, but it can disagree.
    assert kept["own number wins"].value.difference == 0
    assert kept["own number wins"].verdict == Verdict.UNTESTED
    assert verdict_of(moved, "kept neurons") == Verdict.UNDECIDED
    turned = finetuned(contrastive, [mixed(rng, x @ rotation(rng), 0.9) for x in contrastive])
    assert verdict_of(turned, "kept neurons") == Verdict.FAILS


# --- statistics by hand ---


def _small_scores() -> Scores:
    representations = [RepresentationName("a", l) for l in range(4)] + [
        RepresentationName("b", l) for l in range(3)
    ]
    values = np.arange(49.0).reshape(7, 7)
    return Scores([SimilarityResult.build(representations, {"lincka": values})])


def test_statistics_pick_the_right_cells():
    scores = _small_scores()
    # Layers of a at 0, 1/3, 2/3, 1 and of b at 0, 1/2, 1: columns 4, 5, 5, 6 (ties: the first).
    assert same_depth(scores, "lincka", "a", "b") == np.mean([4, 7 + 5, 14 + 5, 21 + 6])
    # At least half of the depth apart: 0-2, 0-3, 1-3 and back.
    assert far_layers(scores, "lincka", "a") == np.mean([2, 3, 10, 14, 21, 22])
    assert next_layer(scores, "lincka", "b") == np.mean([33, 41, 39, 47])
    # Layers 0 and 1 of four, each with its neighbours.
    assert lower_steps(scores, "lincka", "a") == np.mean([1, 7, 9])
    assert half(scores, "lincka", "a", "a", upper=False) == np.mean([0, 8])
    assert half(scores, "lincka", "a", "a", upper=True) == np.mean([16, 24])
    assert half(scores, "lincka", "b", "b", upper=True) == 48  # the middle layer is in neither


def test_a_result_without_the_models_is_passed_over():
    first = SimilarityResult.build([RepresentationName("x", 0)], {"lincka": np.ones((1, 1))})
    scores = Scores([first, *_small_scores()._results])
    assert scores.block("lincka", "a", "b").values.shape == (4, 3)
    with pytest.raises(LookupError, match="svcca of a and b"):
        scores.block("svcca", "a", "b")


# --- the jackknife and the rule ---


def test_jackknife_of_a_mean_is_the_textbook_interval():
    values = np.random.default_rng(0).standard_normal((8, 50))
    means = values.mean(axis=1)
    without = [np.delete(values, g, axis=0).mean() for g in range(8)]
    estimate = jackknife_estimate(float(values.mean()), without, np.full(8, 1 / 8))
    np.testing.assert_allclose(estimate.groups, means, atol=1e-14)
    low, high = scipy.stats.t.interval(0.95, 7, means.mean(), means.std(ddof=1) / math.sqrt(8))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-14)


def test_unequal_groups_keep_their_means():
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(size) for size in (10, 20, 30, 40)]
    every = np.concatenate(parts)
    without = [np.concatenate(parts[:g] + parts[g + 1 :]).mean() for g in range(4)]
    estimate = jackknife_estimate(float(every.mean()), without, np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(estimate.groups, [part.mean() for part in parts], atol=1e-14)
    assert estimate.estimate == pytest.approx(every.mean(), abs=1e-14)


def test_jackknife_removes_the_bias_of_small_samples():
    """A statistic that is 0.3 + 5 / n, on groups of 100, 200 and 300 rows."""
    sizes = np.array([100, 200, 300])
    biased = [0.3 + 5 / (600 - size) for size in sizes]
    assert jackknife_estimate(0.3 + 5 / 600, biased, sizes / 600).estimate == pytest.approx(
        0.3, abs=1e-14
    )


def _estimate(whole: float, groups: list[float], low: float, high: float) -> Estimate:
    return Estimate(whole, whole, low, high, tuple(groups))


@pytest.mark.parametrize(
    ("whole", "groups", "interval", "expected"),
    [
        (0.2, [0.1, 0.3], (0.1, 0.3), Verdict.HOLDS),
        (-0.2, [-0.1, -0.3], (-0.3, -0.1), Verdict.FAILS),
        (0.2, [0.1, -0.01], (0.1, 0.3), Verdict.UNDECIDED),  # a group disagrees
        (0.2, [0.1, 0.9], (-0.1, 0.5), Verdict.UNDECIDED),  # the interval does not exclude 0
        (-0.01, [0.1, 0.3], (0.1, 0.3), Verdict.UNDECIDED),  # the plain score disagrees
        (0.2, [0.1, 0.0], (0.1, 0.3), Verdict.UNDECIDED),
        (0.2, [0.1, math.nan], (math.nan, math.nan), Verdict.UNDECIDED),
    ],
)
def test_rule_of_groups(whole, groups, interval, expected):
    assert jackknife.verdict(_estimate(whole, groups, *interval)) == expected


@pytest.mark.parametrize(
    ("margin", "heldout", "expected"),
    [
        (Contrast(0.1, 0.04, 39), math.nan, Verdict.HOLDS),
        (Contrast(-0.1, 0.04, 39), math.nan, Verdict.FAILS),
        (Contrast(0.1, 0.06, 39), math.nan, Verdict.UNDECIDED),
        (Contrast(0.1, 0.045, 9), math.nan, Verdict.UNDECIDED),  # few speakers: a wider interval
        (Contrast(0.1, 0.04, 39), 0.01, Verdict.HOLDS),
        (Contrast(0.1, 0.04, 39), -0.01, Verdict.UNDECIDED),  # held-out scores disagree
        (Contrast(-0.1, 0.04, 39), 0.01, Verdict.UNDECIDED),
        (Contrast(0.1, 0.04, math.nan), 0.1, Verdict.UNDECIDED),  # fewer than 10 clusters
    ],
)
def test_rule(margin, heldout, expected):
    assert verdict(margin, heldout) == expected


def test_a_statistic_has_the_error_of_its_linear_combination(turned_result):
    """Of a mean over layers, that of the contrast with the same weights; of a ratio, delta's."""
    scores = Scores([turned_result])
    value = with_error(lambda s: next_layer(s, "lincka", "c"), [turned_result])
    cells = [("c/0", "c/1"), ("c/1", "c/2"), ("c/1", "c/0"), ("c/2", "c/1")]
    contrast = turned_result.contrast("lincka", cells)
    assert (
        value.difference == pytest.approx(contrast.difference) == next_layer(scores, "lincka", "c")
    )
    assert value.standard_error == pytest.approx(contrast.standard_error, rel=1e-6)
    assert value.degrees == pytest.approx(contrast.degrees)
    others = with_error(lambda s: 1 / next_layer(s, "lincka", "c"), [turned_result])
    assert others.standard_error == pytest.approx(
        contrast.standard_error / contrast.difference**2, rel=1e-5
    )
    none = with_error(lambda s: next_layer(s, "pwcca", "c"), [turned_result])
    assert math.isfinite(none.difference) and math.isnan(none.standard_error)


def test_errors_are_those_of_a_jackknife_over_speakers(turned, turned_result):
    every = np.arange(ROWS)
    small = {"c": turned["c"], "p": turned["p"]}
    whole = localised([compared(small, every)])
    without = [localised([compared(small, every[every % SPEAKERS != s])]) for s in range(0, 40, 2)]
    spread = np.sqrt(2 * (SPEAKERS - 1) / SPEAKERS * np.sum(np.square(np.subtract(without, whole))))
    error = with_error(lambda s: localised_in(s), [turned_result]).standard_error
    assert error == pytest.approx(spread, rel=0.35)  # of half of the speakers


def localised_in(scores: Scores) -> Number:
    return localisation(lambda measure: same_depth(scores, measure, "c", "p"))


def localised(results: list[SimilarityResult]) -> float:
    return float(localised_in(Scores(results)))


def test_held_out_margins_decide_with_the_others(turned_result):
    dataset = turned_result.dataset.copy()
    linreg = dataset["linreg_heldout"].copy(data=-dataset["linreg_heldout"].values)
    changed = dataclasses.replace(turned_result, dataset=dataset.assign(linreg_heldout=linreg))
    (before,), (after,) = (
        evaluate_claims([result], ROLES, claims=claims_named("neighbours"))
        for result in (turned_result, changed)
    )
    assert before.verdict == Verdict.HOLDS and after.verdict == Verdict.UNDECIDED
    tests = {test.measure: test for test in after.tests}
    assert tests["linreg"].heldout < 0 < tests["svcca"].heldout
    assert math.isnan(tests["lincka"].heldout)


def test_measures_that_disagree_decide_nothing():
    yes, no, perhaps = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED
    assert combine([yes, yes]) == yes
    assert combine([no, no]) == no
    assert combine([yes, no]) == combine([yes, perhaps]) == perhaps
    untested = Verdict.UNTESTED  # for want of a standard error
    assert combine([yes, untested], [0.1]) == yes and combine([no, untested], [-0.1]) == no
    assert combine([yes, untested], [-0.1]) == combine([no, untested], [0.1]) == perhaps
    assert combine([]) == combine([Verdict.UNTESTED]) == Verdict.UNTESTED


def test_groups_must_add_up(contrastive):
    every, models = np.arange(ROWS), {"c": contrastive[:1]}
    full = compared(models, every)
    without = [compared(models, every[every % GROUPS != g]) for g in range(GROUPS)]
    np.testing.assert_allclose(jackknife.group_weights(full, without), 1 / GROUPS)
    with pytest.raises(ss.UserError, match="must be disjoint"):
        jackknife.group_weights(full, without[1:])
    with pytest.raises(ss.UserError, match="1 groups"):
        jackknife.group_weights(full, without[:1])


def test_roles_pair_models_by_size_and_paradigm():
    roles = Roles(
        paradigms={
            "cs": "contrastive",
            "ps": "predictive",
            "cb": "contrastive",
            "pb": "predictive",
        },
        sizes={"cs": (4, 96), "ps": (4, 96), "cb": (6, 160), "pb": (6, 160)},
    )
    assert roles.crossed == (("cs", "ps"), ("cb", "pb"))
    assert roles.resized == (("cs", "cb"), ("ps", "pb"))
    unequal = Roles({"c": "contrastive", "p": "predictive"}, {"c": (4, 96), "p": (6, 160)})
    assert unequal.crossed == (("c", "p"),)


# --- tables and JSON ---


def test_pages(rotated):
    text = findings.table(rotated)
    assert "=> HOLDS" in text and "not tested" in text.lower()
    assert all(one.claim.name in findings.tally(rotated) for one in rotated)
    page = findings.markdown(rotated, ["from a test"], ["figures/lincka.png"])
    assert "| **holds** |" in page and "- from a test" in page and "](figures/lincka.png)" in page
    assert "±" in text and "by groups" not in text + page
    content = json.loads(findings.as_json(rotated, {"who": "a test", "nothing": math.nan}))
    assert content["about"] == {"who": "a test", "nothing": None}
    by_name = {one["name"]: one for one in content["findings"]}
    assert by_name["neurons"]["verdict"] == "holds"
    margin = by_name["neurons"]["tests"][0]["margin"]
    assert 0 < margin["low"] < margin["difference"] < margin["high"] and margin["p"] < 0.05
    page = findings.explain()
    assert all(claim.text in page for claim in CLAIMS) and "holds           if every" in page


def test_verdicts_by_groups_stand_beside(turned, turned_result):
    outcomes = evaluate_claims(
        [turned_result], ROLES, claims=claims_named("subspaces"), groups=groups_of(turned)
    )
    assert outcomes[0].grouped == Verdict.HOLDS
    page = findings.markdown(outcomes, [], groups=GROUPS)
    assert "| **holds** | holds |" in page and "4/4" in page
    assert "by groups: holds" in findings.table(outcomes)
    (saved,) = json.loads(findings.as_json(outcomes, {}))["findings"]
    assert saved["grouped"] == "holds"
    assert len(saved["tests"][0]["grouped"]["margin"]["groups"]) == GROUPS


def test_published_values_are_baselines(turned_result):
    names = [RepresentationName(model, layer) for model in ("h", "w") for layer in range(3)]
    maps = SimilarityResult.build(names, {"lincka": np.full((6, 6), 0.625)})
    there = Roles({"w": "contrastive", "h": "predictive"}, {"w": (3,), "h": (3,)})
    outcomes = evaluate_claims(
        [turned_result], ROLES, ([maps], there), claims_named("own neurons", "neighbours")
    )
    tests = by_measure(outcomes, "neighbours")
    assert tests["lincka"].baselines["published"] == 0.625
    assert "published" not in tests["svcca"].baselines
