"""The report: the page shows the result's numbers, and needs no other file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.report import report_page, write_report
from speechsim_jax.report.content import NEURONS_PER_PAIR
from speechsim_jax.report.packed import PackedArrays
from speechsim_jax.results.depth import monotone_path
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.results.summary import letter
from tests.support.report_results import (
    EVERY_MEASURE,
    FULL_SIZE,
    SMALL,
    Page,
    Shape,
    heads_alone,
    random_result,
)


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return random_result(SMALL)


@pytest.fixture(scope="module")
def page(result: SimilarityResult, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(result, tmp_path_factory.mktemp("report") / "new" / "report.html"))


@pytest.mark.parametrize("measure", ["maxcorr", "procrustes_distance"])
def test_matches_are_those_of_the_figures(measure: str, tmp_path: Path) -> None:
    """`figures.layer_trend` draws the scores of the layers that the page matches."""
    result = random_result({"a": Shape(7, 8, 0), "b": Shape(5, 8, 0)})
    facts = Page(write_report(result, tmp_path / "report.html")).facts()
    (alignment,) = [m["alignment"] for m in facts["measures"] if m["name"] == measure]
    lines = figures.layer_trend(result, measure).axes[0].lines
    for line, rule in zip(lines, ("best", "same"), strict=True):
        layers = alignment[rule][1, :7]
        expected = result.matrix(measure).values[np.arange(7), layers]
        np.testing.assert_array_equal(line.get_ydata(), expected)


def _read_back(values: np.ndarray, how: str, tmp_path: Path) -> np.ndarray:
    packed = PackedArrays()
    before = packed.integers(np.arange(3))  # three bytes: what follows must be aligned all the same
    entry = getattr(packed, how)(values)
    page = tmp_path / "page.html"
    page.write_text(f'<script id="data">{packed.encode({"a": entry, "b": before})}</script>')
    facts = Page(page).facts()
    np.testing.assert_array_equal(facts["b"], [0, 1, 2])
    return facts["a"]


@pytest.mark.parametrize("ends", [(0, 1), (-5.5, 0.2), (1e-8, 3e-8), (0.25, 0.25)])
def test_rounded_arrays(ends: tuple[float, float], tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(*ends, (5, 7))
    values[2, 3], values[4, 4] = np.nan, np.inf
    decoded = _read_back(values, "rounded", tmp_path)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(decoded), finite)
    half_a_step = (ends[1] - ends[0]) / 65534 / 2
    np.testing.assert_allclose(decoded[finite], values[finite], rtol=1e-12, atol=half_a_step)


@pytest.mark.parametrize(("largest", "kind"), [(254, 1), (255, 2), (65534, 2), (65535, 4), (-1, 1)])
def test_integer_arrays(largest: int, kind: int, tmp_path: Path) -> None:
    values = np.array([[largest, -1], [0, 0]])
    np.testing.assert_array_equal(_read_back(values, "integers", tmp_path), values)
    assert PackedArrays().integers(values)["type"] == f"uint{8 * kind}"


def test_exact_arrays(tmp_path: Path) -> None:
    values = np.array([0.1, np.nan, 1e30])
    np.testing.assert_array_equal(_read_back(values, "exact", tmp_path), values.astype(np.float32))
    assert _read_back(np.zeros((0, 2)), "rounded", tmp_path).shape == (0, 2)


def test_letters() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


def test_page_holds_the_scores(result: SimilarityResult, page: Page) -> None:
    facts = page.facts()
    assert [m["name"] for m in facts["measures"]] == list(result.measures)
    for measure in facts["measures"]:
        matrix = result.matrix(measure["name"])
        np.testing.assert_array_equal(measure["values"], matrix.values.astype(np.float32))
        assert measure["axis"] == (
            "attention" if "attention" in matrix.dims[0] else "representation"
        )
        assert measure["directed"] == (not result.definition(measure["name"])["symmetric"])
    by_name = {measure["name"]: measure for measure in facts["measures"]}
    assert by_name["maxcorr"]["range"] == [0, 1]
    assert by_name["attn_frobenius"]["range"] == [by_name["attn_frobenius"]["limits"][0], 1]
    names = [model["short"] for model in facts["models"]]
    assert names == ["first-<b>&small", "second-base", "third-large"]
    representations = zip(
        facts["axes"]["representation"]["model"], facts["axes"]["representation"]["layer"]
    )
    assert [f"{list(SMALL)[m]}/{l}" for m, l in representations] == [
        str(n) for n in result.representations
    ]
    assert facts["axes"]["attention"]["layer"] == [1, 2, 3, 1, 2, 1, 2, 3, 4, 5]
    assert facts["axes"]["attention"]["depth"][:4] == pytest.approx([1 / 3, 2 / 3, 1, 1 / 2])
    np.testing.assert_array_equal(facts["facts"][1]["values"], result.dataset["rank"])


@pytest.mark.parametrize("measure", ["maxcorr", "procrustes_distance", "attn_js"])
def test_page_holds_the_alignment(result: SimilarityResult, page: Page, measure: str) -> None:
    (entry,) = [m for m in page.facts()["measures"] if m["name"] == measure]
    matrix = result.matrix(measure)
    models = matrix[f"{matrix.dims[0]}_model"].values
    for y, model in enumerate(result.models):
        columns = np.flatnonzero(models == model)
        rows = np.flatnonzero(models != model)
        block = matrix.values[np.ix_(rows, columns)]
        nearest = block.argmin(axis=1) if "distance" in measure else block.argmax(axis=1)
        np.testing.assert_array_equal(entry["alignment"]["best"][y, rows], columns[nearest])
        np.testing.assert_array_equal(entry["alignment"]["best"][y, columns], -1)
        for x in set(models) - {model}:
            block = result.block(measure, x, model).values
            path = monotone_path(-block if "distance" in measure else block)
            drawn = entry["alignment"]["path"][y, models == x]
            np.testing.assert_array_equal(drawn, columns[path])


def test_page_holds_the_best_neurons_of_a_pair(result: SimilarityResult, page: Page) -> None:
    facts, data = page.facts()["matches"], result.dataset
    for i, j in ((0, 5), (12, 2), (6, 6)):
        corr = data["best_corr"].values[i, j]
        order = np.argsort(-corr, kind="stable")[:NEURONS_PER_PAIR]  # NaN last
        np.testing.assert_array_equal(facts["neuron"][i, j], order)
        np.testing.assert_array_equal(facts["match"][i, j], data["best_match"].values[i, j, order])
        np.testing.assert_allclose(facts["corr"][i, j], corr[order], atol=1e-5)


def test_page_holds_the_neurons_of_a_representation(result: SimilarityResult, page: Page) -> None:
    facts, data = page.facts()["neurons"], result.dataset
    models = data["x_model"].values
    corr, match = data["best_corr"].values, data["best_match"].values
    i = 5  # of the second model, which is narrower than the widest
    of_models = [corr[i, models == model].max(axis=0) for model in result.models]
    smallest = np.minimum(of_models[0], of_models[2])
    order = np.argsort(-smallest, kind="stable")
    width = int(data["width"].values[i])
    np.testing.assert_array_equal(facts["neuron"][i, :width], order[:width])
    np.testing.assert_array_equal(facts["neuron"][i, width:], -1)
    assert np.isnan(facts["value"][i, 1]).all() and np.isnan(facts["value"][i, :, width:]).all()
    for place, neuron in enumerate(order[:width]):
        for y in (0, 2):
            winner = facts["place"][i, y, place]
            assert models[winner] == result.models[y]
            assert corr[i, winner, neuron] == of_models[y][neuron]
            assert facts["value"][i, y, place] == pytest.approx(of_models[y][neuron], abs=1e-5)
            assert facts["winner"][i, y, place] == match[i, winner, neuron]


def test_page_holds_canonical_correlations_and_heads(result: SimilarityResult, page: Page) -> None:
    facts, data = page.facts(), result.dataset
    rho, stored = data["svcca_rho"].values, facts["correlations"]
    np.testing.assert_array_equal(stored["count"], np.isfinite(rho).sum(axis=2))
    first, last = stored["values"][..., 0], stored["values"][..., -1]
    np.testing.assert_allclose(first, rho[..., 0], atol=1e-5)
    np.testing.assert_allclose(last, np.nanmin(rho, axis=2), atol=1e-5)
    heads = next(m["heads"] for m in facts["measures"] if m["name"] == "attn_js")
    np.testing.assert_array_equal(heads["match"], data["attn_js_match"])
    np.testing.assert_allclose(heads["best"], data["attn_js_best"], atol=1e-5)
    baselines = facts["measures"][-1]["baselines"]
    expected = np.nanmean(data["attn_js_baseline"].values, axis=2)
    np.testing.assert_allclose(np.array([b["values"] for b in baselines]).T, expected, rtol=1e-6)


def test_page_needs_nothing_else(page: Page) -> None:
    assert [tag for tag in page.tags if tag in ("img", "iframe", "object", "embed")] == []
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    source = re.sub(r'application/gzip" id="[^>]*>[^<]*', "", page.source)
    assert "http" not in source and "@import" not in source and "url(" not in source
    assert page.packed("plotly-source").decode().lstrip().startswith("/**\n* plotly.js v")


def test_page_shows_what_was_compared(page: Page) -> None:
    for words in (
        "Similarity of 13 layers of 3 models",
        "967,512 frames · 2,703 utterances · random numbers",
        "A first-<b>&small hubert 0-3 30 hub aaaaaaaaaaaa…",  # escaped, or it would be a tag
        "length 5 h 23 min",
        "origin speech/dev-clean",
        "drop_labels SIL",
        "jax 0.10.1",
        r"a/broken\udcff.flac cannot be decoded",
        "svcca layer canonical correlations 0 to 1 symmetric Author 2024, equation 1",
        "attn_frobenius attention distance of the maps -∞ to 1 row x by column y",
    ):
        assert words in page.text, words


def test_page_of_scores_alone(tmp_path: Path) -> None:
    representations = [RepresentationName(model, 0) for model in "ab"]
    bare = SimilarityResult.build(representations, {"mine": np.array([[1.0, np.nan], [0.5, 1.0]])})
    page = Page(write_report(bare, tmp_path / "report.html"))
    facts = page.facts()
    assert facts["correlations"] is facts["matches"] is facts["neurons"] is None
    assert facts["facts"] == facts["floors"] == []
    for sentence in (
        "This result does not record which audio was read.",
        "This result does not record how it was computed.",
        "This result has no statistics of its representations",
        "This result does not record which files were skipped.",
    ):
        assert sentence in page.text


def test_page_of_heads_alone_counts_the_layers_that_have_some(tmp_path: Path) -> None:
    page = Page(write_report(heads_alone(SMALL), tmp_path / "report.html"))
    assert "Similarity of 10 layers of 3 models" in page.text
    assert "A first-<b>&small hubert 1-3 hub" in page.text
    assert page.facts()["axes"]["representation"] == page.facts()["axes"]["attention"]
    assert "What the scores stand on" not in page.text and "Every representation" not in page.text


def test_page_warns_of_few_frames(page: Page, tmp_path: Path) -> None:
    warned = Page(write_report(random_result(SMALL, frames=399), tmp_path / "report.html"))
    assert "Few frames: 399 for layers of up to 40 neurons." in warned.text
    assert warned.source.count('<p class="warning" role="note">') == 1
    assert "Few frames" not in page.text and '<p class="warning"' not in page.source


@pytest.mark.parametrize("averaged", [True, False])
def test_page_says_whose_frames_were_compared(tmp_path: Path, averaged: bool) -> None:
    result = random_result(SMALL)
    grid = {"of": "<b>slow", "hop_seconds": 0.04, "first_centre_seconds": 0.0125}
    attributes = result.attributes | {"frame_grid": grid | {"averaged": averaged}}
    result.dataset.attrs["provenance"] = json.dumps(attributes)
    text = Page(write_report(result, tmp_path / "report.html"))
    assert ("frames of <b>slow, every 40 ms; means of the others" in text.text) == averaged


def test_page_leads_from_the_overview_to_the_skipped_files(page: Page, tmp_path: Path) -> None:
    assert '<a href="#skipped">1</a>' in page.source and 'id="skipped"' in page.source
    complete = random_result({"a": Shape(2, 9, 0)})
    complete.dataset.attrs["provenance"] = json.dumps(complete.attributes | {"skipped": []})
    text = Page(write_report(complete, tmp_path / "report.html"))
    assert "#skipped" not in text.references and "skipped 0" in text.text


def test_mincorr_is_among_the_measures(result: SimilarityResult, tmp_path: Path) -> None:
    row = "mincorr neuron each neuron's smallest best correlation"
    values = np.zeros((len(result.representations), 40))
    ranked = SimilarityResult(result.dataset.assign(mincorr_neuron=(("x", "neuron"), values)))
    assert row in Page(write_report(ranked, tmp_path / "report.html")).text
    assert row not in Page(write_report(result, tmp_path / "without.html")).text


def test_page_of_one_model_matches_other_layers(tmp_path: Path) -> None:
    result = random_result({"a": Shape(4, 9, 0)})
    facts = Page(write_report(result, tmp_path / "report.html")).facts()
    alignment = facts["measures"][0]["alignment"]
    values = result.matrix("maxcorr").values.copy()
    np.fill_diagonal(values, -1)
    np.testing.assert_array_equal(alignment["best"], [values.argmax(axis=1)])
    np.testing.assert_array_equal(alignment["same"], [[1, 2, 3, -1]])
    np.testing.assert_array_equal(alignment["path"], [[-1, -1, -1, -1]])
    place = facts["neurons"]["place"]
    assert (place != np.arange(4)[:, None, None]).all() and place.min() >= 0


def test_page_of_any_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"mine/0": rng.normal(size=(40, 5)), "mine/1": rng.normal(size=(40, 6))}
    result = ss.compare_activations(arrays, measures="lincka", progress=False)
    assert "40" in Page(write_report(result, tmp_path / "report.html")).text


@pytest.mark.slow
def test_page_of_four_models_is_small_enough(tmp_path: Path) -> None:
    """Two base and two large models, all measures, three of heads: at most 8 MB."""
    result = random_result(FULL_SIZE, measures=EVERY_MEASURE)
    path = write_report(result, tmp_path / "report.html")
    assert path.stat().st_size < 8e6
    assert path.stat().st_size > 3e6  # or something has been left out


def test_page_is_the_same_twice_and_replaces_an_older_one(
    result: SimilarityResult, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text("older")
    assert write_report(result, str(path)) == path
    assert path.read_text(encoding="utf-8") == report_page(result)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_saved_result_gives_the_same_page(
    result: SimilarityResult, page: Page, tmp_path: Path
) -> None:
    loaded = SimilarityResult.load(result.save(tmp_path / "result.nc"))
    assert report_page(loaded) == page.source


def test_the_page_says_what_was_guessed(result: SimilarityResult) -> None:
    """Numbers of the result's record, names escaped."""
    facts = {
        "layouts": {"TIMIT": 12, "unknown": 3},
        "passed_over": {".m4a": 4},
        "speakers": 5,
        "speaker_unknown": 3,
        "repeated": {"utterances": 2, "for example": ["a", "b"]},
    }
    corpus = {**result.attributes.get("corpus", {}), **facts}
    reading = {"channels averaged": 7, "<b>odd</b>": 1}
    attributes = result.attributes | {"corpus": corpus, "reading": reading, "duplicates": 6}
    changed = result.dataset.assign_attrs(provenance=json.dumps(attributes))
    source = report_page(SimilarityResult(changed))
    section = source.split('id="audio-read"')[1].split('id="skipped"')[0]
    for text in (
        "files in the layout of TIMIT", "files passed over: .m4a", "speakers known",
        "utterances of unknown speaker", "may be there twice", "channels averaged",
        "the samples of another", "&lt;b&gt;odd&lt;/b&gt;",
    ):  # fmt: skip
        assert text in section, text
    assert "<b>odd" not in section
