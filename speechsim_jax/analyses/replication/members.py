"""The models of a replication: loaded, each with its role, in sets that are compared together."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import speechsim_jax as ss
from speechsim_jax.analyses.replication.claims import Roles
from speechsim_jax.errors import UserError

Pairs = tuple[tuple[str, str], ...]

_PARADIGMS = {"wav2vec2": "contrastive"}  # the other families predict


def paradigm(family: str) -> str:
    """What a family is pretrained with."""
    return _PARADIGMS.get(family, "predictive")


def load(
    models: tuple[str, ...],
    finetuned: Pairs,
    seeds: Pairs,
    untrained: Collection[str],
    layers: tuple[int, ...] | None,
    **loading: Any,
) -> tuple[dict[str, ss.SpeechEncoder], Roles]:
    """All encoders by name, and which is what; raises UserError for pairs that do not fit.

    `finetuned`: fine-tuned, pretrained; `seeds`: other, model; `untrained`: models that get an
    untrained counterpart; all are sources. `loading` goes to `ss.load_encoder`.
    """
    sources = dict.fromkeys(models)
    for kind, pairs in (("finetuned", finetuned), ("other_seed", seeds)):
        for other, model in pairs:
            if model not in models:
                raise UserError(f"--{kind}={other}:{model}: {model} is not among the models")
            if other in sources:
                raise UserError(f"--{kind}={other}:{model}: {other} is given twice")
            sources[other] = None
    if unknown := [source for source in untrained if source not in models]:
        raise UserError(f"--untrained={unknown[0]}: that is not among the models")
    loaded = {source: ss.load_encoder(source, **loading) for source in sources}
    names = [encoder.name for encoder in loaded.values()]
    loaded = {
        source: dataclasses.replace(e, name=source) if names.count(e.name) > 1 else e
        for source, e in loaded.items()
    }
    _check_depths(list(loaded.values()), layers)
    trained = [loaded[source] for source in models]
    encoders = {encoder.name: encoder for encoder in loaded.values()}
    roles = Roles(
        paradigms={e.name: paradigm(e.config.family) for e in trained},
        sizes={e.name: (e.config.num_hidden_layers, e.config.hidden_size) for e in trained},
        seeds=tuple((loaded[model].name, loaded[other].name) for other, model in seeds),
        finetuned=tuple((loaded[tuned].name, loaded[model].name) for tuned, model in finetuned),
    )
    # Every one has a seed of its own: representations of one family would share their draws.
    drawn = {
        loaded[source].name: ss.random_like(loaded[source], seed)
        for seed, source in enumerate(models)
        if source in untrained
    }
    encoders |= {encoder.name: encoder for encoder in drawn.values()}
    by_name = {name: encoder.name for name, encoder in drawn.items()}
    return encoders, dataclasses.replace(roles, untrained=by_name)


def _check_depths(encoders: Sequence[ss.SpeechEncoder], layers: tuple[int, ...] | None) -> None:
    for encoder in encoders:
        depth = encoder.config.num_hidden_layers + 1
        count = len({layer % depth for layer in layers or range(depth)})
        if count < 3:
            raise UserError(
                f"{encoder.name}: {count} hidden states; the claims are about lower and upper "
                "layers and need at least 3"
            )


def sets(roles: Roles, everything: list[str], split: bool) -> dict[str, list[str]]:
    """Which models are compared with each other; one set unless `split`."""
    if not split:
        return {"models": everything}
    seeds = [other for _, other in roles.seeds]
    found = {"models": [*roles.paradigms, *seeds]}
    found |= {f"finetuned-{tuned}": [before, tuned] for tuned, before in roles.finetuned}
    if roles.untrained:
        at = roles.untrained
        found |= {f"untrained-{x}-{y}": [x, y, at[x], at[y]] for x, y in roles.crossed}
    return {name.replace("/", "_"): models for name, models in found.items()}
