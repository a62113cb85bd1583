"""What a replication draws: the paper's figures under its names, and maps beside published ones."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses.replication import members
from speechsim_jax.analyses.replication import published_maps as published
from speechsim_jax.analyses.replication.claims import Roles

# Of fine-tuned against pretrained models.
_OF_FINETUNING = ("maxcorr", "linreg", "svcca", "pwcca", "lincka")

_log = logging.getLogger(__name__)


def draw(
    wholes: Sequence[ss.SimilarityResult],
    roles: Roles,
    folder: Path,
    formats: Sequence[str] = ("png",),
    style: str = "labelled",
) -> list[Path]:
    """The paper's figures under its names: maps of the pretrained models, and of fine-tuning."""
    shutil.rmtree(folder, ignore_errors=True)
    main = wholes[0].select(list(roles.paradigms))
    main = main.select(figures.published_order(main))
    drawn = {
        name: figures.plot(main, name, style=style) for name in main.measures if name != "rotcorr"
    }
    families = [_family(wholes, before) for _, before in roles.finetuned]
    for (tuned, before), family in zip(roles.finetuned, families):
        result = next(whole for whole in wholes if {tuned, before} <= set(whole.models))
        stem = f"{family}_finetuned" + (f"_{tuned}" if families.count(family) > 1 else "")
        for name in _OF_FINETUNING:
            figure = figures.finetuned(result, name, tuned, before, style=style)
            drawn[f"{stem}_{name}".replace("/", "_")] = figure
    return figures.write_figures(drawn, folder, formats)


def _family(wholes: Sequence[ss.SimilarityResult], model: str) -> str:
    told = next(whole.attributes["models"] for whole in wholes if model in whole.models)
    return told[model]["model_type"]


# --- beside published maps ---


def published_maps(given: str | None) -> published.Published | None:
    """Those of a file, of the package ("paper"), or none."""
    if given in (None, "", "none"):
        return None
    return published.load(published.BUNDLED if given == "paper" else str(given))


def published_roles(maps: published.Published) -> Roles:
    """Who is who among the published models."""
    families = {model: model.rpartition("-")[0] for model in maps.models}
    tuned = dict.fromkeys(family for family, _ in maps.finetuned)
    return Roles(
        paradigms={model: members.paradigm(family) for model, family in families.items()},
        sizes={m: (sum(n.model == m for n in maps.representations),) for m in maps.models},
        untrained={m: f"untrained {m}" for m in maps.models},  # so that all values are looked for
        finetuned=tuple((f"{family}-large-ft", f"{family}-large") for family in tuned),
    )


def lay(
    maps: published.Published,
    wholes: Sequence[ss.SimilarityResult],
    roles: Roles,
    published_as: Mapping[str, str],
) -> list[published.Laid]:
    """The run's maps beside the published ones, as many as correspond."""
    names = published.matched(maps.models, list(roles.paradigms), published_as)
    laid = published.lay(wholes[0], maps, names) if names else []
    for tuned, before in roles.finetuned:
        result = next(whole for whole in wholes if {tuned, before} <= set(whole.models))
        laid += published.lay_finetuned(result, maps, _family(wholes, before), (tuned, before))
    if not laid:
        _log.warning("no model of this run is published under its name; see --published_as")
    return laid


def draw_beside(
    laid: Sequence[published.Laid], folder: Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """published_NAME.<format> of every map, in its first orientation."""
    drawn: dict[str, Figure] = {}
    for one in laid:
        if f"published_{one.name}" not in drawn:
            drawn[f"published_{one.name}"] = published.side_by_side(one)
    return figures.write_figures(drawn, folder, formats)
