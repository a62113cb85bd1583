"""Only the pairs that are asked for: the same scores, and nothing else."""

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison.pairs import chosen_pairs
from speechsim_jax.errors import UserError
from speechsim_jax.results.depth import nearest_depth
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.settings import Settings
from tests.support.budgets import several_passes_gb

pytestmark = pytest.mark.slow

MEASURES = ["maxcorr", "mincorr", "linreg", "lincka", "lincka_debiased", "svcca", "rsa"]


def representations(rows: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows, 3))
    return {
        f"{name}/{layer}": shared @ rng.standard_normal((3, width))
        + rng.standard_normal((rows, width))
        for name, width, layers in (("a", 6, 3), ("b", 8, 5))
        for layer in range(layers)
    }


NAMES = [
    *(RepresentationName("a", k) for k in range(3)),
    *(RepresentationName("b", k) for k in range(5)),
]
DEPTHS = [0.0, 0.5, 1.0, 0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("pairs", "count", "some"),
    [
        (("between",), 15, {(0, 3), (2, 7), (1, 4)}),
        (("within",), 3 + 10, {(0, 2), (3, 7)}),
        # Of two equally near layers the lower.
        (("same_depth",), 5, {(0, 3), (1, 5), (2, 7), (0, 4), (1, 6)}),
        (("a/1:b/4", "b/0:a/2"), 2, {(1, 7), (2, 3)}),
    ],
)
def test_the_pairs_that_are_meant(pairs, count, some):
    chosen = chosen_pairs(pairs, NAMES, DEPTHS)
    assert chosen is not None
    own = {(k, k) for k in range(8)}
    assert own <= chosen and some <= chosen and len(chosen - own) == count


@pytest.mark.parametrize("layers", [(12, 24), (24, 12), (12, 6), (7, 3), (12, 12)])
def test_layers_of_the_same_depth_are_those_of_curves(layers):
    """What a trend over layers reads has a score, of whatever depths, ties of thirds included."""
    names = [RepresentationName(m, k) for m, last in zip("ab", layers) for k in range(last + 1)]
    depths = [k / last for last in layers for k in range(last + 1)]
    chosen = chosen_pairs(["same_depth"], names, depths) or frozenset()
    a, b = (np.arange(last + 1) / last for last in layers)
    expected = {(i, len(a) + j) for i, j in enumerate(nearest_depth(a, b).tolist())}
    expected |= {(i, len(a) + j) for j, i in enumerate(nearest_depth(b, a).tolist())}
    assert chosen == expected | {(k, k) for k in range(len(names))}


def test_names_may_hold_colons_and_tracks_are_paired_with_everything():
    names = [
        RepresentationName("zoo:a", 0),
        RepresentationName("zoo:a", 1),
        RepresentationName("t", 0),
    ]
    assert chosen_pairs(["zoo:a/0:zoo:a/1"], names, [0.0, 1.0, 0.0]) == {
        (0, 0),
        (1, 1),
        (2, 2),
        (0, 1),
    }
    chosen = chosen_pairs(["same_depth"], names, [0.0, 1.0, 0.0], [2])
    assert chosen == {(0, 0), (1, 1), (2, 2), (0, 2), (1, 2)}


@pytest.mark.parametrize("data", ["whole", "chunks"])
@pytest.mark.parametrize(
    "pairs", ["between", "within", "same_depth", [("a/1", "b/4"), ("b/0", "a/2")]]
)
def test_scores_are_those_of_all_pairs(pairs, data):
    given = representations()
    if data == "chunks":
        given = {name: [x[:100], x[100:]] for name, x in given.items()}
    everything = ss.compare_activations(given, MEASURES)
    result = ss.compare_activations(given, MEASURES, pairs=pairs)
    texts = Settings(pairs=pairs).pairs
    chosen = chosen_pairs(texts, NAMES, DEPTHS)
    assert result.attributes["settings"]["pairs"] == list(texts)
    for name in result.measures:
        known = np.isfinite(result.matrix(name).values)
        expected = np.zeros_like(known)
        for i, j in chosen or ():
            expected[i, j] = expected[j, i] = True
        np.testing.assert_array_equal(known, expected, name)
        np.testing.assert_allclose(
            result.matrix(name).values[known], everything.matrix(name).values[known], atol=1e-12
        )
    assert ("mincorr_neuron" in result.dataset) == (pairs != "within")


def test_gram_matrices_give_the_pairs_that_are_asked_for():
    rng = np.random.default_rng(0)
    data = {f"{name}/{k}": rng.standard_normal((20, 90)) for name in "ab" for k in range(3)}
    everything = ss.compare_activations(data, ["lincka"]).matrix("lincka").values
    result = ss.compare_activations(data, ["lincka"], pairs="same_depth").matrix("lincka").values
    known = np.isfinite(result)
    assert known.sum() == 6 + 6
    np.testing.assert_allclose(result[known], everything[known], atol=1e-12)


@pytest.mark.parametrize("setting", ["errors", "heldout", "labels", "given"])
def test_with_what_else_there_is(setting):
    data = representations()
    groups = np.arange(300) // 10
    more = {
        "errors": {"errors": True, "groups": groups},
        "heldout": {"heldout": True, "groups": groups},
        "labels": {"labels": {"phone": ["x", "y", "z"] * 100}},
        "given": {"given": ["b/1"]},
    }[setting]
    measures = ["maxcorr", "linreg", "lincka", "svcca"]
    everything = ss.compare_activations(data, measures, **more)
    result = ss.compare_activations(data, measures, pairs="same_depth", **more)
    assert set(result.dataset) == set(everything.dataset)
    for name, found in result.dataset.data_vars.items():
        expected = everything.dataset[name].values
        if found.dtype.kind != "f" or found.dims[:2] != ("x", "y"):
            continue
        known = np.isfinite(found.values)
        assert known.any(), name
        np.testing.assert_allclose(found.values[known], expected[known], atol=1e-9, err_msg=name)
    if setting == "labels":
        assert np.isfinite(result.matrix("lincka").loc["phone/0"]).all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("betwen", "did you mean 'between'"),
        (["between", "within"], "expected all, between"),
        ([], "expected all, between"),
        ([("a/0", "c/0")], r"no representation 'c/0'"),
        (["a/0:b/9"], "no representation 'b/9'; expected all, between"),
    ],
)
def test_mistakes_are_named(pairs, message):
    with pytest.raises(UserError, match=message):
        ss.compare_activations(representations(), ["lincka"], pairs=pairs)


def test_one_model_has_no_pairs_between_models():
    data = {name: x for name, x in representations().items() if name.startswith("a")}
    with pytest.raises(UserError, match="needs two models, and there is a alone"):
        ss.compare_activations(data, ["lincka"], pairs="same_depth")


def test_encoders_in_one_pass_in_several_and_merged(tmp_path):
    """Also with errors, and with statistics that fit only in several passes."""
    encoders = [ss.load_encoder(f"zoo:{name}") for name in ("contrastive_s", "predictive_s")]
    rng = np.random.default_rng(0)
    audio = {f"{k}": 0.1 * rng.standard_normal(16_000).astype(np.float32) for k in range(12)}
    measures = ["maxcorr", "lincka", "svcca", "rsa"]
    common = {"progress": False, "errors_source": "sample", "rank_tolerance": 1e-6}
    everything = ss.compare(encoders, audio, measures, **common)
    folder = tmp_path / "statistics"
    result = ss.compare(
        encoders, audio, measures, pairs="same_depth", statistics_dir=str(folder), **common
    )
    assert "pairs: of the same depth" in result.notes()
    again = ss.merge([folder], progress=False, keep_influence="none")
    between = common | {"pairs": "between"}
    budget = several_passes_gb(ss.compare, encoders, audio, measures, **between)
    divided = ss.compare(encoders, audio, measures, device_memory_gb=budget, **between)
    assert divided.attributes["passes"] > 1
    for found, pairs in ((result, "same_depth"), (again, "same_depth"), (divided, "between")):
        names, depths = found.representations, [k / 4 for k in range(5)] * 2
        chosen = chosen_pairs([pairs], names, depths)
        for name in measures:
            known = np.isfinite(found.matrix(name).values)
            assert known.sum() == 2 * len(chosen or ()) - 10
            expected = everything.matrix(name).values[known]
            np.testing.assert_allclose(found.matrix(name).values[known], expected, atol=2e-5)


@pytest.mark.parametrize(
    "further",
    [{"target_se": 0.5}, {"errors_source": "reading"}, {"null": "shift", "null_draws": 1}],
    ids=lambda setting: next(iter(setting)),
)
def test_encoders_with_what_else_there_is(further):
    encoders = [ss.load_encoder(f"zoo:{name}") for name in ("contrastive_s", "predictive_s")]
    rng = np.random.default_rng(0)
    audio = {f"{k}": 0.1 * rng.standard_normal(16_000).astype(np.float32) for k in range(12)}
    common = {"progress": False, "layers": [0, 2, 4], **further}
    everything = ss.compare(encoders, audio, ["lincka", "linreg"], **common)
    result = ss.compare(encoders, audio, ["lincka", "linreg"], pairs="same_depth", **common)
    assert set(result.dataset) == set(everything.dataset)
    between = np.kron([[0, 1], [1, 0]], np.eye(3, dtype=int)).astype(bool)
    for name, found in result.dataset.data_vars.items():
        if found.dims != ("x", "y") or found.dtype.kind != "f":
            continue
        known = np.isfinite(found.values)
        assert known[between].all() and not known[~between & ~np.eye(6, dtype=bool)].any(), name
        expected = everything.dataset[name].values[between]
        np.testing.assert_allclose(found.values[between], expected, atol=2e-5, err_msg=name)
