"""Label tracks: golden values, planted concepts, and labels as people have them."""

import numpy as np
import pytest
import scipy.stats

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from tests.support.paths import DATA

pytestmark = pytest.mark.slow

GOLDEN = np.load(DATA / "inference.npz")
INPUTS = {name: GOLDEN[f"x_{name}"] for name in "abc"}
LABEL = GOLDEN["label"]


@pytest.fixture(scope="module")
def result() -> ss.SimilarityResult:
    return ss.compare_activations(INPUTS, ["linreg", "linreg_r2"], labels={"phone": LABEL})


def in_order(result: ss.SimilarityResult, name: str, x: str) -> np.ndarray:
    """Values of the classes 0, 1, 2, ... (of each neuron)."""
    classes = [int(str(of).rpartition("/")[2]) for of in result.dataset["class"].values]
    return result.dataset[name].sel(x=f"{x}/0").values[..., np.argsort(classes)]


@pytest.mark.parametrize("x", "abc")
def test_golden(result, x):
    width = INPUTS[x].shape[1]
    assert float(result.matrix("eta2").sel(x=f"{x}/0", track="phone")) == pytest.approx(
        float(GOLDEN[f"eta2_{x}"]), abs=1e-9
    )
    assert float(result.matrix("eta2_global").sel(x=f"{x}/0")[0]) == pytest.approx(
        float(GOLDEN[f"eta2_global_{x}"]), abs=1e-9
    )
    for name in ("readability", "localisation"):
        error = np.abs(in_order(result, name, x) - GOLDEN[f"{name}_{x}"])
        assert error.max() <= 1e-9, name
    assert (
        np.abs(in_order(result, "class_corr", x)[:width] - GOLDEN[f"class_corr_{x}"]).max() < 1e-9
    )
    of_neurons = result.dataset["neuron_eta2"].sel(x=f"{x}/0").values[:width, 0]
    assert np.abs(of_neurons - GOLDEN[f"eta2_neuron_{x}"]).max() <= 1e-9


def test_golden_agreement(result):
    agreement = result.matrix("concept_agreement").values[:3, :3, 0]
    np.testing.assert_allclose(agreement, GOLDEN["concept_agreement"], atol=1e-9)
    chance = result.matrix("concept_agreement_chance").values[:3, :3, 0]
    kappa = result.matrix("concept_agreement_kappa").values[:3, :3, 0]
    np.testing.assert_allclose(kappa, (agreement - chance) / (1 - chance))


def test_a_label_is_a_representation_whose_regressions_are_the_shares(result):
    assert result.models == ("a", "b", "c", "phone")
    for x in "abc":
        shares = float(result.matrix("linreg_r2").loc[f"{x}/0", "phone/0"])
        assert shares == pytest.approx(float(result.matrix("eta2").sel(x=f"{x}/0")[0]))
        read = result.matrix("readability").sel(x=f"{x}/0").mean()
        assert float(result.matrix("linreg").loc["phone/0", f"{x}/0"]) == pytest.approx(float(read))
    assert np.isnan(result.matrix("readability").sel(x="phone/0")).all()


def test_what_is_known_of_labels_survives_the_file(result, tmp_path):
    result.save(tmp_path / "result.nc")
    again = ss.SimilarityResult.load(tmp_path / "result.nc")
    for name in ("eta2", "readability", "localisation_rotated", "concept_agreement"):
        np.testing.assert_array_equal(again.matrix(name).values, result.matrix(name).values)
    assert list(again.dataset["class"].values) == list(result.dataset["class"].values)


# --- planted concepts ---

CLASSES, WIDTH = 5, 20


def planted(seed: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and rows in which neuron order[k] says class k, alone, through little noise."""
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(0).integers(0, CLASSES, 3000)
    rows = 0.1 * rng.standard_normal((3000, WIDTH))
    rows[np.arange(3000), order[label]] += 1
    return label, rows


def compared(x: np.ndarray, y: np.ndarray, label: np.ndarray) -> ss.SimilarityResult:
    return ss.compare_activations({"x": x, "y": y}, ["lincka"], labels={"phone": label})


def test_concepts_in_single_neurons_are_localised_and_agree():
    label, x = planted(1, np.arange(CLASSES))
    _, y = planted(2, np.arange(CLASSES)[::-1])
    result = compared(x, y, label)
    assert (result.matrix("readability")[:2] > 0.95).all()
    assert (result.matrix("localisation")[:2] > 0.97).all()
    strongest = result.dataset["neuron_class_corr"].values[0, :, 0]
    assert np.sum(strongest > 0.9) == CLASSES
    # The other neurons say nothing: their class, and so their agreement, is chance.
    classes = result.dataset["neuron_class"].values[:2, :, 0]
    best = [int(np.argmax(np.abs(np.corrcoef(x[:, k], y.T)[0, 1:]))) for k in range(CLASSES)]
    assert [classes[1, j] for j in best] == [classes[0, k] for k in range(CLASSES)]


def test_rotated_concepts_are_as_readable_and_not_localised():
    label, x = planted(1, np.arange(CLASSES))
    rotation = scipy.stats.ortho_group.rvs(WIDTH, random_state=0)
    result = compared(x, x @ rotation, label)
    read = result.matrix("readability")
    np.testing.assert_allclose(read[1], read[0], atol=1e-9)
    local, baseline = result.matrix("localisation"), result.matrix("localisation_rotated")
    assert (local[0] > baseline[0] + 0.3).all()
    assert abs(float((local[1] - baseline[1]).mean())) < 0.1


def test_neurons_that_match_agree_where_they_say_the_same_class_only():
    rng = np.random.default_rng(3)
    label = rng.integers(0, CLASSES, 4000)
    says = np.arange(30) % CLASSES
    x, y = ((label[:, None] == says) + 0.3 * rng.standard_normal((4000, 30)) for _ in range(2))
    alike = compared(x, y, label)
    assert float(alike.matrix("concept_agreement")[0, 1, 0]) == 1
    assert float(alike.matrix("concept_agreement_kappa")[0, 1, 0]) == 1
    # Neuron for neuron they share something else, and say a class each of their own.
    shared = 2 * rng.standard_normal((4000, 30))
    x, y = (shared + (label[:, None] == of) for of in (says, rng.permutation(says)))
    disjoint = compared(x, y, label)
    assert abs(float(disjoint.matrix("concept_agreement_kappa")[0, 1, 0])) < 0.2
    read = disjoint.matrix("readability")
    np.testing.assert_allclose(read[0], read[1], atol=0.1)


# --- labels as people have them ---


def test_rows_without_a_label_are_one_more_class():
    texts = np.where(LABEL == 3, "", LABEL.astype(str)).astype(object)
    texts[LABEL == 4] = None
    texts[LABEL == 5] = np.nan
    some = ss.compare_activations(INPUTS, ["linreg"], labels={"phone": texts})
    assert set(some.dataset["class"].values) == {f"phone/{k}" for k in (0, 1, 2, 6)}
    merged = np.where(np.isin(LABEL, (3, 4, 5)), 9, LABEL)
    whole = ss.compare_activations(INPUTS, ["linreg"], labels={"phone": merged})
    np.testing.assert_allclose(
        some.matrix("eta2").values[:3], whole.matrix("eta2").values[:3], atol=1e-9
    )


def test_rare_classes_may_be_left_out_and_frequent_ones_come_first():
    share = np.unique(LABEL, return_counts=True)[1] / len(LABEL)
    kept = ss.compare_activations(
        INPUTS, ["linreg"], labels={"phone": LABEL}, label_min_share=float(np.median(share))
    )
    expected = [
        f"phone/{k}" for k in np.argsort(-share, kind="stable")[: np.sum(share >= np.median(share))]
    ]
    assert list(kept.dataset["class"].values) == expected


def test_several_tracks_and_one_of_them_given():
    labels = {"phone": LABEL, "speaker": [f"s{k % 10}" for k in GOLDEN["group"]]}
    both = ss.compare_activations(INPUTS, ["lincka"], labels=labels)
    assert list(both.dataset["track"].values) == ["phone", "speaker"]
    alone = ss.compare_activations(INPUTS, ["lincka"], labels={"phone": LABEL})
    np.testing.assert_allclose(
        both.matrix("readability").values[:3, :7], alone.matrix("readability").values[:3]
    )
    without = ss.compare_activations(INPUTS, ["lincka"], labels=labels, given=["speaker"])
    assert without.models == ("a", "b", "c", "phone")
    assert list(without.dataset["track"].values) == ["phone"]
    assert not np.allclose(without.matrix("eta2").values[:3, 0], both.matrix("eta2").values[:3, 0])


def test_blocks_do_not_change_it(result):
    blocks = ss.compare_activations(
        INPUTS, ["linreg"], labels={"phone": LABEL}, rows_per_update=257
    )
    np.testing.assert_allclose(
        blocks.matrix("readability").values, result.matrix("readability").values, atol=1e-12
    )


@pytest.mark.parametrize(
    "labels, says",
    [
        ({"phone": LABEL[:-1]}, "differ in rows"),
        ({"phone": [""] * len(LABEL)}, "no row has one"),
        ({"phone": np.arange(len(LABEL))}, "label_min_share"),
        ({"phone": LABEL[:, None]}, "one label a row"),
        ({"a": LABEL}, "the same model"),
    ],
)
def test_refused_in_one_line(labels, says):
    with pytest.raises(UserError, match=says):
        ss.compare_activations(INPUTS, ["lincka"], labels=labels)


# --- errors and held out ---

OF_CLASSES = ("eta2", "eta2_global", "readability", "localisation")


@pytest.fixture(scope="module")
def sure() -> ss.SimilarityResult:
    return ss.compare_activations(
        INPUTS, ["linreg", "linreg_r2"], labels={"phone": LABEL}, errors=True,
        groups=GOLDEN["group"], heldout=True, folds=GOLDEN["fold"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def jackknife() -> dict[str, np.ndarray]:
    """Delete-one-group jackknives of what is known of labels."""
    groups = np.unique(GOLDEN["group"])
    left: dict[str, list[np.ndarray]] = {name: [] for name in OF_CLASSES}
    for group in groups:
        kept = GOLDEN["group"] != group
        once = ss.compare_activations(
            {k: x[kept] for k, x in INPUTS.items()}, ["linreg"], labels={"phone": LABEL[kept]}
        )
        order = np.argsort(once.dataset["class"].values)
        for name in OF_CLASSES:
            values = once.matrix(name).values[:3]
            left[name].append(values[:, order] if values.shape[1] > 1 else values)
    scale = (len(groups) - 1) ** 2 / len(groups)
    return {name: np.sqrt(scale * np.var(values, axis=0, ddof=1)) for name, values in left.items()}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_errors_are_those_of_the_jackknife(name, sure, jackknife):
    errors = sure.standard_error(name).values[:3]
    if errors.shape[1] > 1:
        errors = errors[:, np.argsort(sure.dataset["class"].values)]
    ratio = errors / jackknife[name]
    # A best neuron that changes with the group left out moves the jackknife, not the influence.
    assert 0.9 < np.median(ratio) < 1.1
    assert np.mean((ratio > 0.8) & (ratio < 1.25)) > 0.85


def test_errors_of_shares_are_those_of_regression(sure):
    of_linreg = sure.standard_error("linreg_r2")
    np.testing.assert_allclose(
        sure.standard_error("eta2").values[:3, 0], of_linreg.values[:3, 3], rtol=1e-9
    )
    np.testing.assert_allclose(
        sure.matrix("eta2_heldout").values[:3, 0], sure.matrix("linreg_r2_heldout").values[:3, 3]
    )
    low, high = sure.interval("readability").values[:, :3]
    assert (low < sure.matrix("readability").values[:3]).all() and (low < high).all()


def test_held_out_classes_of_unrelated_rows_are_not_readable():
    rng = np.random.default_rng(0)
    x, label = rng.standard_normal((800, 150)), rng.integers(0, 6, 800)
    result = ss.compare_activations(
        {"x": x}, ["lincka"], labels={"phone": label}, heldout=True, folds=np.arange(800) % 2
    )
    assert float(result.matrix("readability")[0].mean()) > 0.35
    assert abs(float(result.matrix("readability_heldout")[0].mean())) < 0.05


def test_a_class_of_one_fold_has_no_held_out_score():
    only = (GOLDEN["fold"] == 0) & (LABEL == 6)
    label = np.where(only, "first", np.where(LABEL > 2, "high", "low"))
    result = ss.compare_activations(
        INPUTS, ["lincka"], labels={"of": label}, heldout=True, folds=GOLDEN["fold"]
    )
    held = result.matrix("readability_heldout").sel(x="a/0")
    assert np.isnan(held.sel({"class": "of/first"}))
    assert np.isfinite(held.drop_sel({"class": "of/first"})).all()


# --- what else reads a result ---


def test_more_classes_than_neurons_and_everything_that_is_made_of_a_result(tmp_path):
    rng = np.random.default_rng(0)
    x, word = rng.standard_normal((1200, 5)), rng.integers(0, 40, 1200)
    result = ss.compare_activations(
        {"a/0": x, "a/1": x[:, ::-1], "b": rng.standard_normal((1200, 7))}, ["maxcorr", "linreg"],
        labels={"word": word}, errors=True, groups=np.repeat(np.arange(12), 100), heldout=True,
    )  # fmt: skip
    assert result.dataset["class_corr"].shape == (4, 40, 40)
    assert np.isnan(result.dataset["class_corr"].sel(x="a/0")[5:]).all()
    assert "linreg" in result.summary() and "eta2" not in result.to_dataframe().columns
    result.to_csv(tmp_path / "scores.csv")
    ss.write_report(result, tmp_path / "report.html")
    assert result.select("a").matrix("eta2").shape == (2, 1)


def test_constant_layers_know_nothing():
    constant = ss.compare_activations(
        {"a": np.ones((200, 3)), "b": np.zeros((200, 3))},
        ["lincka"],
        labels={"of": np.arange(200) % 3},
    )
    assert np.isnan(constant.matrix("eta2")).all()
    assert (constant.dataset["neuron_class"] == -1).all()


def test_what_is_no_measure_is_said(result):
    for what in (result.definition, lambda name: ss.plot(result, name)):
        with pytest.raises(UserError, match="eta2 is no measure"):
            what("eta2")
    with pytest.raises(UserError, match="no block"):
        result.block("eta2", "a", "b")
    with pytest.raises(UserError, match="label_min_share"):
        ss.compare_activations(INPUTS, ["lincka"], labels={"phone": LABEL}, label_min_share=1.5)


def test_under_a_null_labels_are_told_no_better_than_by_chance():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 2000)
    x = np.eye(3)[label] + 0.3 * rng.standard_normal((2000, 3))
    utterances = np.repeat([f"u{k}" for k in range(20)], 100)
    result = ss.compare_activations(
        {"x": x}, ["linreg"], labels={"class": label}, null="shift", null_draws=3,
        utterances=utterances,
    )  # fmt: skip
    assert float(result.matrix("linreg").loc["class/0", "x/0"]) > 0.8
    assert float(result.matrix("linreg_null").loc["class/0", "x/0"]) < 0.1


def test_what_pandas_calls_missing_is_no_label():
    pd = pytest.importorskip("pandas")
    labels = pd.array(["a", None, "b", pd.NA, "a"] * 40, dtype="string")
    x = np.random.default_rng(0).standard_normal((200, 3))
    result = ss.compare_activations({"x": x}, ["linreg"], labels={"phone": list(labels)})
    assert list(result.dataset["class"].values) == ["phone/a", "phone/b"]
