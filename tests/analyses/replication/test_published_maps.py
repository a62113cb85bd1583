"""A run aligned with published maps: the right cells, in both orientations, without lost ones."""

import csv
import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from speechsim_jax.analyses.replication import published_maps
from speechsim_jax.analyses.replication.published_maps import (
    agreements,
    align,
    align_finetuned,
    load,
    match_models,
)
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import RepresentationName, SimilarityResult

BASE, LARGE = "hubert-base", "wav2vec2-large"
DEPTHS = {BASE: 13, LARGE: 24}
REPRESENTATIONS = [
    RepresentationName(model, layer) for model, depth in DEPTHS.items() for layer in range(depth)
]
HEADS = [representation for representation in REPRESENTATIONS if representation.layer]
SYMMETRIC = {"lincka": True, "maxcorr": False, "attn_js": False}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Random maps of both kinds, written as a file and read back; one cell of attn_js is lost."""
    rng = np.random.default_rng(0)
    count, heads = len(REPRESENTATIONS), len(HEADS)
    lincka = rng.random((count, count))
    arrays = {
        "networks": np.array([str(one) for one in REPRESENTATIONS]),
        "lincka": (lincka + lincka.T) / 2,
        "maxcorr": rng.random((count, count)),
        "attn_js": 0.5 + rng.random((heads, heads)) / 2,
        "wav2vec2_finetuned_maxcorr": rng.random((24, 24)),
    }
    arrays["attn_js"][1, 2] = 0.002
    path = tmp_path_factory.mktemp("maps") / "maps.npz"
    np.savez(path, **arrays)
    return load(path)


def run_of(maps, turned: bool = False, finetuned: bool = False) -> SimilarityResult:
    """A run with the published scores, under other names."""
    names = {BASE: "org/my-hubert", LARGE: "mine"}

    def renamed(representations):
        return [RepresentationName(names[n.model], n.layer) for n in representations]

    matrices = {name: values.T if turned else values for name, values in maps.maps.items()}
    matrices = {name: np.nan_to_num(values, nan=0.7) for name, values in matrices.items()}
    representations = renamed(REPRESENTATIONS)
    if finetuned:
        representations += [RepresentationName("mine-ft", layer) for layer in range(24)]
        square = np.zeros((len(representations),) * 2)
        values = maps.finetuned["wav2vec2", "maxcorr"]
        square[13:37, 37:], square[37:, 13:37] = values.T, values
        return SimilarityResult.build(representations, {"maxcorr": square})
    return SimilarityResult.build(
        representations,
        matrices,
        measures={name: {"symmetric": flag} for name, flag in SYMMETRIC.items()},
        attention_representations=renamed(HEADS),
        dims={"attn_js": ("x_attention", "y_attention")},
    )


NAMES = {BASE: "org/my-hubert", LARGE: "mine"}


def by_block(
    rows: list[published_maps.Agreement],
) -> dict[tuple[str, str], published_maps.Agreement]:
    return {(row.x, row.y): row for row in rows}


@pytest.mark.parametrize("turned", [False, True])
def test_both_orientations(maps, turned):
    aligned = {
        (one.measure, one.orientation): one for one in align(run_of(maps, turned), maps, NAMES)
    }
    assert set(aligned) == {
        ("lincka", "as given"),
        *((m, o) for m in ("maxcorr", "attn_js") for o in ("as given", "transposed")),
    }
    right, wrong = ("as given", "transposed")[:: -1 if turned else 1]
    for measure in ("maxcorr", "attn_js"):
        for row in agreements(aligned[measure, right]):
            assert row.correlation == pytest.approx(1, abs=1e-12)
            assert row.mean_abs_difference == 0
        for row in agreements(aligned[measure, wrong]):
            assert abs(row.correlation) < 0.3
            assert row.mean_abs_difference > 0.1
    for row in agreements(aligned["lincka", "as given"]):
        assert row.correlation == pytest.approx(1, abs=1e-12)


def test_cells_that_count(maps):
    """No layer with itself; a lost pair is in none of the sums."""
    aligned = {(one.measure, one.orientation): one for one in align(run_of(maps), maps, NAMES)}
    blocks = by_block(agreements(aligned["maxcorr", "as given"]))
    assert {key: row.cells for key, row in blocks.items()} == {
        (BASE, BASE): 13 * 12,
        (LARGE, LARGE): 24 * 23,
        (BASE, LARGE): 13 * 24,
        (LARGE, BASE): 13 * 24,
        ("all", "all"): 37 * 36,
    }
    heads = by_block(agreements(aligned["attn_js", "as given"]))
    assert heads[BASE, BASE].cells == 12 * 11 - 1
    assert heads[BASE, LARGE].cells == 12 * 23
    assert (blocks[BASE, LARGE].run_x, blocks[BASE, LARGE].run_y) == ("org/my-hubert", "mine")


def test_differences_are_those_of_the_numbers(maps):
    result = run_of(maps)
    result.dataset["maxcorr"] += 0.25
    row = agreements(align(result, maps, {BASE: "org/my-hubert"})[1])[0]
    assert row.mean_abs_difference == pytest.approx(0.25)
    assert row.mean_run - row.mean_published == pytest.approx(0.25)


def test_layers_at_the_nearest_relative_depth(maps):
    """4 layers against 12, and 6 against 24, of which the last is not published."""
    representations = [RepresentationName("s", layer) for layer in range(5)]
    representations += [RepresentationName("b", layer) for layer in range(7)]
    result = SimilarityResult.build(representations, {"maxcorr": np.zeros((12, 12))})
    aligned = align(result, maps, {BASE: "s", LARGE: "b"})[0]
    layers = [(representation.model, representation.layer) for representation in aligned.rows]
    assert layers == [(BASE, l) for l in (0, 3, 6, 9, 12)] + [
        (LARGE, l) for l in (0, 4, 8, 12, 16, 20)
    ]


def test_finetuned_either_way(maps):
    result = run_of(maps, finetuned=True)
    rows = [
        agreements(one)[0] for one in align_finetuned(result, maps, "wav2vec2", ("mine-ft", "mine"))
    ]
    assert [row.orientation for row in rows] == ["rows pretrained", "rows fine-tuned"]
    assert abs(rows[0].correlation) < 0.3
    assert rows[1].correlation == pytest.approx(1, abs=1e-12)
    assert {row.name for row in rows} == {"wav2vec2_finetuned_maxcorr"}
    assert rows[1].cells == 24 * 24  # before and after: no layer meets itself
    assert align_finetuned(result, maps, "hubert", ("mine-ft", "mine")) == []


def test_names_are_matched():
    models = ["facebook/wav2vec2-large-lv60", "hubert-base-ls960", "wav2vec2-large"]
    assert match_models([BASE, LARGE], models) == {
        BASE: "hubert-base-ls960",
        LARGE: "wav2vec2-large",
    }
    assert match_models([BASE, LARGE], ["other"]) == {}
    assert match_models([BASE, LARGE], models, {BASE: models[0]}) == {BASE: models[0]}
    with pytest.raises(UserError, match="no published model 'hubert'; there are: hubert-base"):
        match_models([BASE, LARGE], models, {"hubert": models[0]})
    with pytest.raises(UserError, match="no model 'mine' in this run"):
        match_models([BASE, LARGE], models, {BASE: "mine"})


def test_csv_and_table(maps, tmp_path):
    rows = [row for one in align(run_of(maps), maps, NAMES) for row in agreements(one)]
    path = published_maps.write_csv(rows, tmp_path / "published.csv")
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) == 5 * 5
    assert float(read[0]["correlation"]) == rows[0].correlation
    assert published_maps.table(rows).count("\n") == len(rows)


def test_csv_holds_no_formula_of_a_model(maps, tmp_path):
    row = next(row for one in align(run_of(maps), maps, NAMES) for row in agreements(one))
    hostile = dataclasses.replace(row, run_x="=1+1", run_y="a;@x", correlation=-0.5)
    path = published_maps.write_csv([hostile], tmp_path / "published.csv")
    with path.open() as file:
        (read,) = csv.DictReader(file)
    assert read["run_x"] == "'=1+1" and read["run_y"] == "a;@x"
    assert read["correlation"] == "-0.5" and '"a;@x"' in path.read_text()


def test_side_by_side_draws_the_numbers(maps):
    aligned = align(run_of(maps), maps, NAMES)[-1]
    figure = published_maps.side_by_side(aligned)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    images = [axes.images[0].get_array() for axes in figure.axes if axes.get_label()[:4] == "map "]
    np.testing.assert_array_equal(images[0], aligned.run)
    np.testing.assert_array_equal(images[2].filled(np.nan), aligned.run - aligned.published)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [text.replace("\n", "") for text in texts] == ["hubert-base", "wav2vec2-large"] * 3


BROKEN = {
    "no networks": ({"lincka": np.ones((2, 2))}, "no array 'networks'"),
    "no layer": ({"networks": np.array(["a"])}, "'a' in 'networks' is not model/layer"),
    "shape": (
        {"networks": np.array(["a/0", "a/1"]), "lincka": np.ones((3, 3))},
        r"lincka has the shape \(3, 3\), not \(2, 2\)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_are_not_maps(kind, tmp_path):
    arrays, message = BROKEN[kind]
    np.savez(tmp_path / "maps.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "maps.npz")


def test_no_file_at_all(tmp_path):
    (tmp_path / "maps.npz").write_text("nothing")
    for name in ("maps.npz", "none.npz"):
        with pytest.raises(UserError, match="not a file of published maps"):
            load(tmp_path / name)


# --- the maps that come with the package ---


def test_bundled_maps_have_the_block_means_that_were_written_down():
    """The means that came with the digitised maps, to two digits."""
    published = load()
    assert published.models == ("hubert-base", "hubert-large", "wav2vec2-base", "wav2vec2-large")
    assert "colour bar" in published.provenance and "inferred" in published.provenance
    main, *finetuned = published.results()
    pairs = [(0, 1), (0, 2), (1, 3), (2, 3)]
    expected = {
        "maxcorr": (0.23, 0.22, 0.25, 0.24),
        "linreg": (0.70, 0.65, 0.71, 0.67),
        "svcca": (0.41, 0.36, 0.38, 0.37),
        "pwcca": (0.53, 0.48, 0.51, 0.49),
        "lincka": (0.57, 0.71, 0.39, 0.45),
    }
    for measure, values in expected.items():
        for (x, y), value in zip(pairs, values):
            block = main.block(measure, published.models[x], published.models[y])
            assert float(block.mean()) == pytest.approx(value, abs=0.0051), (measure, x, y)
    assert main.matrix("attn_js").shape == (70, 70)
    assert 20 < int(np.isnan(main.matrix("attn_js")).sum()) < 60
    diagonals = {
        (result.models[0], measure): float(
            np.diagonal(result.block(measure, result.models[0], result.models[1])).mean()
        )
        for result in finetuned
        for measure in ("maxcorr", "linreg")
    }
    assert diagonals == {
        ("hubert-large", "maxcorr"): pytest.approx(0.84, abs=0.0051),
        ("hubert-large", "linreg"): pytest.approx(0.93, abs=0.0051),
        ("wav2vec2-large", "maxcorr"): pytest.approx(0.67, abs=0.0051),
        ("wav2vec2-large", "linreg"): pytest.approx(0.84, abs=0.0051),
    }
