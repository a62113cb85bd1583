"""Standard errors of arrays from a second reading of all rows."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES, influence_sums
from speechsim_jax.pipeline.second_reading import every_row
from speechsim_jax.statistics.accumulator import BatchRows
from tests.support.paths import DATA

GOLDEN = np.load(DATA / "inference.npz")
INPUTS = {name: GOLDEN[f"x_{name}"] for name in "abc"}
OF_MOMENTS = [
    name
    for name, measure in MEASURES.items()
    if measure.influence is not None and measure.statistic == "moments"
]
CELLS = ("a/0", "b/0"), ("a/0", "c/0")


def compared(**settings) -> ss.SimilarityResult:
    settings = {"measures": OF_MOMENTS, "groups": GOLDEN["group"]} | settings
    return ss.compare_activations(settings.pop("activations", INPUTS), errors=True, **settings)


def assert_same_errors(one: ss.SimilarityResult, other: ss.SimilarityResult) -> None:
    for name in one.measures:
        np.testing.assert_allclose(
            one.standard_error(name), other.standard_error(name), rtol=1e-6, err_msg=name
        )
        contrasts = [result.contrast(name, *CELLS) for result in (one, other)]
        assert contrasts[0].standard_error == pytest.approx(contrasts[1].standard_error, rel=1e-6)
        assert contrasts[0].degrees == contrasts[1].degrees == 59


@pytest.fixture(scope="module")
def all_rows() -> ss.SimilarityResult:
    """Every row is in the sample."""
    return compared(errors_source="sample")


@pytest.fixture(scope="module")
def read() -> ss.SimilarityResult:
    return compared(errors_source="reading")


def test_a_reading_gives_what_all_rows_give(all_rows, read):
    assert_same_errors(read, all_rows)
    assert all_rows.attributes["errors"]["source"] == "sample"
    errors = read.attributes["errors"]
    assert (errors["source"], errors["clusters"], errors["rows"]) == ("reading", 60, 3813)
    table = read.influence
    assert table is not None and table.by == "rows"
    for name in read.measures:
        assert np.nanmax(read.dataset[f"{name}_se_error"]) == 0
        sums = all_rows.influence.cluster_sums(name)
        np.testing.assert_allclose(
            table.cluster_sums(name), sums, rtol=1e-4, atol=1e-6 * np.abs(sums).max()
        )


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["new pairs", "kept pairs"])
def test_neither_chunks_nor_their_order_matter(kept_bytes, read, monkeypatch):
    monkeypatch.setattr(influence_sums, "_CHUNK_BYTES", 2**17)
    monkeypatch.setattr(influence_sums, "_PAIRS_BYTES", kept_bytes)
    monkeypatch.setattr(influence_sums, "_DERIVED_BYTES", 1)
    order = np.random.default_rng(0).permutation(len(GOLDEN["group"]))
    names = ["maxcorr", "linreg", "lincka"]
    other = compared(
        activations={name: x[order] for name, x in INPUTS.items()},
        groups=GOLDEN["group"][order], errors_source="reading", rows_per_update=301,
        measures=names,
    )  # fmt: skip
    for name in names:
        np.testing.assert_allclose(other.standard_error(name), read.standard_error(name), rtol=1e-6)


def test_contrasts_of_complete_sums_survive_saving(read, tmp_path):
    loaded = ss.SimilarityResult.load(read.save(tmp_path / "r.nc"))
    assert loaded.influence is not None and loaded.influence.by == "rows"
    for result in (loaded, loaded.select(["b", "a", "c"])):
        assert result.contrast("linreg", *CELLS) == read.contrast("linreg", *CELLS)
    assert loaded.closest("lincka", "a/0", "b").values == [1.0]
    assert compared(
        errors_source="reading", measures=["lincka"], keep_influence="none"
    ).influence is (None)


def test_sums_of_a_sample_that_holds_all_rows_are_complete(all_rows):
    """Also where they alone are kept."""
    sums = compared(errors_source="sample", keep_influence="clusters", measures=["lincka"])
    expected = all_rows.contrast("lincka", *CELLS)
    found = sums.contrast("lincka", *CELLS)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-5)


def long_clusters() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """AR(0.9) rows of 12 clusters of 6,000 without effects of their own."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 6000, 12))
    for t in range(1, 6000):
        rows[:, t] = 0.9 * rows[:, t - 1] + np.sqrt(1 - 0.81) * rows[:, t]
    x, y = np.split(rows.reshape(-1, 12), 2, axis=1)
    return {"x": x, "y": x + y}, np.repeat(np.arange(12), 6000)


def test_auto_reads_again_where_the_sample_says_little():
    arrays, groups = long_clusters()
    results = {
        source: compared(
            activations=arrays, groups=groups, errors_rows=1000, errors_source=source,
            measures=["lincka", "maxcorr"],
        )
        for source in ("auto", "reading", "sample")
    }  # fmt: skip
    sources = [result.attributes["errors"]["source"] for result in results.values()]
    assert sources == ["reading", "reading", "sample"]
    everything = compared(
        activations=arrays, groups=groups, errors_rows=10**6, errors_source="auto",
        measures=["lincka", "maxcorr"],
    )  # fmt: skip
    assert everything.attributes["errors"]["source"] == "sample"
    for name in ("lincka", "maxcorr"):
        assert results["sample"].dataset[f"{name}_se_error"].max() > 0.1
        for source in ("auto", "reading"):
            np.testing.assert_allclose(
                results[source].standard_error(name), everything.standard_error(name), rtol=1e-6
            )


def test_what_can_be_read_once_only(caplog):
    arrays, groups = long_clusters()
    few = {"groups": groups, "errors_rows": 1000, "measures": ["lincka"]}

    def chunks(x: np.ndarray):
        yield from np.array_split(x, 7)

    iterators = {name: chunks(x) for name, x in arrays.items()}
    with pytest.raises(UserError, match="once") as error:
        compared(activations=iterators, errors_source="reading", **few)
    assert "\n" not in str(error.value)
    caplog.set_level("INFO")
    fallen_back = compared(activations=iterators, **few)
    assert fallen_back.attributes["errors"]["source"] == "sample" and "once" in caplog.text
    expected = compared(activations=arrays, errors_source="reading", **few)
    for again in (
        {name: np.array_split(x, 7) for name, x in arrays.items()},
        {name: lambda x=x: chunks(x) for name, x in arrays.items()},
    ):
        found = compared(activations=again, errors_source="reading", **few)
        np.testing.assert_allclose(
            found.standard_error("lincka"), expected.standard_error("lincka"), rtol=1e-9
        )


@pytest.mark.parametrize("second", [0.5, 2])
def test_other_rows_the_second_time_are_refused(second):
    calls = []

    def rows():
        calls.append(0)
        x = INPUTS["a"]
        return [x] if len(calls) == 1 else [np.concatenate([x, x])[: round(second * len(x))]]

    with pytest.raises(UserError, match="second time"):
        compared(activations={"a": rows}, errors_source="reading", measures=["lincka"])


def test_constant_representations_have_no_errors():
    arrays = {"a": INPUTS["a"], "still": np.ones((3813, 3)), "c": INPUTS["c"]}
    results = [
        compared(activations=arrays, errors_source=source, measures=["lincka", "linreg", "svcca"])
        for source in ("sample", "reading")
    ]
    for name in results[0].measures:
        one, other = (result.standard_error(name) for result in results)
        assert np.isnan(other.loc["still/0"]).all() and np.isnan(other.loc[:, "still/0"]).all()
        np.testing.assert_allclose(other, one, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_every_row_of_an_utterance(stride):
    """By its place among the utterance's rows, whatever frames these are."""
    rows = BatchRows(
        positions=np.arange(12),
        utterance=np.repeat([0, 2, 3], [7, 1, 4]),
        number=np.arange(12) * 5,
        ids=("u", "v", "w", "z"),
        utterances=("u", "v", "w", "z"),
    )
    expected = [k for start, count in ((0, 7), (7, 1), (8, 4)) for k in range(start, start + count)
                if (k - start) % stride == 0]  # fmt: skip
    assert every_row(rows, stride).tolist() == expected
