"""The work of one device in a compiled program, read from its HLO text: products and collectives.

XLA's `cost_analysis` counts the body of a loop once; here it counts as often as it runs, and of a
conditional the last branch. For programs of the CPU, whose collectives are not split into a start
and an end.
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
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_DOT = re.compile(r" dot\(%?([\w.\-]+), .*?lhs_contracting_dims=\{([\d,]*)\}")
_CONVOLUTION = re.compile(r" convolution\(%?[\w.\-]+, %?([\w.\-]+)\).*dim_labels=\w+_(\w+)->")

_COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(?:-start)?\((.*)"
)
# The three forms of `replica_groups`, see `_groups`.
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


class Work(NamedTuple):
    """The work of one device.

    Attributes:
        flops: Operations of matrix products and convolutions.
        received: Bytes from other devices, by kind of collective.
    """

    flops: int
    received: dict[str, int]


def work(program: str) -> Work:
    """The work of a program.

    Args:
        program: HLO text, from `compiled.as_text()`.

    Raises:
        ValueError: a loop of unknown length.
    """
    lines, entry = _computations(program)
    shapes = {
        match[1]: _shapes(match[2])
        for body in lines.values()
        for match in map(_RESULT.match, body)
        if match
    }
    flops, received = 0, defaultdict(int)

    def walk(name: str, times: int) -> None:
        nonlocal flops
        for line in lines[name]:
            if dot := _DOT.search(line):
                (_, left), (_, result) = shapes[dot[1]][0], _result_shapes(line)[0]
                inner = math.prod(left[int(axis)] for axis in dot[2].split(",") if axis)
                flops += times * 2 * math.prod(result) * inner
            if convolution := _CONVOLUTION.search(line):
                (_, kernel), (_, result) = shapes[convolution[1]][0], _result_shapes(line)[0]
                inner = math.prod(kernel) // kernel[convolution[2].index("o")]
                flops += times * 2 * math.prod(result) * inner
            for kind, groups in collectives(line):
                received[kind] += times * _received(kind, _result_shapes(line), groups)
            # Of branches the last: of the update, that of a full buffer.
            if branches := _BRANCHES.search(line):
                walk(branches[1].split(",")[-1].strip().lstrip("%"), times)
            for role, called in _CALLED.findall(line):
                walk(called, times * (_trips(line) if role in ("body", "condition") else 1))

    walk(entry, 1)
    return Work(flops, dict(received))


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry computation."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            lines[name] = []
            entry = name if head[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _result_shapes(line: str) -> list[tuple[str, tuple[int, ...]]]:
    match = _RESULT.match(line)
    assert match is not None, line
    return _shapes(match[2])


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The element type and sizes of each array; a tuple has several."""
    return [
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in _SHAPE.findall(text)
    ]


def _trips(line: str) -> int:
    match = _TRIPS.search(line)
    if match is None:
        raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
    return int(match[1])


def _received(
    kind: str, result: list[tuple[str, tuple[int, ...]]], groups: tuple[tuple[int, ...], ...]
) -> int:
    """Bytes from other devices: the result, of an all-gather without the device's own part."""
    total = sum(_bytes(dtype) * math.prod(sizes) for dtype, sizes in result)
    if kind == "all-gather" and groups:
        total -= total // len(groups[0])
    return total


def _bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
        kind: Its HLO name, e.g. all-reduce.
        groups: The devices that exchange data, by their row-major position on the mesh.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]


def collectives(program: str) -> set[Collective]:
    """The collectives of a program, from its HLO text (`compiled.as_text()`)."""
    matches = (_COLLECTIVE.search(line) for line in program.splitlines())
    return {Collective(match[1], _groups(match[2])) for match in matches if match}


def _groups(text: str) -> tuple[tuple[int, ...], ...]:
    """The groups in any of HLO's three forms.

    `{{0,1},{2,3}}` lists them; `[2,2]<=[2,2]T(1,0)` reshapes the transposed array of all numbers;
    `mesh['a'=2,'b'=2] {'b'}` groups along the named axes.
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
