"""Which share of the audio a process reads."""

import random

import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.shards import WHOLE, Shard, shard_from, shares

SLURM = {
    "SLURM_ARRAY_TASK_ID": "6",
    "SLURM_ARRAY_TASK_MIN": "2",
    "SLURM_ARRAY_TASK_MAX": "8",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, SLURM, WHOLE),
        ("1/1", {}, WHOLE),
        ("3/4", {}, Shard(3, 4)),
        ("auto", SLURM, Shard(3, 4)),
        ("auto", {k: v for k, v in SLURM.items() if k != "SLURM_ARRAY_TASK_STEP"}
         | {"SLURM_ARRAY_TASK_MAX": "5", "SLURM_ARRAY_TASK_ID": "5"}, Shard(4, 4)),
        ("auto", {"LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "9"}, Shard(2, 9)),
        ("auto/8", {"PBS_ARRAY_INDEX": "8"}, Shard(8, 8)),
        ("auto/8", {"PBS_ARRAYID": "1"}, Shard(1, 8)),
    ],
)  # fmt: skip
def test_shard_of(text, environment, expected):
    assert shard_from(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/4", {}, "there is no shard 0 of 4"),
        ("5/4", {}, "there is no shard 5 of 4"),
        ("four", {}, "expected K/N"),
        ("1/", {}, "expected K/N"),
        ("-1/4", {}, "expected K/N"),
        ("auto", {}, "not an array job"),
        ("auto", {"LSB_JOBINDEX": "0"}, "not an array job"),
        ("auto", {"PBS_ARRAY_INDEX": "1"}, "give auto/N"),
        ("auto/4", {}, "PBS_ARRAY_INDEX is not set"),
        ("auto/4", {"PBS_ARRAY_INDEX": "0"}, "there is no shard 0 of 4"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MAX": "9"}, "not evenly spaced"),
        (
            "auto",
            SLURM
            | dict.fromkeys(("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"), "6")
            | {"SLURM_ARRAY_TASK_COUNT": "1"},
            "an array of one task",
        ),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "5"}, "not evenly spaced"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_COUNT": "many"}, "SLURM_ARRAY_TASK_COUNT is 'many'"),
    ],
)
def test_what_names_no_shard_is_refused(text, environment, message):
    with pytest.raises(UserError, match=message):
        shard_from(text, environment)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_disjoint_complete_and_about_equally_long(count):
    rng = random.Random(count)
    seconds = [rng.choice([0.0, rng.uniform(1, 30)]) for _ in range(50)]
    parts = shares(seconds, count)
    assert sorted(k for part in parts for k in part) == list(range(50))
    assert all(part == sorted(part) for part in parts)
    known = [s for s in seconds if s]
    mean = sum(known) / len(known)
    loads = [sum(seconds[k] or mean for k in part) for part in parts]
    assert max(loads) <= 4 / 3 * max(sum(loads) / count, max(seconds))
    assert shares(seconds, count) == parts


def test_more_shards_than_utterances():
    assert sorted(shares([3.0, 2.0], 4)) == [[], [], [0], [1]]
