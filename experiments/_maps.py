"""What a replication draws: the paper's figures under its names, and maps beside published ones."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import speechsim_jax as ss
from experiments import _members
from speechsim_jax import figures, published
from speechsim_jax.claims import Roles
from speechsim_jax.drawing import DPI

# Of fine-tuned against pretrained models.
_OF_FINETUNING = ("maxcorr", "linreg", "svcca", "pwcca", "lincka")

_log = logging.getLogger("speechsim_jax.experiments.replicate")


def draw(wholes: Sequence[ss.SimilarityResult], roles: Roles, folder: Path) -> list[Path]:
    """The paper's figures under its names: maps of the pretrained models, and of fine-tuning."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Predictive before contrastive, small before large, as in the paper.
    order = sorted(
        roles.paradigms, key=lambda m: (roles.paradigms[m] != "predictive", roles.sizes[m])
    )
    main = wholes[0].select(order)
    drawn = {name: figures.heatmap(main, name) for name in main.measures if name != "rotcorr"}
    families = [_family(wholes, before) for _, before in roles.finetuned]
    for (tuned, before), family in zip(roles.finetuned, families):
        result = next(whole for whole in wholes if {tuned, before} <= set(whole.models))
        stem = f"{family}_finetuned" + (f"_{tuned}" if families.count(family) > 1 else "")
        block = rectangle(result, before, tuned)
        for name in _OF_FINETUNING:
            drawn[f"{stem}_{name}".replace("/", "_")] = figures.heatmap(block, name)
    paths = [folder / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values()):
        figure.savefig(path, dpi=DPI)
    return paths


def _family(wholes: Sequence[ss.SimilarityResult], model: str) -> str:
    told = next(whole.attributes["models"] for whole in wholes if model in whole.models)
    return told[model]["model_type"]


def rectangle(result: ss.SimilarityResult, x: str, y: str) -> ss.SimilarityResult:
    """The layers of x in rows against those of y in columns, without attention."""
    chosen = {
        dim: np.flatnonzero(result.dataset[f"{dim}_model"].values == model)
        for dim, model in (("x", x), ("y", y))
    }
    heads = [dim for dim in ("x_attention", "y_attention") if dim in result.dataset.dims]
    return ss.SimilarityResult(result.dataset.drop_dims(heads).isel(chosen))


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
        paradigms={model: _members.paradigm(family) for model, family in families.items()},
        sizes={m: (sum(n.model == m for n in maps.networks),) for m in maps.models},
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


def draw_beside(laid: Sequence[published.Laid], folder: Path) -> list[Path]:
    """published_NAME.png of every map, in its first orientation."""
    first = {one.name: one for one in reversed(laid)}
    paths = [folder / f"published_{name}.png" for name in first]
    for path, one in zip(paths, first.values()):
        published.side_by_side(one).savefig(path, dpi=DPI)
    return paths[::-1]
