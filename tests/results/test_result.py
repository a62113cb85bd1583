"""SimilarityResult: labels, selection, and files that read back as they were."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray as xr

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from tests.support.paths import ROOT

MODELS = {"org/modèle-é": 3, "b": 2}
REPRESENTATIONS = [
    RepresentationName(model, layer) for model, depth in MODELS.items() for layer in range(depth)
]
ATTENTION = [representation for representation in REPRESENTATIONS if representation.layer > 0]
MEASURES = {
    "lincka": {"symmetric": True, "range": (0.0, 1.0), "level": "layer", "summary": "Linear CKA"},
    "maxcorr": {"symmetric": False, "range": (None, 1), "reference": "Wu et al. 2020"},
}


@dataclass(frozen=True)
class _Settings:
    stride: int = 2
    root: Path = Path("corpus")


ATTRIBUTES = {
    "config": {
        "models": ["a", "b"],
        "strict": False,
        "resume": None,
        "nothing": "",
        "rate": 1 / 3,
        "seed": 2**70,
        "a/b": 1,
        "settings": _Settings(),
    },
    "frames": np.int64(1234567),
    "utterances": 12,
    "note": "poids aléatoires",
    "undecodable": "\udcff.wav",
    "skipped": [f"{i:04d}/" + "x" * 100 for i in range(1500)],
    "matrix": np.eye(2),
}


def _matrix(seed: int, size: int = 5) -> np.ndarray:
    values = np.random.default_rng(seed).random((size, size))
    np.fill_diagonal(values, 1.0)
    return values


@pytest.fixture
def result() -> SimilarityResult:
    lincka = _matrix(0)
    lincka[0, 4] = np.nan
    return SimilarityResult.build(
        REPRESENTATIONS,
        {"lincka": lincka, "maxcorr": _matrix(1).astype(np.float32), "attn_js": _matrix(2, 3)},
        extras={
            "best_corr": (("x", "y", "neuron"), np.random.default_rng(3).random((5, 5, 4))),
            "best_match": (("x", "y", "neuron"), np.arange(100).reshape(5, 5, 4)),
            "normed": (("x",), np.array([False, False, True, False, True])),
            "revision": (("model",), np.array(["ø1", "β2"])),
            "threshold": ((), np.array(0.99)),
        },
        measures=MEASURES,
        attributes=ATTRIBUTES,
        attention_representations=ATTENTION,
        dims={"attn_js": ("x_attention", "y_attention")},
    )


def test_labels(result: SimilarityResult) -> None:
    assert result.representations == tuple(REPRESENTATIONS)
    assert result.attention_representations == tuple(ATTENTION)
    assert result.models == tuple(MODELS)
    assert result.measures == ("lincka", "maxcorr", "attn_js")
    matrix = result.matrix("maxcorr")
    assert matrix.dims == ("x", "y")
    assert matrix.sel(x="org/modèle-é/2", y="b/1").item() == _matrix(1).astype(np.float32)[2, 4]
    assert list(matrix.x_model.values) == [n.model for n in REPRESENTATIONS]
    assert list(matrix.y_layer.values) == [0, 1, 2, 0, 1]
    assert str(REPRESENTATIONS[2]) == "org/modèle-é/2"


def test_definitions(result: SimilarityResult) -> None:
    assert result.definition("lincka") == {**MEASURES["lincka"], "range": [0.0, 1.0]}
    assert result.definition("maxcorr")["range"] == [None, 1]
    assert result.definition("maxcorr")["symmetric"] is False
    assert result.definition("attn_js") == {}
    assert result.matrix("lincka").attrs["summary"] == "Linear CKA"
    np.testing.assert_array_equal(result.matrix("maxcorr").attrs["range"], [-np.inf, 1.0])


def test_attributes_keep_what_netcdf_cannot(result: SimilarityResult) -> None:
    attributes = result.attributes
    assert attributes["config"] == {
        **ATTRIBUTES["config"],
        "settings": {"stride": 2, "root": "corpus"},
    }
    assert attributes["config"]["strict"] is False
    assert attributes["matrix"] == [[1.0, 0.0], [0.0, 1.0]]
    assert attributes["undecodable"] == "\udcff.wav"
    assert result.dataset.attrs["config.rate"] == 1 / 3
    assert result.dataset.attrs["config.settings.stride"] == 2
    assert "config.seed" not in result.dataset.attrs


def test_attributes_of_no_json_type_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold a object"):
        SimilarityResult.build(
            REPRESENTATIONS[:1], {"m": np.ones((1, 1))}, attributes={"a": object()}
        )


def test_save_then_load_is_identical(result: SimilarityResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "new" / "résultat.nc")
    loaded = SimilarityResult.load(str(path))
    xr.testing.assert_identical(loaded.dataset, result.dataset)
    assert loaded.attributes == result.attributes
    assert loaded.dataset["normed"].dtype == bool
    assert loaded.matrix("maxcorr").dtype == np.float32
    assert loaded.definition("lincka") == result.definition("lincka")
    chosen = loaded.select("b")
    again = SimilarityResult.load(chosen.save(path))  # over the file it was read from
    xr.testing.assert_identical(again.dataset, chosen.dataset)
    assert [p.name for p in path.parent.iterdir()] == ["résultat.nc"]


def test_saved_arrays_are_compressed(tmp_path: Path) -> None:
    representations = [RepresentationName("m", layer) for layer in range(200)]
    result = SimilarityResult.build(representations, {"lincka": np.ones((200, 200))})
    assert result.save(tmp_path / "r.nc").stat().st_size < 200 * 200 * 8 / 4


def test_failed_save_keeps_the_old_file(result: SimilarityResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "r.nc")
    before = path.read_bytes()
    broken = SimilarityResult(result.dataset.assign_attrs(bad=object()))
    with pytest.raises(Exception, match=r"bad|attr"):
        broken.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_results(result: SimilarityResult, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.nc: no such result file"):
        SimilarityResult.load(tmp_path / "missing.nc")
    text = tmp_path / "notes.nc"
    text.write_text("not a netCDF file")
    with pytest.raises(UserError, match=r"notes\.nc: not a readable result"):
        SimilarityResult.load(text)
    half = tmp_path / "half.nc"
    content = result.save(tmp_path / "r.nc").read_bytes()
    half.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"half\.nc"):
        SimilarityResult.load(half)
    other = tmp_path / "other.nc"
    xr.Dataset({"a": ("t", np.arange(3))}).to_netcdf(other, engine="h5netcdf")
    with pytest.raises(UserError, match="not one that SimilarityResult"):
        SimilarityResult.load(other)
    newer = SimilarityResult(result.dataset.assign_attrs(format_version=99)).save(other)
    with pytest.raises(UserError, match="newer speechsim_jax"):
        SimilarityResult.load(newer)
    older = SimilarityResult(result.dataset.assign_attrs(format_version=1)).save(other)
    with pytest.raises(UserError, match="format 1"):
        SimilarityResult.load(older)


def test_unknown_measure_lists_the_known(result: SimilarityResult) -> None:
    with pytest.raises(UserError, match=r"'cka'.*lincka, maxcorr, attn_js"):
        result.matrix("cka")
    with pytest.raises(UserError, match="best_corr"):
        result.matrix("best_corr")


def test_select_by_model_and_layer(result: SimilarityResult) -> None:
    chosen = result.select(["b", "org/modèle-é"], layers=[1, 2])
    assert [str(n) for n in chosen.representations] == ["b/1", "org/modèle-é/1", "org/modèle-é/2"]
    rows = [4, 1, 2]
    np.testing.assert_array_equal(chosen.matrix("lincka"), _matrix(0)[np.ix_(rows, rows)])
    np.testing.assert_array_equal(
        chosen.matrix("attn_js"), _matrix(2, 3)[np.ix_([2, 0, 1], [2, 0, 1])]
    )
    assert chosen.dataset["best_corr"].shape == (3, 3, 4)
    assert list(chosen.dataset["revision"].values) == ["β2", "ø1"]
    assert chosen.attributes == result.attributes


def test_select_without_attention_layers_drops_them(result: SimilarityResult) -> None:
    chosen = result.select(layers=0)
    assert chosen.measures == ("lincka", "maxcorr")
    assert chosen.attention_representations == ()


def test_select_refuses_what_is_not_there(result: SimilarityResult) -> None:
    with pytest.raises(UserError, match=r"'c'.*org/modèle-é, b"):
        result.select("c")
    with pytest.raises(UserError, match="no representation of b has a layer among"):
        result.select("b", layers=[7])


def test_block(result: SimilarityResult) -> None:
    block = result.block("lincka", "org/modèle-é", "b")
    np.testing.assert_array_equal(block, result.matrix("lincka").values[:3, 3:])
    assert list(block.x_layer.values) == [0, 1, 2]
    assert result.block("attn_js", "b", "org/modèle-é").shape == (1, 2)
    with pytest.raises(UserError, match="no model 'c' under lincka"):
        result.block("lincka", "b", "c")


def test_frame_has_a_row_for_every_pair(result: SimilarityResult) -> None:
    frame = result.to_dataframe()
    keys = ["x_model", "x_layer", "y_model", "y_layer"]
    assert list(frame.columns) == [*keys, "lincka", "maxcorr", "attn_js"]
    assert len(frame) == 25
    np.testing.assert_array_equal(frame["lincka"], result.matrix("lincka").values.ravel())
    by_pair = frame.set_index(keys)["attn_js"]
    assert by_pair["org/modèle-é", 2, "b", 1] == _matrix(2, 3)[1, 2]
    assert by_pair.notna().sum() == 9


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_spreadsheet_computes_nothing(start: str, tmp_path: Path) -> None:
    """A model's folder may be called by anybody."""
    name = start + 'HYPERLINK("http://x";"y")'
    x = np.random.default_rng(0).standard_normal((20, 3))
    result = ss.compare_activations({(name, 0): x, "plain/1": x}, "lincka")
    with result.to_csv(tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row[column] for row in rows for column in ("x_model", "y_model")}
    assert names == {"'" + name, "plain"}
    assert result.models == (name, "plain")


@pytest.mark.parametrize("name", ["esc\x1b[31m", "n\0ul", "undecodable\udcff", "a\n\tb", "\u202ea"])
def test_any_name_can_be_shown_and_saved(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    result = ss.compare_activations({(name, 0): x, "plain/1": x}, "lincka")
    loaded = SimilarityResult.load(result.save(tmp_path / "r.nc"))
    assert loaded.models == result.models and result.models[1] == "plain"
    assert result.models[0].isprintable()
    assert "\x1b" not in loaded.summary() + repr(loaded)
    rows = list(csv.DictReader(result.to_csv(tmp_path / "s.csv").read_text().splitlines()))
    assert {row["x_model"] for row in rows} == set(result.models)
    assert RepresentationName(result.models[0], 0) == RepresentationName(name, 0)
    assert ss.plot(result, "lincka").savefig(tmp_path / "m.png") is None


def test_csv_reads_back(result: SimilarityResult, tmp_path: Path) -> None:
    """Without options, undefined scores and attention included; to a careful reader bit by bit."""
    path = result.to_csv(tmp_path / "new" / "scores.csv")
    frame = result.to_dataframe()
    pandas.testing.assert_frame_equal(pandas.read_csv(path), frame, check_dtype=False, rtol=1e-7)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for measure in result.measures:
        texts = [row[measure] or "nan" for row in rows]
        np.testing.assert_array_equal(np.array(texts, frame[measure].dtype), frame[measure])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "x_model,x_layer,y_model,y_layer,lincka,maxcorr,attn_js"
    assert lines[1].startswith("org/modèle-é,0,org/modèle-é,0,1.0,1.0,") and lines[1][-1] == ","
    assert sum(line.endswith(",") for line in lines[1:]) == 25 - 9
    about = json.loads((tmp_path / "new" / "scores.csv.json").read_text())
    assert about["provenance"] == result.attributes
    assert about["measures"]["lincka"] == result.definition("lincka")
    assert about["measures"]["attn_js"] == {}
    assert sorted(p.name for p in path.parent.iterdir()) == ["scores.csv", "scores.csv.json"]
    assert result.select("b").to_csv(path) == path  # in place of the old one
    assert len(pandas.read_csv(path)) == 4


def test_summary_leaves_self_similarity_out(result: SimilarityResult) -> None:
    text = result.summary()
    values = result.matrix("lincka").values
    across = np.nanmean(values[:3, 3:])
    within = (values[3, 4] + values[4, 3]) / 2
    lines = text.splitlines()
    assert "A  org/modèle-é (3 layers)" in lines and "B  b (2 layers)" in lines
    head = lines.index("         within  between    A,A    B,B    A,B    B,A")
    rows = {line.split()[0]: line.split()[1:] for line in lines[head + 1 : head + 4]}
    assert list(rows) == ["lincka", "maxcorr", "attn_js"]
    both, between, first, second, forward, backward = rows["lincka"]
    assert (second, forward) == (f"{within:.3f}", f"{across:.3f}")
    within_first = values[:3, :3][~np.eye(3, dtype=bool)].mean()
    assert (first, both) == (f"{within_first:.3f}", f"{(within_first + within) / 2:.3f}")
    assert backward == f"{values[3:, :3].mean():.3f}"
    assert between == f"{(across + values[3:, :3].mean()) / 2:.3f}"
    assert rows["attn_js"][3] == "-"  # one layer, which is not compared with itself
    assert "1,234,567 frames" in text and "poids aléatoires" in text


def test_summary_stays_within_a_terminal() -> None:
    matrices = {f"a_long_measure_{i}": np.eye(2) for i in range(12)}
    result = SimilarityResult.build(
        [RepresentationName("a", 0), RepresentationName("b", 0)], matrices
    )
    table = result.summary().splitlines()[3:]
    assert max(map(len, table)) <= 100
    assert sum("a_long_measure" in line for line in table) == 12


@pytest.mark.parametrize("models", [1, 3, 4, 5, 30])
def test_summary_of_any_number_of_models(models: int) -> None:
    representations = [
        RepresentationName(f"model-{i}", layer) for i in range(models) for layer in range(2)
    ]
    values = np.random.default_rng(0).uniform(-100, 0, (len(representations),) * 2)
    named = {"lincka": values, "procrustes_distance": values}
    result = SimilarityResult.build(representations, named)
    noted = SimilarityResult.build(representations, named, attributes={"note": "many words " * 20})
    assert max(map(len, noted.summary().splitlines())) <= 100
    lines = result.summary().splitlines()
    assert max(map(len, lines)) <= 100
    heads = " ".join(line for line in lines if "," in line and "  " in line and ":" not in line)
    pairs = {head for head in heads.split() if "," in head and head[0].isupper()}
    diagonal = models if models > 1 else 0
    assert len(pairs) == diagonal + (models * (models - 1) if models <= 4 else 0)
    assert ("between" in lines[3 + models]) == (models > 1)
    assert any(line.startswith("Z  model-25") for line in lines) == (models == 30)
    assert any(line.startswith("AD  model-29") for line in lines) == (models == 30)


def test_a_ranking_has_no_matrix() -> None:
    x = np.random.default_rng(0).standard_normal((100, 4))
    result = ss.compare_activations({"a/0": x, "b/0": x[:, ::-1]}, measures=["mincorr"])
    with pytest.raises(UserError, match=r"ranking of neurons: result.dataset\['mincorr_neuron'\]"):
        result.matrix("mincorr")


def _of_widths(*widths: int, frames: int, **inflated: bool) -> SimilarityResult:
    """Layers of one model; measures by whether few rows inflate them."""
    size = len(widths)
    return SimilarityResult.build(
        [RepresentationName("a", layer) for layer in range(size)],
        {name: np.eye(size) for name in inflated},
        {"width": (("x",), np.array(widths))},
        {name: {"inflated_by_few_rows": flag} for name, flag in inflated.items()},
        {"frames": frames},
    )


@pytest.mark.slow
def test_few_frames_warning_of_a_comparison() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 21)), rng.standard_normal((200, 12))
    names = ["linreg", "lincka_debiased"]
    few = ss.compare_activations({"a/0": x, "b/0": y}, measures=names, progress=False)
    assert few.few_frames_warning().startswith(
        "Few frames: 200 for layers of up to 21 neurons. linreg come"
    )
    enough = ss.compare_activations({"a/0": x[:, :20], "b/0": y}, measures=names, progress=False)
    assert enough.few_frames_warning() == ""


def test_few_frames_warning() -> None:
    """Ten rows per neuron of the widest layer are enough; measures that do not mind go unnamed."""
    few = _of_widths(12, 21, frames=200, linreg=True, mine=True, lincka_debiased=False)
    warning = few.few_frames_warning()
    assert warning.startswith(
        "Few frames: 200 for layers of up to 21 neurons. linreg and mine come"
    )
    assert " ".join(few.summary().split()).endswith(warning)
    assert _of_widths(12, 20, frames=200, linreg=True).few_frames_warning() == ""
    assert _of_widths(12, 21, frames=200, lincka_debiased=False).few_frames_warning() == ""
    pooled = _of_widths(12, frames=200, linreg=True)
    pooled.dataset.attrs["provenance"] = json.dumps(pooled.attributes | {"rows": 100})
    assert pooled.few_frames_warning().startswith("Few frames: 100 for")  # rows are what counts
    bare = SimilarityResult.build([RepresentationName("a", 0)], {"linreg": np.eye(1)})
    assert bare.few_frames_warning() == ""


def test_summary_without_measures() -> None:
    result = SimilarityResult.build([RepresentationName("a", 0)], {})
    assert result.summary() == repr(result)


def test_repr(result: SimilarityResult) -> None:
    first, second = repr(result).splitlines()
    assert "2 models, 5 representations, 1,234,567 frames, 12 utterances" in first
    assert second == "  measures: lincka, maxcorr, attn_js"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"representations": [], "matrices": {}}, "at least one representation"),
        (
            {"representations": [REPRESENTATIONS[0]] * 2, "matrices": {}},
            "modèle-é/0 is given twice",
        ),
        ({"matrices": {"m": np.ones((4, 5))}}, "m: 4 entries along x, expected 5"),
        ({"matrices": {}, "extras": {"e": (("x",), np.ones((5, 2)))}}, "e: shape"),
        (
            {"matrices": {"m": np.ones((5, 5))}, "extras": {"m": ((), np.array(1))}},
            "used twice in one result: m",
        ),
    ],
)
def test_build_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimilarityResult.build(**{"representations": REPRESENTATIONS, **arguments})


def test_import_is_light(tmp_path: Path) -> None:
    """Results import no figures and no report, also not while they are written."""
    code = (
        "import sys, pkgutil, importlib, numpy, speechsim_jax.results as results\n"
        "for module in pkgutil.iter_modules(results.__path__):\n"
        "    importlib.import_module(f'speechsim_jax.results.{module.name}')\n"
        "from speechsim_jax.results.result import RepresentationName, SimilarityResult\n"
        "result = SimilarityResult.build([RepresentationName('a', 0)], {'m': numpy.eye(1)})\n"
        "result.save(sys.argv[1]); result.to_csv(sys.argv[1]); result.summary()\n"
        "above = ('matplotlib', 'plotly', 'speechsim_jax.figures', 'speechsim_jax.report')\n"
        "print([name for name in above if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "result"], capture_output=True, text=True, check=True,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_the_table_has_errors_and_held_out_scores() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    arrays = {"a/0": rng.standard_normal((120, 3)), "b/0": rng.standard_normal((120, 2))}
    result = ss.compare_activations(
        arrays, ["linreg", "lincka"], errors=True, heldout=True, groups=groups
    )
    table = result.to_dataframe()
    assert table.columns[4:].tolist() == [
        "linreg", "lincka", "linreg_se", "lincka_se", "linreg_heldout", "linreg_ridge_heldout",
    ]  # fmt: skip
    np.testing.assert_array_equal(table["linreg_se"], result.matrix("linreg_se").values.ravel())


def test_tracks_are_no_models() -> None:
    """The table of means is of models alone, with a column for every pair where these are few."""
    models = ["a", "b", "c", "phone", "logmel"]
    names = [RepresentationName(model, 0) for model in models]
    scores = np.full((5, 5), 0.5)
    scores[:3, 3:] = scores[3:, :3] = 0.1
    result = SimilarityResult.build(
        names,
        {"lincka": scores},
        {"track": (("track",), np.array(["phone"]))},
        attributes={"tracks": {"logmel": {}, "phone": {}}},
    )
    assert (result.label_tracks, result.feature_tracks) == (("phone",), ("logmel",))
    assert result.compared_models == ("a", "b", "c")
    assert "3 models, 2 tracks" in repr(result)
    head, row = (
        line.split() for line in result.summary().splitlines() if "0.5" in line or "A,C" in line
    )
    assert "A,C" in head and "D,D" not in head
    assert set(row[1:]) <= {"0.500", "-"}
