"""Shards: which share of the audio a process reads, where several share nothing but a folder."""

import dataclasses
import functools
import heapq
import os
import re
from collections.abc import Mapping, Sequence

from speechsim_jax.errors import UserError

_EXPECTED = (
    "expected K/N with K from 1 to N; auto in a SLURM or LSF array job; auto/N in a PBS array job "
    "from 1 to N; or pod"
)
_PBS = ("PBS_ARRAY_INDEX", "PBS_ARRAYID")


@dataclasses.dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` shares, from 1 on."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(1, 1)
"""All of it."""


def shard_from(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard that a setting names.

    Args:
      text: "K/N"; "auto", from the variables of a SLURM or LSF array job; "auto/N", from those of
        a PBS array job with indices 1 to N; "pod", from the processes that
        `jax.distributed.initialize` finds; None for all of it.
      environment: variables of the process.

    Raises:
      UserError: another form, or the variables do not say which shard this is.
    """
    if text is None:
        return WHOLE
    if text == "pod":
        return _of_pod()
    if text == "auto":
        return _checked(_of_array(environment), text)
    first, _, count = text.partition("/")
    if not count.isdecimal():
        raise UserError(f"shard is {text!r}; {_EXPECTED}")
    if first == "auto":
        index = next((environment[name] for name in _PBS if name in environment), "")
        if not index.isdecimal():
            raise UserError(f"shard is {text!r}, but {_PBS[0]} is not set; {_EXPECTED}")
        return _checked((int(index), int(count)), text)
    if not first.isdecimal():
        raise UserError(f"shard is {text!r}; {_EXPECTED}")
    return _checked((int(first), int(count)), text)


def _checked(numbers: tuple[int, int], text: str) -> Shard:
    index, count = numbers
    if not 1 <= index <= count:
        raise UserError(f"shard is {text!r}: there is no shard {index} of {count}; {_EXPECTED}")
    return Shard(index, count)


def _of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Index and count from the variables of SLURM (indices evenly spaced) or LSF (from 1)."""

    def number(name: str, default: int | None = None) -> int:
        value = environment.get(name, "" if default is None else str(default))
        if not re.fullmatch(r"\d+", value):
            raise UserError(f"shard is 'auto', but {name} is {value!r}; {_EXPECTED}")
        return int(value)

    if "SLURM_ARRAY_TASK_ID" in environment:
        start, step = number("SLURM_ARRAY_TASK_MIN"), number("SLURM_ARRAY_TASK_STEP", 1)
        distance = number("SLURM_ARRAY_TASK_ID") - start
        count = number("SLURM_ARRAY_TASK_COUNT")
        if distance % step or start + step * (count - 1) != number("SLURM_ARRAY_TASK_MAX"):
            raise UserError(
                "shard is 'auto', but the indices of the array job are not evenly spaced; "
                "give --shard=K/N"
            )
        return _several(distance // step + 1, count)
    if environment.get("LSB_JOBINDEX", "0") != "0":
        return _several(number("LSB_JOBINDEX"), number("LSB_JOBINDEX_END"))
    if any(name in environment for name in _PBS):
        raise UserError("shard is 'auto', but PBS does not say how many there are; give auto/N")
    raise UserError(f"shard is 'auto', but this is not an array job; {_EXPECTED}")


def _several(index: int, count: int) -> tuple[int, int]:
    if count == 1:
        raise UserError(
            "shard is 'auto', but this is an array of one task, which does not say how many shards "
            "the job has; give --shard=K/N"
        )
    return index, count


@functools.cache
def _of_pod() -> Shard:
    """The shard of this process among those that `jax.distributed` brings together.

    They meet to be numbered and part again: each uses its own devices only, and needs no other to
    be alive.
    """
    import jax

    ours = not jax.distributed.is_initialized()
    if ours:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"shard is 'pod', but the processes did not meet: {reason}") from error
    shard = Shard(jax.process_index() + 1, jax.process_count())
    if ours:
        jax.distributed.shutdown()
    return shard


def shares(weights: Sequence[float | int], count: int) -> list[list[int]]:
    """Positions of the items of each of `count` parts, in their order, about equally heavy.

    The heaviest item first, always to the lightest part (Graham 1969, "Bounds on multiprocessing
    timing anomalies": at most 4/3 of the optimum).

    Args:
      weights: seconds of audio; one of 0 is unknown and counts as the mean.
      count: number of parts.
    """
    known = [weight for weight in weights if weight]
    mean = sum(known) / len(known) if known else 1.0
    filled = [weight or mean for weight in weights]
    parts: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0.0, part) for part in range(count)]
    for i in sorted(range(len(filled)), key=lambda i: (-filled[i], i)):
        load, part = lightest[0]
        parts[part].append(i)
        heapq.heapreplace(lightest, (load + filled[i], part))
    return [sorted(part) for part in parts]
