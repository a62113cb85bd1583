"""Scores of rows that do not belong together: of arrays and of whole comparisons."""

import numpy as np
import pytest
import scipy.signal

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.statistics.null_rows import shift_offset, swap_partners, swap_ring
from tests.support import reference

ORACLES = {
    "maxcorr": reference.maxcorr,
    "linreg": reference.linreg,
    "lincka": reference.lincka,
    "svcca": reference.svcca,
    "pwcca": reference.pwcca,
}
LENGTHS = {"a": 40, "b": 61, "c": 7, "d": 8, "e": 90}
SPEAKERS = {"a": "s", "b": "t", "c": "s", "d": "u", "e": "t"}


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """Slow signals with means, x of two layers and y of one."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((sum(LENGTHS.values()), 9))
    shared = np.apply_along_axis(lambda v: np.convolve(v, 0.8 ** np.arange(9))[: len(v)], 0, steps)
    noise = rng.standard_normal((3, len(shared), 4))
    return {
        "x/0": shared[:, :4] + noise[0] + 2,
        "x/1": shared[:, 2:6] + noise[1],
        "y/0": (shared + 1)[:, [0, 3, 8]] + noise[2][:, :3],
    }


def utterances() -> list[str]:
    """Of each row."""
    return [name for name, length in LENGTHS.items() for _ in range(length)]


def of_utterances(array: np.ndarray) -> dict[str, np.ndarray]:
    parts = np.split(array, np.cumsum(list(LENGTHS.values()))[:-1])
    return dict(zip(LENGTHS, parts))


def shifted(x: np.ndarray, y: np.ndarray, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of x, and y rolled, without the short utterance."""
    pairs = [
        (a, np.roll(b, shift_offset(name, len(b), draw, 0), axis=0))
        for (name, a), b in zip(of_utterances(x).items(), of_utterances(y).values())
        if len(a) >= 8
    ]
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


def swapped(x: np.ndarray, y: np.ndarray, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of x, and those of utterances of other speakers, cut to the common length."""
    a, b = of_utterances(x), of_utterances(y)
    pairs = swap_partners(swap_ring(SPEAKERS, 0), SPEAKERS, draw).items()
    lengths = [min(LENGTHS[name], LENGTHS[other]) for name, other in pairs]
    return (
        np.concatenate([a[name][:n] for (name, _), n in zip(pairs, lengths)]),
        np.concatenate([b[other][:n] for (_, other), n in zip(pairs, lengths)]),
    )


@pytest.mark.parametrize(("null", "oracle"), [("shift", shifted), ("swap", swapped)])
@pytest.mark.parametrize(
    "rows_per_update", [pytest.param(16, marks=pytest.mark.slow), 4096], ids=str
)
def test_it_is_the_score_of_the_paired_rows(null, oracle, rows_per_update, rows):
    speakers = [SPEAKERS[name] for name in utterances()]
    result = ss.compare_activations(
        rows, list(ORACLES), null=null, null_draws=2, utterances=utterances(), groups=speakers,
        rows_per_update=rows_per_update,
    )  # fmt: skip
    names = list(rows)
    for measure, function in ORACLES.items():
        scores = result.matrix(measure).values
        null_ = result.matrix(f"{measure}_null").values
        for i, x in enumerate(names):
            for j, y in enumerate(names):
                if i <= j:
                    drawn = [function(*oracle(rows[x], rows[y], k)) for k in (0, 1)]
                else:  # the inverse of the same pairing
                    drawn = [function(*oracle(rows[y], rows[x], k)[::-1]) for k in (0, 1)]
                assert null_[i, j] == pytest.approx(np.mean(drawn), abs=1e-9)
                std = result.matrix(f"{measure}_null_std").values[i, j]
                assert std == pytest.approx(np.std(drawn, ddof=1), abs=1e-9)
        calibrated = result.matrix(f"{measure}_calibrated").values
        np.testing.assert_allclose(calibrated, (scores - null_) / (1 - null_), atol=1e-12)
        assert f"{measure}_p" not in result.dataset
        assert result.definition(measure)["bounded_by_one"]
    assert (result.matrix("lincka_null") < 0.6 * result.matrix("lincka")).all()


def test_offsets_are_from_a_quarter_to_three(rows):
    for length in (8, 9, 10, 11, 400):
        offsets = {shift_offset(f"u{k}", length, k % 3, 0) for k in range(3000)}
        expected = set(range(-(-length // 4), 3 * length // 4 + 1))
        assert offsets <= expected and len(offsets) >= min(len(expected), 150)


def test_partners_are_a_permutation_of_other_speakers():
    speakers = {f"u{k}": f"s{k % 10}" if k < 90 else "" for k in range(100)}
    ring = swap_ring(speakers, seed=3)
    assert sorted(ring) == sorted(speakers)
    assert ring == swap_ring(dict(reversed(speakers.items())), seed=3)
    assert ring != swap_ring(speakers, seed=4)
    draws = [swap_partners(ring, speakers, draw) for draw in range(5)]
    for partners in draws:
        assert len(set(partners.values())) == len(partners) > 80
        assert all(
            not speakers[name] or speakers[name] != speakers[other]
            for name, other in partners.items()
        )
    assert len({partners.get("u95") for partners in draws}) == 5


def test_p_values_of_nineteen_draws(rows):
    result = ss.compare_activations(
        rows,
        ["lincka", "procrustes_distance"],
        null="shift",
        null_draws=19,
        utterances=utterances(),
    )
    for measure in ("lincka", "procrustes_distance"):
        p = result.matrix(f"{measure}_p")
        assert float(p.loc["x/0", "x/1"]) == 0.05  # they share slow signals
        best = result.dataset[f"{measure}_p_best"]
        assert best.dims == ("x", "model")
        # One layer only, which has no other of its model.
        np.testing.assert_allclose(best.sel(model="y")[:2], p.loc[["x/0", "x/1"], "y/0"])
        assert np.isnan(best.sel(model="y")[2])
        assert (best.sel(model="x") >= p.sel(y=["x/0", "x/1"]).min("y") - 1e-12).all()
    assert (result.matrix("procrustes_distance_null") > 0.5).all()
    assert "procrustes_distance_calibrated" not in result.dataset


def test_saved_selected_and_written(rows, tmp_path):
    result = ss.compare_activations(
        rows, "lincka", null="shift", null_draws=19, utterances=utterances()
    )
    loaded = ss.SimilarityResult.load(result.save(tmp_path / "result.nc"))
    for name in ("lincka_null", "lincka_null_std", "lincka_calibrated", "lincka_p"):
        np.testing.assert_array_equal(loaded.matrix(name), result.matrix(name))
        assert name in result.to_dataframe().columns
    assert loaded.select("y").dataset["lincka_p_best"].shape == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"null": "shift"}, "utterances"),
        ({"null": "shift", "utterances": ["a"] * 206, "null_draws": 0}, "null_draws"),
        (
            {
                "null": "swap",
                "utterances": [f"u{k // 30}" for k in range(206)],
                "groups": ["s"] * 206,
            },
            "groups",
        ),
        ({"null": "swap", "utterances": ["a"] * 206, "groups": ["s", "t"] * 103}, "several"),
        ({"null": "swap", "utterances": ["a"] * 206, "groups": ["s"] * 3}, "groups"),
        ({"null": "shift", "groups": ["s", "t"]}, "groups"),
        ({"null": "swap", "utterances": ["a"] * 100 + ["b"] * 106, "null_draws": 2}, "null_draws"),
    ],
)
def test_what_cannot_be_paired(arguments, word, rows):
    with pytest.raises(UserError, match=word):
        ss.compare_activations(rows, "lincka", **arguments)


def test_one_row_of_each_utterance_has_no_other_time():
    with pytest.raises(UserError, match="pool"):
        ss.Settings(null="shift", pool="utterance")
    assert ss.Settings(null="swap", pool="utterance").null_draws == 3


def test_chunks_cannot_be_read_again(rows):
    with pytest.raises(UserError, match="memmap"):
        ss.compare_activations(
            {name: iter([array]) for name, array in rows.items()},
            "lincka", null="shift", utterances=utterances(),
        )  # fmt: skip


def test_utterances_that_are_too_short(rows, caplog):
    names = [f"u{k // 7}" for k in range(206)]
    result = ss.compare_activations(rows, "lincka", null="shift", utterances=names)
    assert "lincka_null" not in result.dataset
    assert any("null" in record.getMessage() for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("null", ["shift", "swap"])
def test_p_values_of_unrelated_slow_signals_are_uniform(null):
    """Kolmogorov's bound at 1 %; for discrete values it is wider than needed."""
    single, best = [], []
    names = np.repeat(np.arange(20), 300)
    for simulation in range(60):
        rng = np.random.default_rng(simulation)
        steps = rng.standard_normal((20, 300, 16))
        steps[:, 1:] *= (1 - 0.9**2) ** 0.5
        filtered = scipy.signal.lfilter([1.0], [1.0, -0.9], steps, axis=1)
        series = np.asarray(filtered).reshape(-1, 16)
        rows = {f"y/{k}": series[:, 4 * k : 4 * k + 4] for k in range(3)} | {"x/0": series[:, 12:]}
        result = ss.compare_activations(
            rows, ["lincka", "maxcorr"], null=null, null_draws=19, utterances=names,
            seed=simulation,
        )  # fmt: skip
        for measure in ("lincka", "maxcorr"):
            single += (
                result.matrix(f"{measure}_p").loc["x/0", ["y/0", "y/1", "y/2"]].values.tolist()
            )
            best.append(float(result.dataset[f"{measure}_p_best"].loc["x/0", "y"]))
    for p in (single, best):
        # Two measures of one corpus are not independent.
        bound = 1.63 / np.sqrt(len(p) / 2)
        for k in range(1, 21):
            assert np.mean(np.array(p) <= k / 20 + 1e-9) == pytest.approx(k / 20, abs=bound)
