"""What the page says in words: planted results, whose findings are known."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.inference.standard_errors import quantile
from speechsim_jax.report import report_page
from speechsim_jax.report.doubts import doubts
from speechsim_jax.report.in_words import Sentence, in_words
from speechsim_jax.results.concepts import read_concepts
from speechsim_jax.results.model_scores import Estimate, ModelScores, ranked_pairs
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.results.summary import listed
from tests.support.clustered import clustered_result
from tests.support.hostile import hostile_result
from tests.support.report_results import SMALL, heads_alone, random_result

ERRORS = {
    "over": "speaker", "clusters": 30, "sampled": 30, "rows": 900, "reason": "t", "source": "rows",
}  # fmt: skip
DEFINITION = {"level": "layer", "symmetric": True, "range": (0, 1)}
LAYERS = 3
HALF = float(quantile(np.array(29.0), 0.95))


def planted(
    means: Mapping[str, float],
    se: float | None = None,
    slope: float = 0.05,
    further: Mapping[str, Any] = {},
    measures: Mapping[str, Any] = {},
    definition: Mapping[str, Any] = DEFINITION,
    attributes: Mapping[str, Any] = {},
) -> SimilarityResult:
    """Models of three layers; of each pair, such as "ab", layer k scores the mean - slope k with
    layer k of the other, and 0.1 less with the rest; a distance instead of a score turns both."""
    models = sorted(set("".join(means)))
    names = [RepresentationName(model, layer) for model in models for layer in range(LAYERS)]
    sign = 1 if definition.get("higher_is_closer", True) else -1
    values = np.eye(len(names)) if sign > 0 else np.zeros((len(names),) * 2)
    for pair, mean in means.items():
        block = np.full((LAYERS, LAYERS), mean - 0.1 * sign) + 0.1 * sign * np.eye(LAYERS)
        block -= sign * slope * np.minimum.outer(np.arange(LAYERS), np.arange(LAYERS))
        for x, y in (pair, pair[::-1]):
            rows, columns = (LAYERS * models.index(m) + np.arange(LAYERS) for m in (x, y))
            values[np.ix_(rows, columns)] = block
    for k in range(len(models)):
        own = slice(LAYERS * k, LAYERS * (k + 1))
        values[own, own] = np.where(np.eye(LAYERS), values[own, own], 0.5)
    matrices = {"mine": values} | dict(measures)
    extras = dict(further)
    if se is not None:
        extras["mine_se"] = (("x", "y"), np.full(values.shape, se))
        extras["mine_se_error"] = (("x", "y"), np.zeros(values.shape))
        attributes = {"errors": ERRORS, **attributes}
    definitions = {name: {**definition, "level": "layer"} for name in matrices}
    return SimilarityResult.build(names, matrices, extras, definitions, attributes)


def about(result: SimilarityResult, subject: str) -> list[Sentence]:
    return [sentence for sentence in in_words(result) if sentence.about == subject]


def doubt(result: SimilarityResult, words: str) -> str:
    """The one doubt that has these words; "" if none has."""
    found = [text for text in doubts(result) if words in text]
    assert len(found) < 2
    return found[0] if found else ""


THREE = {"ab": 0.6, "ac": 0.9, "bc": 0.4}


def test_the_closest_models_come_first_with_their_mean_and_interval() -> None:
    (sentence,) = about(planted(THREE, se=0.01), "closest")
    assert re.findall(r"\b[abc] and [abc]\b", sentence.text) == ["a and c", "a and b", "b and c"]
    # Layers 0, 1, 2: 0.9, 0.85, 0.8.
    assert f"a and c: {Estimate(0.85, HALF * 0.01)}" in sentence.text
    assert "ot distinguishable" not in sentence.text and "not known" not in sentence.text
    assert sentence.cell == ("a/0", "c/0")


@pytest.mark.parametrize(("se", "alike"), [(0.01, False), (0.3, True)])
def test_what_overlaps_is_not_distinguishable(se: float, alike: bool) -> None:
    (sentence,) = about(planted({"ab": 0.8, "ac": 0.9, "bc": 0.1}, se), "closest")
    assert ("ot distinguishable from them: a and b" in sentence.text) == alike


def test_of_many_that_are_alike_a_few_are_named() -> None:
    pairs = {f"{x}{y}": 0.7 for x in "abcd" for y in "abcd" if x < y} | {"ab": 0.71}
    (sentence,) = about(planted(pairs, 0.1), "closest")
    assert "2 more" in sentence.text and sentence.text.count("±") == 4


def test_of_distances_the_smallest_is_closest() -> None:
    result = planted(THREE, 0.001, definition=DEFINITION | {"higher_is_closer": False})
    scores = ModelScores(result, "mine")
    assert [(p.x, p.y) for p in ranked_pairs(scores)] == [("b", "c"), ("a", "b"), ("a", "c")]
    (sentence,) = about(result, "closest")
    assert sentence.cell == ("b/0", "c/0") and "b and c" in sentence.text


def test_without_errors_it_does_not_say_how_sure() -> None:
    sentences = in_words(planted(THREE))
    text = " ".join(one.text for one in sentences)
    assert "±" not in text and "ot distinguishable" not in text
    assert sum("not known" in s.text for s in sentences if s.about in ("closest", "depth")) == 2
    assert doubt(planted(THREE), "how sure")
    reason = {"errors": {"over": "none", "reason": "one speaker only"}}
    assert "one speaker only" in doubt(planted(THREE, attributes=reason), "how sure")


@pytest.mark.parametrize("slope", [0.05, -0.05])
def test_depths(slope: float) -> None:
    first, thirds, *_ = about(planted(THREE, 0.01, slope), "depth")
    layer = 0 if slope > 0 else LAYERS - 1
    assert first.cell == (f"a/{layer}", f"c/{layer}")
    assert str(Estimate(0.9 - slope * layer, HALF * 0.01)) in first.text
    order = re.findall("first|middle|last", thirds.text)
    assert order == (["first", "last"] if slope > 0 else ["last", "first"])


@pytest.mark.parametrize(("se", "alike"), [(0.004, False), (0.2, True)])
def test_whether_thirds_and_layers_are_distinguishable(se: float, alike: bool) -> None:
    first, thirds, *_ = about(planted(THREE, se), "depth")
    assert ("ot distinguishable" in thirds.text) == alike
    assert ("ot distinguishable" in first.text) == alike


def test_layers_away_from_the_same_depth() -> None:
    """Best matches shifted by a layer of two: half the depth, but for the last."""
    values = np.eye(6)
    values[:3, 3:] = 0.2 + 0.6 * np.eye(3, k=1)
    values[2, 5] = 0.7
    values[3:, :3] = values[:3, 3:].T
    names = [RepresentationName(model, layer) for model in "ab" for layer in range(3)]
    result = SimilarityResult.build(names, {"mine": values}, {}, {"mine": DEFINITION})
    matches = ModelScores(result, "mine")
    apart = [abs(matches.depths[i] - matches.depths[j]) for i, j in matches.matches("a", "b")]
    back = [abs(matches.depths[i] - matches.depths[j]) for i, j in matches.matches("b", "a")]
    assert f"{np.mean(apart + back):.2f} of the depth" in about(result, "depth")[-1].text


def test_sums_have_intervals_of_their_own() -> None:
    """With influences of rows, the interval is that of the contrast."""
    result = clustered_result()
    scores = ModelScores(result, "maxcorr")
    (pair,) = ranked_pairs(scores)
    weights = scores.of_pair(pair.x, pair.y)
    low, high = result.contrast(
        "maxcorr", weights=result.matrix("maxcorr").copy(data=weights)
    ).interval()
    assert pair.mean.half == pytest.approx((high - low) / 2)
    bound = float(scores.half[weights != 0] @ weights[weights != 0])
    assert 0 < pair.mean.half < bound
    (x, y) = about(result, "depth")[0].cell or ("", "")
    shares = result.closest("maxcorr", x, y.split("/")[0])
    best = str(shares["y"].values[shares.values.argmax()]).split("/")[1]
    assert f"layer {best} in {float(shares.max()):.0%}" in about(result, "depth")[0].text


def test_two_models_one_model_and_none() -> None:
    (two,) = about(planted({"ab": 0.8}, 0.01), "closest")
    assert str(Estimate(0.75, HALF * 0.01)) in two.text and "closest models" not in two.text
    (one,) = about(planted({"ab": 0.8}, 0.01).select("a"), "closest")
    assert one.cell and {label[0] for label in one.cell} == {"a"} and "0.500" in one.text
    alone = SimilarityResult.build([RepresentationName("a", 0)], {"mine": np.ones((1, 1))})
    assert [s.cell for s in about(alone, "closest")] == [None]
    assert about(heads_alone(SMALL), "closest")[0].cell


def test_untrained_models_are_what_scores_are_read_against() -> None:
    known = {"models": {"c": {"source": "random:c"}, "a": {"source": "hub"}, "b": {}}}
    result = planted(THREE, 0.01, attributes=known)
    (closest,) = about(result, "closest")
    assert closest.cell == ("a/0", "b/0")
    text = about(result, "trust")[0].text
    # With c: the means of 0.9 and 0.4, less 0.05; with each other: 0.6 less 0.05.
    assert str(Estimate(0.6, HALF * 0.01)) in text and str(Estimate(0.55, HALF * 0.01)) in text


def with_concepts() -> SimilarityResult:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 600)
    x = np.eye(3)[label] + rng.standard_normal((600, 3))
    arrays = {f"{m}/{k}": x + 0.1 * rng.standard_normal((600, 3)) for m in "ab" for k in (0, 1)}
    names = [f"p{k}" for k in label]
    return ss.compare_activations(
        arrays, ["linreg", "maxcorr"], labels={"phone": names}, progress=False
    )


def test_what_models_share_is_read_off_their_concepts() -> None:
    result = with_concepts()
    concepts = read_concepts(result)
    texts = [sentence.text for sentence in about(result, "shared")]
    best = max(float(np.nanmax(curve.values)) for curve in concepts.content)
    assert any(f"{best:.3f}" in text and text.startswith("phone") for text in texts)
    kappa = max(float(np.nanmean(found.kappa)) for found in concepts.agreement)
    assert any(f"kappa {Estimate(kappa)}" in text for text in texts)
    assert all("phone" not in s.text for s in about(result, "closest"))  # no model


def test_without_tracks_what_they_share_is_not_known() -> None:
    assert "not known" in about(planted(THREE), "shared")[-1].text
    rankings = np.repeat([[0.9, 0.2], [0.6, 0.5], [0.1, 0.2]], LAYERS, axis=0)
    result = planted(THREE, further={"mincorr_neuron": (("x", "neuron"), rankings)})
    text = about(result, "shared")[0].text
    assert re.findall(r"(\d+)% of those of ([abc])", text) == [
        ("100", "b"), ("50", "a"), ("0", "c"),
    ]  # fmt: skip


COUNT = 3 * LAYERS
TAGS = ("div", "h2", "h3", "details", "summary", "ul", "li", "p", "a")


def square(value: float) -> tuple[tuple[str, str], np.ndarray]:
    return ("x", "y"), np.full((COUNT, COUNT), value)


def of_layers(value: float) -> tuple[tuple[str], np.ndarray]:
    return ("x",), np.full(COUNT, value)


def test_few_frames_are_a_doubt() -> None:
    about_rows = DEFINITION | {"inflated_by_few_rows": True}
    width = {"width": of_layers(100)}
    few = planted(THREE, further=width, definition=about_rows, attributes={"frames": 250})
    text = doubt(few, "mine")
    assert "250" in text and "2.5" in text
    many = planted(THREE, further=width, definition=about_rows, attributes={"frames": 1000})
    assert not doubt(many, "a neuron")
    assert not doubt(planted(THREE, further=width, attributes={"frames": 250}), "a neuron")


def test_outlier_neurons_are_a_doubt() -> None:
    shares = np.full(COUNT, 0.1)
    shares[[1, 5]] = 0.7, 0.6
    variables = {"outlier_share": (("x",), shares)}
    about_neurons = DEFINITION | {"by_variance": True}
    text = doubt(planted(THREE, further=variables, definition=about_neurons), "Outlier")
    assert "mine of a/1 and b/2" in text and "70%" in text
    values = {"lincka": np.full((COUNT,) * 2, 0.9), "lincka_zscored": np.full((COUNT,) * 2, 0.5)}
    beside = planted(THREE, further=variables, measures=values, definition=about_neurons)
    assert "0.400 lower" in doubt(beside, "Outlier")
    assert not doubt(planted(THREE, further=variables, measures=values), "Outlier")
    variables = {"outlier_share": of_layers(0.1)}
    assert not doubt(planted(THREE, further=variables, definition=about_neurons), "Outlier")


@pytest.mark.parametrize(("held", "far"), [(0.1, True), (0.55, False)])
def test_held_out_scores_far_below_are_a_doubt(held: float, far: bool) -> None:
    text = doubt(planted(THREE, further={"mine_heldout": square(held)}), "held out")
    assert bool(text) == far and (not far or f"{held:.3f}" in text)


def test_scores_not_above_the_null_are_a_doubt() -> None:
    p = np.full((COUNT, COUNT), 0.001)
    p[0, 3], p[4, 8] = 0.2, 0.06
    p[0, 1] = 0.9  # within a model
    null = {"mine_null": square(0.2)}
    text = doubt(planted(THREE, further=null | {"mine_p": (("x", "y"), p)}), "not above")
    assert "2 of 54" in text
    assert not doubt(planted(THREE, further=null | {"mine_p": square(0.01)}), "not above")


@pytest.mark.parametrize(("kind", "said"), [("shift", True), ("swap", False)])
def test_p_values_of_a_roll_are_a_doubt(kind: str, said: bool) -> None:
    tested = {"mine_null": square(0.2), "mine_p": square(0.01)}
    attributes = {"null": {"kind": kind, "draws": 19}}
    assert bool(doubt(planted(THREE, further=tested, attributes=attributes), "too small")) == said
    no_p = {"mine_null": square(0.2)}
    assert not doubt(planted(THREE, further=no_p, attributes=attributes), "too small")


def test_a_null_of_few_draws_is_there_but_not_tested() -> None:
    result = planted(THREE, further={"mine_null": square(0.2)})
    assert "19" in doubt(result, "do not belong together")
    assert "do not belong together" not in doubt(result, "not checked")


@pytest.mark.parametrize(("floor", "most"), [(0.5, True), (0.01, False)])
def test_scores_near_their_floor_are_a_doubt(floor: float, most: bool) -> None:
    more = {"lincka": np.full((COUNT, COUNT), 0.7)}
    result = planted(THREE, further={"lincka_floor": square(floor)}, measures=more)
    assert bool(doubt(result, "lincka is mostly floor")) == most


def test_few_clusters_and_undefined_scores_are_doubts() -> None:
    few = {"errors": ERRORS | {"clusters": 8, "sampled": 8}}
    result = planted(THREE, 0.01, attributes=few, measures={"other": np.full((COUNT,) * 2, np.nan)})
    assert "mine" in doubt(result, "Too few speakers")
    assert "other" in doubt(result, "how sure")
    assert f"{COUNT**2} of {COUNT**2}" in doubt(result, "not defined")
    assert "±" not in " ".join(s.text for s in in_words(result))
    pairs = {"settings": {"pairs": ["between"]}}
    some = planted(
        THREE, 0.01, attributes=few | pairs, measures={"o": np.full((COUNT,) * 2, np.nan)}
    )
    assert not doubt(some, "not defined")


def test_what_was_checked_and_what_could_not_be_is_said() -> None:
    everything = {
        "width": of_layers(10),
        "outlier_share": of_layers(0.1),
        "mine_heldout": square(0.7),
        "mine_null": square(0.2),
        "mine_p": square(0.01),
    }
    clear, unknown = doubts(planted(THREE, 0.01, further=everything, attributes={"frames": 900}))
    assert "floors" in unknown and "floors" not in clear
    for name in ("outlier neurons", "held-out", "standard errors", "frames against neurons"):
        assert name in clear and name not in unknown


def test_lists_of_texts() -> None:
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b"], 5, "pairs") == "a, b and 3 more pairs"


def test_sentences_lead_to_their_cells_on_the_page() -> None:
    result = random_result(SMALL)
    page = report_page(result)
    section = page.split('<section id="summary">')[1].split("</section>")[0]
    cells = [s.cell for s in in_words(result) if s.cell]
    links = ["#" + ",".join(quote(label, safe="/") for label in cell) for cell in cells]
    assert re.findall(r'<a href="([^"]*)"', section) == links and len(links) >= 2


def test_hostile_names_are_text() -> None:
    section = report_page(hostile_result()).split('<section id="summary">')[1]
    section = section.split("</section>")[0]
    tags = set(re.findall(r"<(/?\w+)", section))
    assert tags <= {f"{end}{tag}" for end in ("", "/") for tag in TAGS}
    links = re.findall(r'href="([^"]*)"', section)
    assert links and all(re.fullmatch(r"#[\w./~%,-]*", link) for link in links)


def test_measures_that_disagree_on_depth_are_named() -> None:
    """One falls with depth, another rises, and both surely."""
    down, up = (planted({"ab": 0.6}, slope=slope).matrix("mine").values for slope in (0.1, -0.1))
    names = [RepresentationName(model, layer) for model in "ab" for layer in range(LAYERS)]

    def result(other: np.ndarray, se: float) -> SimilarityResult:
        matrices = {"down": down, "other": other}
        errors = {f"{n}_se": (("x", "y"), np.full(down.shape, se)) for n in matrices}
        errors |= {f"{n}_se_error": (("x", "y"), np.zeros(down.shape)) for n in matrices}
        levels = {"down": "layer", "other": "mixed"}
        definitions = {n: {**DEFINITION, "level": level} for n, level in levels.items()}
        return SimilarityResult.build(names, matrices, errors, definitions, {"errors": ERRORS})

    def said(of: SimilarityResult) -> list[str]:
        return [s.text for s in about(of, "depth") if "disagree" in s.text]

    (text,) = said(result(up, 0.001))
    assert "down in the first" in text and "other in the last" in text
    assert not said(result(up, 0.5)) and not said(result(down, 0.001))
