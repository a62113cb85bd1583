"""The section of concepts: what layers and neurons encode of tracks, as figures and tables."""

import base64
import io

import numpy as np
from matplotlib.figure import Figure

from speechsim_jax.errors import UserError
from speechsim_jax.figures.concepts import draw
from speechsim_jax.report.markup import html_text, missing, table
from speechsim_jax.results.concepts import (
    CONTENT,
    Agreement,
    Concepts,
    neuron_rows,
    read_concepts,
)
from speechsim_jax.results.model_scores import NORMAL_HALF
from speechsim_jax.results.result import SimilarityResult

MOST_CLASSES = 12
"""Classes of a label in a table of neurons, the most frequent ones."""

# Figures are drawn for a column of print; on a screen their text is as large as the page's.
_SCREEN_DPI = 130

_INTRODUCTION = (
    "Content: the mean multiple correlation of a track's columns (the indicators of phones, the "
    "bands of a spectrum) with all neurons of a layer. Localisation: how much of that the best "
    "single neuron has, against layers in rotated axes, where single neurons mean nothing. "
    "Agreement: whether neurons that match best encode the same class."
)


def concepts_section(result: SimilarityResult) -> str:
    """The section as HTML; "" for a result without tracks.

    Args:
        result: what the page shows.
    """
    if not result.tracks:
        return ""
    try:
        concepts = read_concepts(result)
    except UserError as error:
        return _section(missing(f"Nothing is shown: {error}."))
    drawn = draw(concepts, (), result.interval_key(CONTENT))
    images = "".join(_image(name, figure) for name, figure in drawn.items())
    figures = f'<div class="drawn">{images}</div>'
    parts = [f'<p class="quiet">{html_text(_INTRODUCTION)}</p>', figures]
    if concepts.agreement:
        parts += ["<h3>Agreement of best-matched neurons</h3>", _agreement_table(concepts)]
    parts += [_neurons(result, concepts, label) for label in concepts.labels]
    return _section("".join(parts))


def _section(content: str) -> str:
    return f'<section id="concepts"><h2>What layers and neurons encode</h2>{content}</section>'


def _image(name: str, figure: Figure) -> str:
    """A figure as an SVG image, in which nothing can run."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    title = html_text(name.replace("_", " "))
    width = round(_SCREEN_DPI * figure.get_figwidth())
    return f'<img width="{width}" alt="{title}" src="data:image/svg+xml;base64,{data}">'


def _agreement_table(concepts: Concepts) -> str:
    def mean(values: np.ndarray) -> str:
        known = values[np.isfinite(values)]
        return f"{known.mean():.3f}" if known.size else ""

    def row(found: Agreement) -> list[str]:
        half = mean(NORMAL_HALF * found.kappa_error)
        kappa = mean(found.kappa) + (f" ± {half}" if half else "")
        cells = [found.track, found.x, found.y, mean(found.observed), mean(found.chance), kappa]
        return list(map(html_text, cells))

    head = ["label", "x", "y", "agreement", "chance", "kappa ± half its 95 % interval"]
    return table(head, [row(found) for found in concepts.agreement], numbers_from=3)


def _neurons(result: SimilarityResult, concepts: Concepts, label: str) -> str:
    """The neurons of the most frequent classes, in the best layer of each model."""
    content = {curve.model: curve for curve in concepts.content if curve.track == label}
    best = {m: int(c.layers[c.best]) for m, c in content.items() if c.best is not None}
    rows = []
    for model, layer, track, class_, neuron, *numbers in neuron_rows(result, concepts.models):
        if track == label and layer == best.get(model):
            shown = [f"{number:.3f}" for number in numbers]
            rows.append([model, str(layer), class_, str(neuron), *shown])
    of_model: dict[str, int] = {}
    kept = []
    for row in rows:
        of_model[row[0]] = of_model.get(row[0], 0) + 1
        if of_model[row[0]] <= MOST_CLASSES:
            kept.append(list(map(html_text, row)))
    head = [
        "model", "layer", label, "neuron", "correlation", "η²", "readability", "localisation",
        "rotated",
    ]  # fmt: skip
    return (
        f"<details><summary>Neurons that encode {html_text(label)} best, in each model's best layer"
        f"</summary>{table(head, kept, numbers_from=4)}</details>"
    )
