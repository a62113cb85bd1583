"""Arrays as people hand them over: taken, or refused in one line."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import StorageError
from tests.support.paths import DATA

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((300, 8)), RNG.standard_normal((300, 6))


def score(x=X, y=Y, **options) -> float:
    result = ss.compare_activations({"x": x, "y": y}, "linreg", **options)
    return float(result.matrix("linreg").values[0, 1])


class Tensor:
    """As torch's: values on a device, with a gradient."""

    def __init__(self, values, detached=False):
        self.values, self.detached = values, detached

    def detach(self):
        return Tensor(self.values, True)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if not self.detached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return self.values


@pytest.mark.parametrize(
    "convert",
    [
        jnp.asarray, Tensor, lambda x: x.tolist(), lambda x: tuple(map(tuple, x)),
        np.asfortranarray,
        lambda x: [x[:100], x[100:]], lambda x: (x[k : k + 7] for k in range(0, 300, 7)),
        lambda x: [jnp.asarray(x[:100]), jnp.asarray(x[100:])], lambda x: [Tensor(x)],
        lambda x: np.ma.masked_array(x, mask=np.zeros(x.shape, bool)),
    ],
)  # fmt: skip
def test_whatever_holds_an_array_is_taken(convert):
    assert score(convert(X)) == pytest.approx(score(), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ma.masked_array(X, mask=X > 0), "is a masked array; leave out the rows"),
        (X + 1j, "has values of type complex128; expected real numbers"),
        (X.astype(str), "has values of type <U"),
        (X.astype(object), "has values of type object"),
        ([X[:100], X[100:, :5]], "has chunks of 8 and of 5 neurons"),
        (X[0], r"expected an array \[rows, neurons\], got shape \(8,\)"),
        (3, r"expected an array \[rows, neurons\] or chunks of one, got int"),
        (None, "or chunks of one, got NoneType"),
        ([[1.0, 2.0], [1.0]], "cannot be read as an array|got shape"),
    ],
)
def test_what_would_lose_something_is_refused(value, message):
    with pytest.raises(ss.UserError, match=f"^x/0: .*{message}|^x/0: {message}"):
        score(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows_per_update": 0}, "rows_per_update is 0"),
        ({"rows_per_update": 1}, "rows_per_update is 1; expected at least 2"),
        ({"stats_dtype": "float23"}, r"stats_dtype is 'float23'.*did you mean 'float"),
        ({"rank_tolerance": np.nan}, "rank_tolerance is nan"),
        ({"rank_tolerance": -1}, "rank_tolerance is -1"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ss.UserError, match=message):
        score(**options)


def test_keys():
    result = ss.compare_activations({1: X, ("a", 2): Y, "b/3": X, "späte Ü=1": Y}, "lincka")
    assert list(map(str, result.representations)) == ["1/0", "a/2", "b/3", "späte Ü=1/0"]
    for key in (("a",), ("a", "2"), ("a", 1.5), ("a", True)):
        with pytest.raises(ss.UserError, match="expected a name, or"):
            ss.compare_activations({key: X, "b": Y}, "lincka")


def test_integer_waveforms_are_scaled_as_files_are():
    encoder = ss.load_encoder(DATA / "parity" / "hubert-base")
    wave = np.clip(0.2 * RNG.standard_normal(4000), -0.99, 0.99)
    expected = np.asarray(encoder([wave.astype(np.float32)]).hidden_states)
    integers = {
        np.int16: (np.round(wave * 2**15), 1e-2), np.int32: (np.round(wave * 2**31), 1e-3),
    }  # fmt: skip
    for dtype, (values, tolerance) in integers.items():
        found = np.asarray(encoder([values.astype(dtype)]).hidden_states)
        np.testing.assert_allclose(found, expected, atol=tolerance)
    generated = encoder(w.astype(np.float32) for w in [wave])
    np.testing.assert_array_equal(np.asarray(generated.hidden_states), expected)
    for wrong in (wave > 0, wave.astype(complex), wave[None], wave.astype(str)):
        with pytest.raises(ss.UserError, match=r"a waveform (has shape|is of type)"):
            encoder([wrong])


@pytest.mark.parametrize("source", [None, 3, ["a"], b"facebook/x"])
def test_what_names_no_model(source):
    with pytest.raises(ss.UserError, match="expected a hub id"):
        inspect.unwrap(ss.load_encoder)(source)  # without the tests' checks of types


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = ss.compare_activations({"x": X, "y": Y}, "lincka")
    for write in (result.save, result.to_csv):
        with pytest.raises(StorageError, match=r"file/out cannot be written \("):
            write(tmp_path / "file" / "out")


# --- values ---


def scores_of(x, **options) -> dict[str, float]:
    levels = ["neuron", "mixed", "layer"]
    result = ss.compare_activations({"x": x, "y": Y}, "all", levels=levels, **options)
    return {m: float(result.matrix(m).values[0, 1]) for m in result.measures}


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_representation_has_no_score_in_any_measure(value, dtype, caplog):
    """One rule, said once; the others keep theirs."""
    constant = np.full((300, 5), value)
    assert all(np.isnan(score) for score in scores_of(constant, stats_dtype=dtype).values())
    assert caplog.text.count("constant, and so without scores: representation 1") == 1
    result = ss.compare_activations({"c": constant, "x": X, "y": Y}, "maxcorr,lincka,mutual_knn")
    for measure in result.measures:
        assert np.isfinite(result.matrix(measure).values[1:, 1:]).all()
        assert np.isnan(result.matrix(measure).values[0]).all()


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e200, "float64"), (1e-200, "float64"), (1e-30, "float32"), (1e20, "float32")],
)
def test_values_beyond_the_statistics_are_refused(scale, dtype):
    with pytest.raises(ss.UserError, match=r"^x/0: (has values up to|no value exceeds) .*scale it"):
        scores_of(scale * X, stats_dtype=dtype)


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e30, "float64"), (1e-30, "float64"), (1e-6, "float32")]
)
def test_no_score_depends_on_the_scale(scale, dtype):
    expected, found = scores_of(X, stats_dtype=dtype), scores_of(scale * X, stats_dtype=dtype)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance, nan_ok=True), name


def test_rounding_does_not_leave_the_limits():
    """An exact linear map in float32: linreg was 1.00005."""
    x = RNG.standard_normal((500, 40)) * np.logspace(-3, 3, 40)
    maps = x @ RNG.standard_normal((40, 40))
    result = ss.compare_activations(
        {"x": x, "y": maps}, "linreg,lincka,svcca", stats_dtype="float32"
    )
    for measure in result.measures:
        values = result.matrix(measure).values
        assert np.nanmax(values) <= 1 and np.nanmin(values) >= 0


def test_few_rows_are_said(caplog):
    ss.compare_activations({"x": X[:20], "y": Y[:20]}, "linreg")
    assert "Few frames: 20 for layers of up to 8 neurons" in caplog.text
    tiny = ss.compare_activations({"x": X[:3], "y": Y[:3]}, "lincka_debiased")
    assert np.isnan(tiny.matrix("lincka_debiased").values).all()
    assert caplog.text.count("Few frames") == 1  # the other has no such measure


def test_constant_neurons_are_said(caplog):
    """Of a representation with others, by name; one warning for all."""
    dead = X.copy()
    dead[:, [1, 4, 6]] = (0.0, 3.0, -1e4)
    many = {("many", k): np.where(np.arange(6) == k % 6, 2.0, Y) for k in range(7)}
    result = ss.compare_activations({"x": dead, "y": Y, **many}, "maxcorr")
    (said,) = [line for line in caplog.messages if "constant" in line]
    assert "neurons" in said and "3 of 8 in x/0, 1 of 6 in many/0" in said
    assert " y/0" not in said and said.endswith(" and in 3 more")
    assert result.dataset["dead_neurons"].values.tolist() == [3, 0] + [1] * 7
    caplog.clear()
    ss.compare_activations({"x": X, "y": Y}, "maxcorr")
    assert caplog.messages == []


# --- maps ---

MAPS = [RNG.dirichlet(np.ones(n), size=(3, n)) for n in (12, 9, 12)]


def js(maps, measures="attn_js", **options) -> float:
    result = ss.compare_attentions({"x": maps, "y": [m[::-1] for m in MAPS]}, measures, **options)
    return float(result.matrix(measures).values[0, 1])


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (jnp.asarray, 1e-6), (Tensor, 1e-12), (lambda m: m.tolist(), 1e-12),
        (lambda m: m.astype(np.float16), 2e-3), (lambda m: jnp.asarray(m, "bfloat16"), 2e-2),
        (lambda m: m.astype(np.float32), 1e-6), (np.asfortranarray, 1e-12),
        (lambda m: np.ma.masked_array(m, mask=False), 1e-12),
    ],
)  # fmt: skip
def test_whatever_holds_a_map_is_taken(convert, tolerance):
    assert js([convert(m) for m in MAPS]) == pytest.approx(js(MAPS), abs=tolerance)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool, np.float16])
def test_maps_that_look_at_one_frame(dtype):
    """Exact in every type; a head with itself differs in nothing."""
    hard = [np.broadcast_to(np.eye(n), (2, n, n)).astype(dtype) for n in (5, 7)]
    result = ss.compare_attentions({"x": hard, "y": [m.astype(float) for m in hard]}, "attn_js")
    np.testing.assert_array_equal(result.matrix("attn_js").values, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiny_values_of_maps_are_zeros(dtype):
    """Below what float32 holds: as softmax leaves them; the rest sums to 1."""
    tiny = [np.where(m == m.min(axis=2, keepdims=True), 1e-300, m) for m in MAPS]
    tiny = [m / m.sum(axis=2, keepdims=True) for m in tiny]
    zero = [np.where(m < 1e-200, 0, m) for m in tiny]
    for measure in ("attn_js", "attn_lincka", "attn_pearson_exact"):
        found = js(tiny, measure, stats_dtype=dtype)
        assert found == pytest.approx(js(zero, measure, stats_dtype=dtype), abs=1e-6)


def _changed(value) -> np.ndarray:
    maps = MAPS[1].copy()
    maps[2, 4, 3] = value
    return maps


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (_changed(np.nan), "NaN or inf in head 2, query 4"),
        (_changed(-np.inf), "NaN or inf in head 2, query 4"),
        (_changed(1e300), "sum to 1 .*head 2, query 4 has a sum of 1e"),
        (_changed(MAPS[1][2, 4, 3] + 2e-3), "sum to 1 .*head 2, query 4"),
        (_changed(-1e-9), "without negatives; .*smallest value of -1e-09"),
        (np.log(MAPS[1]), "without negatives"),
        ((100 * MAPS[1]).astype(int), "must sum to 1"),
        (MAPS[1] > 0.1, "must sum to 1"),
        (MAPS[1] + 0j, "has values of type complex128; expected real numbers"),
        (np.ma.masked_array(MAPS[1], mask=MAPS[1] > 0.5), "is a masked array"),
        (MAPS[1].astype(object), "has values of type object"),
        (MAPS[1].astype(str), "has values of type <U"),
        (MAPS[1][0], r"expected an array \[head, query, key\], got \(9, 9\)"),
        (MAPS[1][None], r"expected an array \[head, query, key\]"),
        (MAPS[1][:0], r"expected an array \[head, query, key\]"),
        ("maps.npy", "has values of type <U|expected an array"),
        ([[1.0, 2.0], [1.0]], "cannot be read as an array|expected an array"),
    ],
)
def test_maps_that_are_none_are_refused(value, message):
    with pytest.raises(ss.UserError, match=rf"^x/1, utterance 1: .*({message})"):
        js([MAPS[0], value, MAPS[2]])


@pytest.mark.parametrize("maps", [None, 3])
def test_no_maps_at_all_are_refused(maps):
    with pytest.raises(ss.UserError, match=r"^x/1: expected an array \[head, query, key\] for"):
        inspect.unwrap(ss.compare_attentions)({"x": maps})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stats_dtype": "float23"}, "did you mean 'float"), ({"rank_tolerance": 2.0}, "is 2")],
)
def test_settings_of_maps_are_checked(options, message):
    with pytest.raises(ss.UserError, match=message):
        inspect.unwrap(ss.compare_attentions)({"x": MAPS}, "attn_js", **options)


def test_constant_heads_are_said(caplog):
    """Heads that look everywhere alike have no cells to correlate; too few cells are said, too."""
    maps = [np.concatenate([m, np.full((1, 12, 12), 1 / 12)]) for m in (MAPS[0], MAPS[2])]
    flat = [m[3:] for m in maps]
    given = {"x": maps, "y": [m[:3] for m in maps], "z": flat}
    ss.compare_attentions(given, "attn_lincka")
    (said,) = caplog.messages
    assert "constant heads" in said and said.endswith("1 of 4 in x/1, 1 of 1 in z/1")
    caplog.clear()
    ss.compare_attentions(given, "attn_js")  # which needs no correlations
    assert caplog.messages == []
    ss.compare_attentions({"x": [MAPS[0][:, :4, :4] / MAPS[0][:, :4, :4].sum(2, keepdims=True)]},
                          "attn_lincka")  # fmt: skip
    assert [m for m in caplog.messages if "Few cells: the attention maps have 16" in m]
