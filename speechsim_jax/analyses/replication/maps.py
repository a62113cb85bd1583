"""Figures of a replication: the paper's under their names, and maps next to published ones."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses.replication import members, published_maps
from speechsim_jax.analyses.replication.claims import Roles

# Measures of the maps of fine-tuned against pretrained models.
_FINETUNED_MEASURES = ("maxcorr", "linreg", "svcca", "pwcca", "lincka")

_log = logging.getLogger(__name__)


def draw(
    full_results: Sequence[ss.SimilarityResult],
    roles: Roles,
    folder: Path,
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
) -> list[Path]:
    """Draw the paper's figures under its names: maps of the pretrained models, and of fine-tuning.

    Args:
        full_results: Results of all the audio.
        roles: Roles of the models.
        folder: Folder to write into; what it holds is deleted.
        formats: File formats.
        style: Style of the maps, as in `figures.heatmap`.

    Returns:
        Paths of the figures.
    """
    shutil.rmtree(folder, ignore_errors=True)
    main = full_results[0].select(list(roles.paradigms))
    main = main.select(figures.published_order(main))
    drawn = {
        name: figures.plot(main, name, style=style) for name in main.measures if name != "rotcorr"
    }
    families = [_family(full_results, before) for _, before in roles.finetuned]
    for (tuned, before), family in zip(roles.finetuned, families):
        result = next(r for r in full_results if {tuned, before} <= set(r.models))
        stem = f"{family}_finetuned" + (f"_{tuned}" if families.count(family) > 1 else "")
        for name in _FINETUNED_MEASURES:
            figure = figures.finetuned(result, name, tuned, before, style=style)
            drawn[f"{stem}_{name}".replace("/", "_")] = figure
    return figures.write_figures(drawn, folder, formats)


def _family(full_results: Sequence[ss.SimilarityResult], model: str) -> str:
    models = next(r.attributes["models"] for r in full_results if model in r.models)
    return models[model]["model_type"]


# --- published maps ---


def load_published(source: str | None) -> published_maps.PublishedMaps | None:
    """The published maps of a file or of the package ("paper"); None for None, "" and "none"."""
    if source in (None, "", "none"):
        return None
    return published_maps.load(published_maps.BUNDLED if source == "paper" else str(source))


def published_roles(maps: published_maps.PublishedMaps) -> Roles:
    """Roles of the published models."""
    families = {model: model.rpartition("-")[0] for model in maps.models}
    tuned = dict.fromkeys(family for family, _ in maps.finetuned)
    return Roles(
        paradigms={model: members.paradigm(family) for model, family in families.items()},
        sizes={m: (sum(n.model == m for n in maps.representations),) for m in maps.models},
        # Not in the maps; named so that every claim has tests, of which those with scores are used.
        untrained={m: f"untrained {m}" for m in maps.models},
        finetuned=tuple((f"{family}-large-ft", f"{family}-large") for family in tuned),
    )


def align_with_published(
    maps: published_maps.PublishedMaps,
    full_results: Sequence[ss.SimilarityResult],
    roles: Roles,
    published_as: Mapping[str, str],
) -> list[published_maps.AlignedMap]:
    """Align the run's maps with the published ones, as far as they correspond.

    Args:
        maps: Published maps.
        full_results: Results of all the audio.
        roles: Roles of the models.
        published_as: Model of the run by published model; if empty, matched by name.
    """
    names = published_maps.match_models(maps.models, list(roles.paradigms), published_as)
    aligned = published_maps.align(full_results[0], maps, names) if names else []
    for tuned, before in roles.finetuned:
        result = next(r for r in full_results if {tuned, before} <= set(r.models))
        family = _family(full_results, before)
        aligned += published_maps.align_finetuned(result, maps, family, (tuned, before))
    if not aligned:
        _log.warning("no model of this run is published under its name; see --published_as")
    return aligned


def draw_side_by_side(
    aligned: Sequence[published_maps.AlignedMap], folder: Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw published_NAME.<format> of every map, in its first orientation, and return the paths."""
    drawn: dict[str, Figure] = {}
    for one_map in aligned:
        if f"published_{one_map.name}" not in drawn:
            drawn[f"published_{one_map.name}"] = published_maps.side_by_side(one_map)
    return figures.write_figures(drawn, folder, formats)
