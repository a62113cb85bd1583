"""What a compiled program makes one device do: products and collectives, from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once; here it counts as often as it runs. For
programs of the CPU, whose collectives are not split into a start and an end.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

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


_COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(?:-start)?\((.*)"
)


_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")


_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


class Collective(NamedTuple):
    """What devices do together: `groups` of their places on the mesh, row by row."""

    kind: str
    groups: tuple[tuple[int, ...], ...]


def collectives(program: str) -> set[Collective]:
    """The collectives of a compiled program, from its HLO text (`compiled.as_text()`)."""
    found = (_COLLECTIVE.search(line) for line in program.splitlines())
    return {Collective(match[1], _groups(match[2])) for match in found if match}


def _groups(text: str) -> tuple[tuple[int, ...], ...]:
    """`{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`: the numbers of that shape, turned, regrouped;
    `mesh['a'=2,'b'=2] {'b'}`: along the axes named.
    """
    if listed := _LISTED.search(text):
        groups = re.findall(r"\{([\d,]*)\}", listed[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    if counted := _COUNTED.search(text):
        shape, source, order = (_numbers(part or "") for part in counted.groups())
    elif named := _NAMED.search(text):
        axes = re.findall(r"'(\w+)'", named[1])
        source = _numbers(re.sub(r"'\w+'=", "", named[1]))
        along = [axes.index(axis) for axis in re.findall(r"'(\w+)'", named[2])]
        order = [axis for axis in range(len(axes)) if axis not in along] + along
        shape = [-1, int(np.prod([source[axis] for axis in along]))]
    else:
        return ()
    ids = np.arange(np.prod(source)).reshape(source)
    ids = ids.transpose(order or range(ids.ndim)).reshape(shape)
    return tuple(map(tuple, ids.tolist()))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
