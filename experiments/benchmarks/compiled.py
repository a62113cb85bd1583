"""What a compiled program makes one device do: products and collectives, from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once; here it counts as often as it runs. For
programs of the CPU, whose collectives are not split into a start and an end.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

from speechsim_jax.sharding import collectives

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(?.*?) ([\w\-]+)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(body|condition|calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_DOT = re.compile(r" dot\(%?([\w.\-]+), .*?lhs_contracting_dims=\{([\d,]*)\}")
_CONVOLUTION = re.compile(r" convolution\(%?[\w.\-]+, %?([\w.\-]+)\).*dim_labels=\w+_(\w+)->")


class Work(NamedTuple):
    """Of one device: operations of products and convolutions; bytes received, by collective."""

    flops: int
    received: dict[str, int]


def work(program: str) -> Work:
    """From `compiled.as_text()`; raises ValueError for a loop whose length is not known."""
    lines, entry = _computations(program)
    shapes = {
        found[1]: _shapes(found[2])
        for body in lines.values()
        for found in map(_RESULT.match, body)
        if found
    }
    flops, received = 0, defaultdict(int)

    def walk(name: str, times: int) -> None:
        nonlocal flops
        for line in lines[name]:
            if dot := _DOT.search(line):
                (_, left), (_, result) = shapes[dot[1]][0], _of(line)[0]
                inner = math.prod(left[int(axis)] for axis in dot[2].split(",") if axis)
                flops += times * 2 * math.prod(result) * inner
            if found := _CONVOLUTION.search(line):
                (_, kernel), (_, result) = shapes[found[1]][0], _of(line)[0]
                inner = math.prod(kernel) // kernel[found[2].index("o")]
                flops += times * 2 * math.prod(result) * inner
            for kind, groups in collectives(line):
                received[kind] += times * _received(kind, _of(line), groups)
            for role, called in _CALLED.findall(line):
                walk(called, times * (_trips(line) if role in ("body", "condition") else 1))

    walk(entry, 1)
    return Work(flops, dict(received))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and which one the program is."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _of(line: str) -> list[tuple[str, tuple[int, ...]]]:
    found = _RESULT.match(line)
    assert found is not None, line
    return _shapes(found[2])


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Types and sizes, of which a tuple has several."""
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _SHAPE.findall(text)
    ]


def _trips(line: str) -> int:
    found = _TRIPS.search(line)
    if found is None:
        raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
    return int(found[1])


def _received(
    kind: str, result: list[tuple[str, tuple[int, ...]]], groups: tuple[tuple[int, ...], ...]
) -> int:
    """Bytes from other devices: what is gathered without one's own part, else all there is."""
    total = sum(_bytes(dtype) * math.prod(sizes) for dtype, sizes in result)
    if kind == "all-gather" and groups:
        total -= total // len(groups[0])
    return total


def _bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8
