"""Arrays as people hand them over: taken, or refused in one line."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import StorageError
from tests.support.paths import DATA

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
    with pytest.raises(ss.UserError, match="expected a hub id, a folder or zoo:NAME"):
        inspect.unwrap(ss.load_encoder)(source)  # without the tests' checks of types


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = ss.compare_activations({"x": X, "y": Y}, "lincka")
    for write in (result.save, result.to_csv):
        with pytest.raises(StorageError, match=r"file/out cannot be written \("):
            write(tmp_path / "file" / "out")
