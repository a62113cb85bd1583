"""The models of a replication: their encoders, their roles, and which are compared together."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import speechsim_jax as ss
from speechsim_jax.analyses.replication.claims import ModelPair, Roles
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Layer, layer_numbers

ModelPairs = tuple[ModelPair, ...]

# How families are pretrained, by their papers: masked frames are chosen among others (contrastive)
# or predicted. Others than these are predictive: HuBERT, WavLM and UniSpeech-SAT predict clusters
# (the last with a contrastive loss of utterances beside it), data2vec the layers of a teacher,
# w2v-BERT codes (with a contrastive loss beside it).
_PARADIGMS = {
    "wav2vec2": "contrastive",
    "wav2vec2-conformer": "contrastive",
    "sew": "contrastive",  # the loss of wav2vec 2.0
    "unispeech": "contrastive",  # and phones of labelled speech, by CTC
    "whisper": "supervised",  # on transcripts
}


def paradigm(family: str) -> str:
    """The pretraining objective of a family: "contrastive", "predictive" or "supervised"."""
    return _PARADIGMS.get(family, "predictive")


def load_models(
    models: tuple[str, ...],
    finetuned: ModelPairs,
    seeds: ModelPairs,
    untrained: Collection[str],
    layers: tuple[Layer, ...] | None,
    **loading: Any,
) -> tuple[dict[str, ss.SpeechEncoder], Roles]:
    """Load all encoders of a replication and assign their roles.

    Args:
        models: Sources of the pretrained models.
        finetuned: Sources of each fine-tuned model and of its pretrained model.
        seeds: Sources of each model of another seed and of the model with the same recipe.
        untrained: Those of `models` that get a counterpart with random weights.
        layers: Layers to compare, as in `Settings`; default all.
        **loading: Passed to `ss.load_encoder`.

    Returns:
        The encoders by name, and their roles.

    Raises:
        UserError: Pairs that name other models than there are, or too few layers.
    """
    sources = dict.fromkeys(models)
    for flag, pairs in (("finetuned", finetuned), ("other_seed", seeds)):
        for variant, model in pairs:
            if model not in models:
                raise UserError(f"--{flag}={variant}:{model}: {model} is not among the models")
            if variant in sources:
                raise UserError(f"--{flag}={variant}:{model}: {variant} is given twice")
            sources[variant] = None
    if unknown := [source for source in untrained if source not in models]:
        raise UserError(f"--untrained={unknown[0]}: that is not among the models")
    loaded = {source: ss.load_encoder(source, **loading) for source in sources}
    names = [encoder.name for encoder in loaded.values()]
    loaded = {
        source: dataclasses.replace(encoder, name=source)
        if names.count(encoder.name) > 1
        else encoder
        for source, encoder in loaded.items()
    }
    _check_depths(list(loaded.values()), layers)
    trained = [loaded[source] for source in models]
    encoders = {encoder.name: encoder for encoder in loaded.values()}
    roles = Roles(
        paradigms={e.name: paradigm(e.config.family) for e in trained},
        sizes={e.name: (e.config.num_hidden_layers, e.config.hidden_size) for e in trained},
        seeds=tuple((loaded[model].name, loaded[variant].name) for variant, model in seeds),
        finetuned=tuple((loaded[tuned].name, loaded[model].name) for tuned, model in finetuned),
    )
    # Each has a seed of its own: models of one architecture would have equal random weights.
    random = {
        loaded[source].name: ss.random_like(loaded[source], seed)
        for seed, source in enumerate(models)
        if source in untrained
    }
    encoders |= {encoder.name: encoder for encoder in random.values()}
    counterparts = {name: encoder.name for name, encoder in random.items()}
    return encoders, dataclasses.replace(roles, untrained=counterparts)


def _check_depths(encoders: Sequence[ss.SpeechEncoder], layers: tuple[Layer, ...] | None) -> None:
    for encoder in encoders:
        count = len(layer_numbers(layers, encoder.config.num_hidden_layers, encoder.name))
        if count < 3:
            raise UserError(
                f"{encoder.name}: {count} hidden states; the claims are about lower and upper "
                "layers and need at least 3"
            )


def comparison_sets(roles: Roles, models: list[str], split: bool) -> dict[str, list[str]]:
    """The sets of models that are compared with each other, by name.

    Args:
        roles: Roles of the models.
        models: Names of all models.
        split: Several sets of few models, instead of one set of all.
    """
    if not split:
        return {"models": models}
    seeds = [variant for _, variant in roles.seeds]
    sets = {"models": [*roles.paradigms, *seeds]}
    sets |= {f"finetuned-{tuned}": [before, tuned] for tuned, before in roles.finetuned}
    if roles.untrained:
        random = roles.untrained
        sets |= {f"untrained-{x}-{y}": [x, y, random[x], random[y]] for x, y in roles.crossed}
    return {name.replace("/", "_"): members for name, members in sets.items()}
