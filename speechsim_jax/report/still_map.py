"""The first map as a picture: shown at once, until the page's scripts have drawn the other."""

import io
from base64 import b64encode
from itertools import groupby

import matplotlib.image
import numpy as np

from speechsim_jax.figures.style import SCORES, colour_limits
from speechsim_jax.figures.text_layout import short_names, text_width
from speechsim_jax.report.markup import html_text
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import letter

# As map.js draws it, in pixels.
_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 580, 68, 8, 74, 68
_TICK_STEPS = (1, 2, 3, 4, 6, 12, 24, 48)


def still_map(result: SimilarityResult) -> tuple[str, str]:
    """The map of the first measure as SVG, and its caption as HTML.

    Cells are one image, a pixel each, which the browser enlarges; undefined ones are crossed.

    Args:
        result: what the page shows.
    """
    if not result.measures:
        return "", ""
    name = result.measures[0]
    matrix, definition = result.matrix(name), result.definition(name)
    values = np.asarray(matrix.values, dtype=np.float64)
    low, high = colour_limits(values, definition.get("range"))
    models = [str(model) for model in matrix[f"{matrix.dims[0]}_model"].values]
    layers = [int(layer) for layer in matrix[f"{matrix.dims[0]}_layer"].values]
    cell = _SIDE / len(values)
    shades = SCORES((values - low) / (high - low), bytes=True)
    shades[~np.isfinite(values), 3] = 0
    blocks = _blocks(models)
    names = _block_names(result, blocks, cell)
    parts = [
        _image(shades, _LEFT, _TOP, _SIDE, _SIDE),
        _crosses(values, cell),
        *_separators(blocks, cell),
        *_labels(blocks, names, cell),
        *_ticks(blocks, layers, cell),
        *_bar(name, low, high),
    ]
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    label = f"{name} of {len(values)} by {len(values)} layers"
    svg = (
        f'<svg id="still" viewBox="0 0 {width} {height}" style="max-width: {width}px" role="img" '
        f'aria-label="{html_text(label)}">{"".join(parts)}</svg>'
    )
    summary = definition.get("summary")
    caption = f"<b>{html_text(name)}</b> {html_text(summary or '')}{'. ' if summary else ''}"
    return svg, caption


def _blocks(models: list[str]) -> list[tuple[str, int, int]]:
    """Runs of one model: its name, start and stop."""
    blocks, start = [], 0
    for model, run in groupby(models):
        stop = start + len(list(run))
        blocks.append((model, start, stop))
        start = stop
    return blocks


def _block_names(
    result: SimilarityResult, blocks: list[tuple[str, int, int]], cell: int | float
) -> list[str]:
    """The models' names if all of them have room, else their letters."""
    short = dict(zip(result.models, short_names(result.models), strict=True))
    names = [html_text(short[model]) for model, _, _ in blocks]
    rooms = [cell * (stop - start) - 6 for _, start, stop in blocks]
    # Fonts differ: a tenth more than the width in that of figures.
    fits = all(1.1 * text_width(n, 11) <= room for n, room in zip(names, rooms, strict=True))
    return names if fits else [letter(result.models.index(model)) for model, _, _ in blocks]


def _image(
    shades: np.ndarray, x: int | float, y: int | float, width: int | float, height: int | float
) -> str:
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, shades, format="png", metadata={"Software": ""})
    data = b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{data}"></image>'
    )


def _crosses(values: np.ndarray, cell: int | float) -> str:
    """A path with a cross in every cell without a score; "" if all have one."""
    arm = min(0.3 * cell, 4)
    marks = [
        f"M{x - arm:.1f} {y - arm:.1f}l{2 * arm:.1f} {2 * arm:.1f}m0 {-2 * arm:.1f}"
        f"l{-2 * arm:.1f} {2 * arm:.1f}"
        for row, column in np.argwhere(~np.isfinite(values))
        for x, y in [(_LEFT + cell * (column + 0.5), _TOP + cell * (row + 0.5))]
    ]
    return f'<path class="cross" d="{"".join(marks)}"></path>' if marks else ""


def _separators(blocks: list[tuple[str, int, int]], cell: int | float) -> list[str]:
    if len(blocks) > 12 and len(blocks) == blocks[-1][2]:
        return []  # models of one layer: a grid would hide the cells
    lines = []
    for _, start, _ in blocks[1:]:
        x, y = _LEFT + cell * start, _TOP + cell * start
        lines.append(f"M{x:.1f} {_TOP}v{_SIDE}M{_LEFT} {y:.1f}h{_SIDE}")
    return [f'<path class="rule" d="{"".join(lines)}"></path>'] if lines else []


def _labels(blocks: list[tuple[str, int, int]], names: list[str], cell: int | float) -> list[str]:
    """The models at their rows and columns, and what rows and columns are."""
    texts = []
    for (_, start, stop), name in zip(blocks, names, strict=True):
        middle = cell * (start + stop) / 2
        texts.append(_text(_LEFT + middle, _TOP + _SIDE + 32, name, "middle"))
        texts.append(_text(_LEFT - 28, _TOP + middle, name, "middle", upright=True))
    kind = " (layer)" if len(blocks) < blocks[-1][2] else ""
    texts.append(_text(_LEFT + _SIDE / 2, _TOP + _SIDE + 62, f"column y{kind}", "middle", "quiet"))
    texts.append(_text(12, _TOP + _SIDE / 2, f"row x{kind}", "middle", "quiet", upright=True))
    return texts


def _ticks(blocks: list[tuple[str, int, int]], layers: list[int], cell: int | float) -> list[str]:
    """Numbers of layers: every block's first, and multiples of a step for which there is room."""
    if len(blocks) == len(layers):
        return []
    step = next((step for step in _TICK_STEPS if step * cell >= 18), _TICK_STEPS[-1])
    shown: list[int] = []
    starts = [start for _, start, _ in blocks]
    for place in (*starts, *(k for k, layer in enumerate(layers) if layer % step == 0)):
        if all(abs(place - other) * cell >= 14 for other in shown):
            shown.append(place)
    texts = []
    for place in shown:
        middle = cell * (place + 0.5)
        texts.append(_text(_LEFT + middle, _TOP + _SIDE + 15, str(layers[place]), "middle"))
        texts.append(_text(_LEFT - 6, _TOP + middle + 4, str(layers[place]), "end"))
    return texts


def _bar(name: str, low: int | float, high: int | float) -> list[str]:
    """The colour bar with its ends and the measure's name."""
    shades = SCORES(np.linspace(1, 0, 64)[:, None], bytes=True)
    x = _LEFT + _SIDE + 10
    ends = [(_TOP + 8, high), (_TOP + _SIDE / 2 + 4, (low + high) / 2), (_TOP + _SIDE, low)]
    return [
        _image(shades, x, _TOP, 10, _SIDE),
        *(_text(x + 14, y, f"{end:.3g}", "start") for y, end in ends),
        _text(x + 58, _TOP + _SIDE / 2, html_text(name), "middle", upright=True),
    ]


def _text(
    x: int | float, y: int | float, text: str, anchor: str, kind: str = "", upright: bool = False
) -> str:
    """A line of text (HTML), rotated if it is upright."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upright else ""
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}{turn}>{text}</text>'
