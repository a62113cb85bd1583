"""The report: one HTML file with a result's maps, curves, matches and provenance.

It needs no network and no other file. Scores are stored as float32, correlations in two bytes; of
neurons and canonical correlations the page has a selection, the result's own file has all of them.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

from plotly.offline import get_plotlyjs

from speechsim_jax.audio.alignments import Segments
from speechsim_jax.audio.open_corpus import AudioInput, open_corpus
from speechsim_jax.report import markup
from speechsim_jax.report.concepts import concepts_section
from speechsim_jax.report.content import page_data
from speechsim_jax.report.exemplars import exemplars_section
from speechsim_jax.report.packed import PackedArrays, encode
from speechsim_jax.report.still_map import still_map
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime.atomic_write import AnyPath, write_text

__all__ = ["write_report"]

# Of a page with sound, and some room for tables of exemplars.
_MOST_BYTES = 8_000_000 - 500_000
# In the order in which they are run.
_SCRIPTS = (
    "numbers", "plots", "tables", "map", "pair", "contrast", "depth", "neurons", "link", "main",
)  # fmt: skip


def write_report(
    result: SimilarityResult,
    path: str | os.PathLike[str],
    *,
    audio: AudioInput | None = None,
    neurons: Sequence[str] = (),
    segments: Mapping[str, Segments] | None = None,
) -> AnyPath:
    """Write one HTML page with interactive maps, curves, matches and the provenance.

    It opens from disk, without a network; where the result lacks something, the page states it. A
    reader of the file sees the old page or the new one, never half.

    >>> ss.write_report(result, "report.html").name
    'report.html'

    Args:
        result: what the page shows.
        path: the file; its folder is made if needed.
        audio: that the result is of; with it, exemplars of neurons can be heard. Their snippets
            are a part of the page, which they leave below 8 MB.
        neurons: whose exemplars are shown besides those of the best-matched, as
            "MODEL/LAYER:NEURON".
        segments: of each utterance, such as phones; those of a snippet are shown with it.

    Returns:
        The path.

    Raises:
        UserError: no such audio or neuron; neurons of a result without exemplars.
    """
    return write_text(path, report_page(result, audio, neurons, segments))


def report_page(
    result: SimilarityResult,
    audio: AudioInput | None = None,
    neurons: Sequence[str] = (),
    segments: Mapping[str, Segments] | None = None,
) -> str:
    """The page as HTML; arguments and errors as in `write_report`."""
    arrays = PackedArrays()
    data = page_data(result, arrays)
    still, still_caption = still_map(result)
    parts = dict(
        title=markup.html_text(markup.headline(result)),
        notes=markup.html_text(" · ".join(result.notes())),
        warning=markup.warning(result.few_frames_warning()),
        summary=markup.summary_section(result),
        still=still,
        still_caption=still_caption,
        style=_file("page.css"),
        models=markup.models_table(result),
        audio=markup.audio_list(result),
        provenance=markup.provenance(result),
        measures=markup.measures_table(result),
        representations=markup.facts_section(result),
        errors=markup.errors_note(result),
        uncertainty=markup.uncertainty_section(result),
        reading=markup.reading_table(result),
        concepts=concepts_section(result),
        skipped=markup.skipped_table(result),
        plotly=_plotly(),
        data=arrays.encode(data),
        script="\n".join(_file(f"{name}.js") for name in _SCRIPTS),
    )
    room = _MOST_BYTES - sum(len(part.encode()) for part in parts.values())
    corpus = None if audio is None else open_corpus(audio)
    links = {"concepts": "Concepts", "exemplars": "Exemplars"}
    parts["exemplars"] = exemplars_section(result, room, corpus, neurons, segments)
    further = " ".join(f'<a href="#{k}">{name}</a>' for k, name in links.items() if parts[k])
    return Template(_file("page.html")).substitute(parts, further_links=further)


@functools.cache
def _plotly() -> str:
    return encode(get_plotlyjs().encode())


def _file(name: str) -> str:
    return (
        resources.files("speechsim_jax.report").joinpath("page", name).read_text(encoding="utf-8")
    )
