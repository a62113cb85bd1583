"""`speechsim inspect`: one answer for each model, and the exit code."""

import json
import shutil

from speechsim_jax.commands import entry
from tests.support.commands import call, flags_of
from tests.support.paths import ROOT

BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"
LARGE = ROOT / "tests" / "data" / "parity" / "hubert-large"


def test_models_are_listed_one_after_the_other(capsys):
    ended = call(capsys, "inspect", str(BASE), "zoo:contrastive_s_ctc")
    assert (ended.code, ended.err) == (0, [])
    first, second = ended.out.split("\n\n")
    assert first.splitlines()[0] == str(BASE) and second.splitlines()[0] == "zoo:contrastive_s_ctc"
    assert "3 layers x 32 neurons, 4 heads" in first and "CTC" not in first
    assert "32 tokens; vocab.json has 32" in second and "lm_head (2 tensors)" in second
    assert all(block.splitlines()[-1].split()[:2] == ["loads", "yes"] for block in (first, second))


def test_one_bad_model_does_not_end_the_list(capsys, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(BASE, broken)
    (broken / "config.json").write_text('{"model_type": "bert"}')
    ended = call(capsys, "inspect", str(broken), "/no/such", str(LARGE))
    assert ended.code == 2 and ended.err == [
        f"error: 2 of 3 models cannot be loaded: {broken}, /no/such"
    ]
    verdicts = [line.split()[1] for line in ended.out.splitlines() if line.startswith("  loads")]
    assert verdicts == ["no:", "no:", "yes"]
    assert "'bert'" in ended.out


def test_json_has_everything_that_the_list_has(capsys):
    ended = call(capsys, "inspect", str(BASE), "/no/such", "--json")
    good, bad = json.loads(ended.out)
    assert ended.code == 2
    assert (good["model"], good["loads"], good["layers"], good["width"]) == (str(BASE), True, 3, 32)
    assert (bad["model"], bad["loads"], bad["layers"]) == ("/no/such", False, None)
    assert "\n" not in bad["reason"] and good.keys() == bad.keys()


def test_arguments_without_a_name_are_flags():
    """The first ones are; a list takes all of them."""

    def named(command: str, *arguments: str) -> list[str]:
        module = entry.load(command)
        values = module.define_flags()
        return entry._named_positional(
            list(arguments), [values[name] for name in module.POSITIONAL]
        )

    assert named("inspect", "a", "b", "--json", "c") == ["--models=a,b", "--json", "c"]
    assert named("status", "a", "b") == ["--workdir=a", "b"]
    assert named("status", "--workdir=a") == ["--workdir=a"]
    assert named("contrast", "a", "b", "--x") == ["--result=a", "--measure=b", "--x"]
    assert named("contrast", "a", "--measure=b") == ["--result=a", "--measure=b"]


def test_inspect_may_stay_offline():
    assert "local_files_only" in flags_of("inspect")
