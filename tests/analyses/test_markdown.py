"""Text from outside in Markdown: shown as it is."""

import re

import pytest

from speechsim_jax.analyses.markdown import literal
from speechsim_jax.commands import replicate
from tests.support.hostile import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_begins_markup(name: str) -> None:
    text = literal(name)
    assert text.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>|`*\[\]&~$]", text)


def test_plain_names_stay_as_they_are() -> None:
    for name in ("facebook/wav2vec2-base", "zoo:contrastive_s", "LibriSpeech dev-clean (part 1)"):
        assert literal(name) == name


def test_the_head_of_the_findings_shows_names() -> None:
    record = {
        "audio": NAMES[0], "minutes": 1, "utterances": 2, "speakers": 3, "frames": 4, "groups": 8,
        "seconds_of_groups": [1.0], "speakers_in_one_group": True, "models": {NAMES[7]: {}},
        "versions": {"speechsim_jax": "0", "jax": "0"}, "device": {"platform": "cpu"},
        "created": "now", "config": {"output": {"note": NAMES[5] + "\n# heading | " + NAMES[3]}},
    }  # fmt: skip
    lines = replicate._lines(record)
    assert all("\n" not in line for line in lines)
    assert not re.search(r"(?<!\\)[<|]", "".join(lines))
