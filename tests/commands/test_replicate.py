"""The replication: groups, roles, what it writes, and that it goes on where it was killed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.analyses.replication import grouped, members, presets, published_maps
from speechsim_jax.analyses.replication.claims import MEASURES, Roles
from speechsim_jax.commands import replicate
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.pipeline import costs
from speechsim_jax.settings import Output, Settings
from tests.support.commands import call
from tests.support.same_result import assert_same_result
from tests.support.tiny_encoders import CONFIG as CONTRASTIVE

# --- the script on tiny encoders ---

PREDICTIVE = dataclasses.replace(CONTRASTIVE, family="hubert")
SMALL = {"rows_per_update": 128, "batch_seconds": 3}
MADE = {
    "contrastive_s": (CONTRASTIVE, 1, 0.0),
    "contrastive_s_seed1": (CONTRASTIVE, 2, 0.0),
    "contrastive_s_ctc": (CONTRASTIVE, 1, 0.1),
    "predictive_s": (PREDICTIVE, 3, 0.0),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    for name, (config, seed, change) in MADE.items():
        tensors = random_tensors(config, seed)
        for key, value in tensors.items():
            noise = rng.standard_normal(value.shape).astype(np.float32)
            tensors[key] = value + np.float32(change * value.std()) * noise
        save_folder(folder / name, config, tensors)
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Twelve speakers, an utterance of a second each; next to the folder alignments of letters."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    lines = ["path\tstart\tend\tlabel"]
    for index in range(12):
        samples = 0.1 * rng.standard_normal(16_000).cumsum() / 50
        samples = (samples - samples.mean()).astype(np.float32)
        (folder / f"speaker{index}").mkdir()
        soundfile.write(folder / f"speaker{index}" / "a.wav", samples, 16_000, subtype="FLOAT")
        lines += [
            f"speaker{index}/a.wav\t{k / 10}\t{(k + 1) / 10}\t{'abc'[k % 3]}" for k in range(10)
        ]
    folder.with_suffix(".tsv").write_text("\n".join(lines))
    return folder


def config_of(models: Path, audio: Path, workdir: Path) -> replicate.Config:
    source = {name: str(models / name) for name in MADE}
    return replicate.Config(
        models=(source["contrastive_s"], source["predictive_s"]),
        audio=str(audio),
        workdir=str(workdir),
        finetuned=((source["contrastive_s_ctc"], source["contrastive_s"]),),
        seeds=((source["contrastive_s_seed1"], source["contrastive_s"]),),
        groups=2,
        published="paper",
        published_as={"hubert-base": "predictive_s", "wav2vec2-base": "contrastive_s"},
        settings=Settings(
            **SMALL, attention_max_seconds=60, labels=(f"letter:{audio.with_suffix('.tsv')}",)
        ),
        output=Output(note="tiny"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, models, audio) -> tuple[replicate.Config, replicate.Outcome]:
    config = config_of(models, audio, tmp_path_factory.mktemp("runs") / "tiny")
    with pytest.MonkeyPatch.context() as patch:  # the estimate is measured, for seconds
        patch.setattr(costs, "estimate", lambda *_: "not estimated")
        return config, replicate.run(config)


@pytest.mark.slow
def test_everything_is_written(made):
    config, outcome = made
    workdir = Path(config.workdir)
    names = {path.name for path in (workdir / "figures").iterdir()}
    maps = {"maxcorr", "linreg", "svcca", "pwcca", "lincka"}
    assert {f"{m}.png" for m in maps | {"attn_js", "attn_pearson", "attn_frobenius"}} <= names
    assert {f"wav2vec2_finetuned_{m}.png" for m in maps} <= names
    assert {"published_maxcorr.png", "published_wav2vec2_finetuned_maxcorr.png"} <= names
    saved = json.loads((workdir / "findings.json").read_text())
    assert saved["about"]["groups"] == 2
    assert not saved["about"]["speakers_in_one_group"]  # their speakers are not known
    assert set(saved["about"]["models"]) == {*MADE, "random:contrastive_s", "random:predictive_s@1"}
    found = ss.SimilarityResult.load(workdir / "result.nc")
    assert len(found.representations) == 6 * 3 + 1 and "mincorr_order" in found.dataset
    assert found.attributes["utterances"] == 12
    assert found.influence is not None and found.influence.by == "clusters"
    page = (workdir / "findings.md").read_text()
    assert "2 groups are too few" in page and "tiny" in page
    verdicts = {one.claim.name: one.verdict for one in outcome.findings}
    untested = {name for name, verdict in verdicts.items() if verdict == "not tested"}
    assert {"objective"} <= untested
    assert untested <= {"objective", "attention", "attention within", "concepts"}
    by_groups = {one.claim.name: one.grouped for one in outcome.findings}
    assert {name for name, of in by_groups.items() if of is None} == {"objective", "concepts"}
    concepts = outcome.findings[-1]
    assert [test.measure for test in concepts.tests] == ["readability", "concept_kappa"]
    assert all(np.isfinite(test.value.difference) for test in concepts.tests)
    assert not (workdir / "comparisons").exists()
    assert "<html" in (workdir / "report.html").read_text()
    assert (workdir / "published.csv").read_text().count("\n") == len(outcome.agreements) + 1
    assert {row.orientation for row in outcome.agreements} >= {"transposed", "rows pretrained"}


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(tmp_path, models, audio, monkeypatch):
    """In the third group, then while merging: what is done is not done again.

    The whole is what one comparison of everything gives.
    """
    config = replicate.Config(
        models=tuple(str(models / name) for name in ("contrastive_s", "predictive_s")),
        audio=str(audio),
        workdir=str(tmp_path / "killed"),
        groups=3,
        untrained=(),
        attention=False,
        settings=Settings(**SMALL),
        keep_statistics=True,
        resume=True,
    )
    compared, merged = [], []
    compare, merge = ss.compare, ss.merge

    def compared_until(limit: int):
        def counted(*args, **kwargs):
            if "settings" in kwargs:  # of all the audio, before the groups
                return compare(*args, **kwargs)
            if len(compared) == limit:
                raise KeyboardInterrupt
            compared.append(args[1].origin)
            return compare(*args, **kwargs)

        return counted

    def merged_until(limit: int):
        def counted(folders, **kwargs):
            if len(merged) == limit:
                raise KeyboardInterrupt
            merged.append(len(folders))
            return merge(folders, **kwargs)

        return counted

    monkeypatch.setattr(ss, "compare", compared_until(2))
    monkeypatch.setattr(ss, "merge", merged_until(2))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            replicate.run(config)
        monkeypatch.setattr(ss, "compare", compared_until(3))
    assert (len(compared), merged) == (3, [3, 2])
    changed = Settings(**SMALL, rank_tolerance=1e-5)
    with pytest.raises(ss.UserError, match="other groups, settings; choose another"):
        replicate.run(dataclasses.replace(config, groups=2, settings=changed))
    with pytest.raises(ss.UserError, match="--resume"):
        replicate.run(dataclasses.replace(config, resume=False))
    monkeypatch.setattr(ss, "merge", merged_until(4))
    outcome = replicate.run(config)
    assert (len(set(compared)), merged) == (3, [3, 2, 2, 2])
    expected = compare(
        config.models, str(audio), measures=MEASURES, progress=False, settings=config.settings,
        errors="none",
    )  # fmt: skip
    folder = Path(config.workdir, "comparisons", "groups-models")
    assert_same_result(expected, ss.SimilarityResult.load(folder / "whole.nc"))
    for measure in MEASURES:
        np.testing.assert_allclose(
            outcome.result.matrix(measure), expected.matrix(measure), rtol=1e-5
        )
    again = replicate.run(config)  # everything is there
    assert [one.verdict for one in again.findings] == [one.verdict for one in outcome.findings]


def test_sets_of_few_models():
    roles = Roles(
        paradigms={"c": "contrastive", "p": "predictive"},
        sizes={"c": (2, 16), "p": (2, 16)},
        untrained={"c": "c0", "p": "p0"},
        seeds=(("c", "c1"),),
        finetuned=(("c-ft", "c"),),
    )
    assert members.comparison_sets(roles, list("abc"), split=False) == {"models": ["a", "b", "c"]}
    assert members.comparison_sets(roles, [], split=True) == {
        "models": ["c", "p", "c1"],
        "finetuned-c-ft": ["c", "c-ft"],
        "untrained-c-p": ["c", "p", "c0", "p0"],
    }


def test_room_on_the_disk(tmp_path):
    grouped.check_disk_space(tmp_path, 1000, 8)
    with pytest.raises(ss.UserError, match=r"statistics of 8 groups take 9e\+06 GB .* --split"):
        grouped.check_disk_space(tmp_path, 10**15, 8)


@pytest.mark.slow
def test_statistics_are_as_large_as_announced(models, audio, tmp_path):
    encoders = [ss.load_encoder(models / name) for name in ("contrastive_s", "predictive_s")]
    ss.compare(
        encoders, str(audio), measures=["lincka"], statistics_dir=tmp_path / "kept",
        progress=False, **SMALL,
    )  # fmt: skip
    crossed = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("cross-*.npy"))
    announced = grouped.statistics_bytes(encoders, {"layers": None})
    # Blocks on the diagonal are whole.
    assert announced < crossed < 1.4 * announced


# --- roles and flags ---

MISTAKES = {
    "one model": ({"models": ("a",)}, "1 models; at least 2"),
    "unknown pretrained": ({"finetuned": (("ft", "b"),)}, "--finetuned=ft:b: b is not among"),
    "given twice": ({"models": ("a", "b"), "seeds": (("a", "b"),)}, "--other_seed=a:b: a is given"),
    "untrained": ({"untrained": ("b",)}, "--untrained=b: that is not among the models"),
    "no maps": ({"published": "./none.npz"}, "not a file of published maps"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, audio, tmp_path, monkeypatch):
    """Nothing is loaded for them."""
    monkeypatch.setattr(ss, "load_encoder", lambda *a, **k: pytest.fail("a model was loaded"))
    changes, message = MISTAKES[name]
    config = replicate.Config(models=("a", "c"), audio=str(audio), workdir=str(tmp_path))
    with pytest.raises(ss.UserError, match=message):
        replicate.run(dataclasses.replace(config, **changes))


def test_two_hidden_states_are_too_few(models, audio, tmp_path):
    settings = Settings(layers=(0, -1))
    config = dataclasses.replace(config_of(models, audio, tmp_path), settings=settings)
    with pytest.raises(ss.UserError, match="2 hidden states; the claims are about"):
        replicate.run(config)


def parsed(*arguments: str) -> replicate.Config:
    values = replicate.define_flags()
    values(["replicate", *arguments])
    return replicate.config_from_flags(values)


def test_flags(tmp_path):
    config = parsed(
        "--models=a,b", "--finetuned=random:c:a", "--other_seed=d:b", "--audio=s", "--workdir=w",
        "--layers=0,6,-1", "--groups=9", "--batch_seconds=20", "--published_as=hubert-base:a",
    )  # fmt: skip
    assert config == replicate.Config(
        models=("a", "b"),
        audio="s",
        workdir="w",
        finetuned=(("random:c", "a"),),
        seeds=(("d", "b"),),
        groups=9,
        published_as={"hubert-base": "a"},
        settings=Settings(
            layers=(0, 6, -1), batch_seconds=20, attention_max_seconds=60, errors_source="sample"
        ),
    )
    tuned = "random:zoo:c:zoo:a,zoo:d:b"
    named = parsed("--models=a,b", f"--finetuned={tuned}", "--audio=s", "--workdir=w")
    assert named.finetuned == (("random:zoo:c", "zoo:a"), ("zoo:d", "b"))
    paper = parsed("--preset=paper", "--audio=s", "--workdir=w", "--max_minutes=5")
    assert paper.split and paper.published == "paper" and len(paper.finetuned) == 2
    assert (paper.settings.max_minutes, paper.settings.attention_max_seconds) == (5, 600)
    zoo = parsed("--preset=zoo", "--audio=s", "--workdir=w", "--batch_seconds=20", "--seed=1")
    assert zoo.settings == Settings(
        max_minutes=4, attention_max_seconds=120, rows_per_update=1024, buckets=2,
        batch_seconds=20, seed=1, errors_source="sample",
    )  # fmt: skip
    assert set(paper.untrained or ()) == set(paper.models)
    assert parsed("--models=a,b", "--untrained=none", "--audio=s", "--workdir=w").untrained == ()
    assert parsed("--models=a,b", "--untrained=a", "--audio=s", "--workdir=w").untrained == ("a",)
    assert parsed("--preset=paper", "--untrained=all", "--audio=s", "--workdir=w").untrained is None
    assert not parsed("--preset=paper", "--nosplit", "--audio=s", "--workdir=w").split
    for arguments, message in (
        (["--models=a"], "--audio is required"),
        (["--audio=s", "--workdir=w"], "--models or --preset"),
        (["--audio=s", "--workdir=w", "--models=a", "--preset=zoo"], "leave out --models"),
        (
            ["--audio=s", "--workdir=w", "--models=a", "--finetuned=b"],
            "--finetuned=b: expected two",
        ),
        (
            ["--audio=s", "--workdir=w", "--models=a", "--layers=x"],
            "--layers has 'x'; expected numbers",
        ),
        (["--audio=s", "--workdir=w", "--preset=zoo", f"--zoo={tmp_path}"], "no model contrastive"),
    ):
        with pytest.raises(ss.UserError, match=message):
            parsed(*arguments)


def test_presets_name_published_models(tmp_path):
    for name in ("contrastive_s", "predictive_s", "contrastive_b", "predictive_b",
                 "contrastive_s_seed1", "contrastive_s_ctc", "predictive_s_ctc"):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    for preset in (presets.load_preset("zoo", str(tmp_path)), presets.load_preset("paper", None)):
        assert set(preset.published_as) == set(published_maps.load().models)
        last = {source.rpartition("/")[2] for source in preset.models}
        assert set(preset.published_as.values()) == last
        assert {before for _, before in preset.finetuned + preset.seeds} <= set(preset.models)


def test_help_findings(capsys):
    ended = call(capsys, "replicate", "--help_findings")
    assert ended.code == 0 and "is undecided    otherwise" in ended.out
