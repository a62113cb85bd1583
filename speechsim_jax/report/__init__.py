"""The report: one HTML file with a result's maps, curves, matches and provenance.

It needs no network and no other file. Scores are kept as float32, correlations in two bytes; of
neurons and canonical correlations there are as many as fit, all of them are in the result's file.
"""

import functools
import os
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from speechsim_jax.report import markup
from speechsim_jax.report.content import page_data
from speechsim_jax.report.packed import Packed, encoded
from speechsim_jax.results.netcdf import write_text
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import few_frames

__all__ = ["write_report"]

# In the order in which they are run.
_SCRIPTS = ("numbers", "plots", "tables", "map", "pair", "depth", "neurons", "main")


def write_report(result: SimilarityResult, path: str | os.PathLike[str]) -> Path:
    """Write the page; a reader sees the old file or the new one, never half."""
    return write_text(Path(path), report_page(result))


def report_page(result: SimilarityResult) -> str:
    """The page as HTML."""
    packed = Packed()
    facts = page_data(result, packed)
    return Template(_file("page.html")).substitute(
        title=escape(markup.headline(result)),
        notes=escape(" · ".join(result.notes())),
        warning=markup.warning(few_frames(result)),
        style=_file("page.css"),
        models=markup.models_table(result),
        audio=markup.audio_list(result),
        provenance=markup.provenance(result),
        measures=markup.measures_table(result),
        representations=markup.facts_section(result),
        skipped=markup.skipped_table(result),
        plotly=_plotly(),
        data=packed.encoded(facts),
        script="\n".join(_file(f"{name}.js") for name in _SCRIPTS),
    )


@functools.cache
def _plotly() -> str:
    return encoded(get_plotlyjs().encode())


def _file(name: str) -> str:
    return (
        resources.files("speechsim_jax.report").joinpath("page", name).read_text(encoding="utf-8")
    )
