"""The report: one HTML file with a result's maps, curves, matches and provenance.

It needs no network and no other file. Scores are stored as float32, correlations in two bytes; of
neurons and canonical correlations the page has a selection, the result's own file has all of them.
"""

import functools
import os
from importlib import resources
from string import Template

from plotly.offline import get_plotlyjs

from speechsim_jax.report import markup
from speechsim_jax.report.content import page_data
from speechsim_jax.report.packed import PackedArrays, encode
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime.atomic_write import AnyPath, write_text

__all__ = ["write_report"]

# In the order in which they are run.
_SCRIPTS = ("numbers", "plots", "tables", "map", "pair", "contrast", "depth", "neurons", "main")


def write_report(result: SimilarityResult, path: str | os.PathLike[str]) -> AnyPath:
    """Write one HTML page with interactive maps, curves, matches and the provenance.

    It opens from disk, without a network; where the result lacks something, the page states it. A
    reader of the file sees the old page or the new one, never half.

    >>> ss.write_report(result, "report.html").name
    'report.html'

    Args:
        result: what the page shows.
        path: the file; its folder is made if needed.

    Returns:
        The path.
    """
    return write_text(path, report_page(result))


def report_page(result: SimilarityResult) -> str:
    """The page as HTML."""
    arrays = PackedArrays()
    data = page_data(result, arrays)
    return Template(_file("page.html")).substitute(
        title=markup.html_text(markup.headline(result)),
        notes=markup.html_text(" · ".join(result.notes())),
        warning=markup.warning(result.few_frames_warning()),
        style=_file("page.css"),
        models=markup.models_table(result),
        audio=markup.audio_list(result),
        provenance=markup.provenance(result),
        measures=markup.measures_table(result),
        representations=markup.facts_section(result),
        errors=markup.errors_note(result),
        uncertainty=markup.uncertainty_section(result),
        reading=markup.reading_table(result),
        skipped=markup.skipped_table(result),
        plotly=_plotly(),
        data=arrays.encode(data),
        script="\n".join(_file(f"{name}.js") for name in _SCRIPTS),
    )


@functools.cache
def _plotly() -> str:
    return encode(get_plotlyjs().encode())


def _file(name: str) -> str:
    return (
        resources.files("speechsim_jax.report").joinpath("page", name).read_text(encoding="utf-8")
    )
