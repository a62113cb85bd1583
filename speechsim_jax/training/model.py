"""The trained model: an encoder, the embedding of masked frames, and the head of an objective.

The tensors of heads have torch's layout, and their fields transformers' names
(`Wav2Vec2ForPreTraining`, `...ForCTC`), so that a checkpoint of a training is a dictionary of named
tensors both ways. transformers has no head for HuBERT's pretraining: `final_proj` and
`label_embs_concat` are fairseq's names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import family_of
from speechsim_jax.models.initial_weights import random_tensors


class Affine(NamedTuple):
    """The map x -> weight x + bias."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Apply the map to the last axis, in float32."""
        return x.astype(jnp.float32) @ self.weight.T + self.bias


class Quantizer(NamedTuple):
    """Codebooks of a product quantizer.

    Attributes:
        codevectors: [1, group * codeword, size / group].
        weight_proj: The map to the codewords' logits.
    """

    codevectors: Float[Array, "1 choice part"]
    weight_proj: Affine


class ContrastiveHead(NamedTuple):
    """wav2vec 2.0: quantizer, and projections of the last hidden state and of quantized frames."""

    quantizer: Quantizer
    project_hid: Affine
    project_q: Affine


class PredictiveHead(NamedTuple):
    """HuBERT: the projection A and the embeddings e_c of the clusters."""

    final_proj: Affine
    label_embs_concat: Float[Array, "cluster size"]


class CTCHead(NamedTuple):
    """CTC: the map to the tokens' logits."""

    lm_head: Affine


Head = ContrastiveHead | PredictiveHead | CTCHead


class Model(NamedTuple):
    """All parameters.

    Attributes:
        encoder: Parameters of a `SpeechEncoder`.
        masked_spec_embed: Embedding of masked frames.
        head: Head of the objective.
    """

    encoder: Any
    masked_spec_embed: Float[Array, " neuron"]
    head: Any


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The objective of wav2vec 2.0; names and defaults are transformers' (those of Base).

    Attributes:
        num_codevector_groups: Number of codebooks, G.
        num_codevectors_per_group: Codewords in each, V.
        codevector_dim: Size of a quantized frame.
        proj_codevector_dim: Size of the vectors that are compared.
        num_negatives: Distractors, K.
        contrastive_logits_temperature: kappa.
        diversity_loss_weight: alpha.
        feature_penalty: Weight of the mean square of the convolutions' outputs (fairseq: 10).
    """

    num_codevector_groups: int = 2
    num_codevectors_per_group: int = 320
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    num_negatives: int = 100
    contrastive_logits_temperature: float | int = 0.1
    diversity_loss_weight: float | int = 0.1
    feature_penalty: float | int = 0.0

    def __post_init__(self):
        if self.codevector_dim % self.num_codevector_groups:
            raise UserError(
                f"codevector_dim {self.codevector_dim} is not a multiple of "
                f"num_codevector_groups {self.num_codevector_groups}"
            )

    def hf_fields(self) -> dict[str, Any]:
        """The fields of config.json."""
        fields = dataclasses.asdict(self)
        fields.pop("feature_penalty")
        return fields

    def head(self, config: Wav2Vec2Config) -> ContrastiveHead:
        """The head of an encoder, with shapes in place of tensors."""
        groups, size = self.num_codevector_groups, self.codevector_dim
        choices = groups * self.num_codevectors_per_group
        return ContrastiveHead(
            Quantizer(_shape(1, choices, size // groups), _affine(config.conv_dim[-1], choices)),
            _affine(config.hidden_size, self.proj_codevector_dim),
            _affine(size, self.proj_codevector_dim),
        )


@dataclasses.dataclass(frozen=True)
class Predictive:
    """The objective of HuBERT; defaults are fairseq's for the first iteration of Base.

    Attributes:
        units: Number of clusters.
        final_dim: Size of the cluster embeddings.
        logit_temp: tau.
        pred_masked_weight: alpha.
        pred_nomask_weight: beta.
        feature_penalty: Weight of the mean square of the convolutions' outputs.
    """

    units: int = 100
    final_dim: int = 256
    logit_temp: float | int = 0.1
    pred_masked_weight: float | int = 1.0
    pred_nomask_weight: float | int = 0.0
    feature_penalty: float | int = 10.0

    def head(self, config: Wav2Vec2Config) -> PredictiveHead:
        """The head of an encoder, with shapes in place of tensors."""
        final = _affine(config.hidden_size, self.final_dim)
        return PredictiveHead(final, _shape(self.units, self.final_dim))


@dataclasses.dataclass(frozen=True)
class CTC:
    """Fine-tuning with CTC.

    Attributes:
        vocab_size: Number of tokens.
        pad_token_id: The blank.
    """

    vocab_size: int = 32
    pad_token_id: int = 0

    def hf_fields(self) -> dict[str, Any]:
        """The fields of config.json."""
        return dataclasses.asdict(self)

    def head(self, config: Wav2Vec2Config) -> CTCHead:
        """The head of an encoder, with shapes in place of tensors."""
        return CTCHead(_affine(config.hidden_size, self.vocab_size))


Objective = Contrastive | Predictive | CTC


def _shape(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, np.float32)


def _affine(size_in: int, size_out: int) -> Any:
    return Affine(_shape(size_out, size_in), _shape(size_out))


def initial(
    config: Wav2Vec2Config,
    objective: Objective,
    seed: int,
    encoder: Mapping[str, np.ndarray] | None = None,
) -> tuple[nnx.GraphDef, Model]:
    """The model that training starts from.

    Tensors are drawn as in transformers and fairseq, each a function of the seed and its name:
    codewords and embeddings U(0, 1), logits of codewords N(0, 1), `lm_head` N(0, 0.02) (both with
    bias 0), other maps U(-1/sqrt(in), 1/sqrt(in)).

    Args:
        config: The encoder.
        objective: The objective, which sets the head.
        seed: Of all draws.
        encoder: Tensors of a pretrained encoder by Hugging Face's names, with the family's prefix
            or without; default drawn as its family draws them.

    Returns:
        The encoder's modules and all parameters.

    Raises:
        UserError: The tensors do not fit.
    """
    tensors = random_tensors(config, seed) if encoder is None else encoder
    graph, parameters, _ = weight_names.fill(config, tensors, "the pretrained encoder")
    embedding = weight_names.strip_prefix(tensors, family_of(config))[0].get("masked_spec_embed")
    if embedding is None:
        embedding = _draw("masked_spec_embed", (config.hidden_size,), config.hidden_size, seed)
    shapes = {name: leaf.shape for name, leaf in head_tensors(objective.head(config)).items()}

    def draw(name: str) -> np.ndarray:
        size_in = shapes[name.replace(".bias", ".weight")][-1]
        return _draw(name, shapes[name], size_in, seed)

    return graph, Model(parameters, _float32(embedding), _head(config, objective, draw))


def _draw(name: str, shape: tuple[int, ...], size_in: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *name.encode()])
    if name in ("masked_spec_embed", "quantizer.codevectors", "label_embs_concat"):
        return rng.uniform(0, 1, shape)
    if name in ("quantizer.weight_proj.bias", "lm_head.bias"):
        return np.zeros(shape)
    if name in ("quantizer.weight_proj.weight", "lm_head.weight"):
        return rng.normal(0, 1 if name.startswith("quantizer") else 0.02, shape)
    bound = 1 / math.sqrt(size_in)
    return rng.uniform(-bound, bound, shape)


def from_tensors(
    config: Wav2Vec2Config, objective: Objective, tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[nnx.GraphDef, Model]:
    """The inverse of `to_tensors`.

    Args:
        config: The encoder.
        objective: The objective, which sets the head.
        tensors: Tensors by name.
        origin: Where they come from, for messages.

    Returns:
        The encoder's modules and all parameters.

    Raises:
        UserError: Tensors are missing, of another shape or too many.
    """
    graph, parameters, _ = weight_names.fill(config, tensors, origin)
    encoder, head_names = weight_names.strip_prefix(tensors, family_of(config))
    expected = {name: leaf.shape for name, leaf in head_tensors(objective.head(config)).items()}
    given = {name: tensors[name] for name in head_names}
    embedding = {"masked_spec_embed": (config.hidden_size,)}
    given |= {name: encoder[name] for name in embedding if name in encoder}
    expected |= embedding
    wrong = [
        f"{name} {list(given[name].shape) if name in given else 'missing'} instead of "
        f"{list(expected[name]) if name in expected else 'nothing'}"
        for name in sorted(given.keys() | expected.keys())
        if name not in given or given[name].shape != expected.get(name)
    ]
    if wrong:
        raise UserError(f"{origin}: the head does not fit the objective; {', '.join(wrong)}")
    head = _head(config, objective, given.__getitem__)
    return graph, Model(parameters, _float32(given["masked_spec_embed"]), head)


def to_tensors(config: Wav2Vec2Config, model: Model) -> dict[str, np.ndarray]:
    """All tensors in torch's layout by Hugging Face's names, the encoder's with a prefix."""
    tensors = weight_names.export(config, model.encoder)
    tensors["masked_spec_embed"] = np.asarray(model.masked_spec_embed)
    head = {name: np.asarray(leaf) for name, leaf in head_tensors(model.head).items()}
    prefix = family_of(config).prefix
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()} | head


def head_tensors(head: Any) -> dict[str, Any]:
    """The tensors of a head by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(head)
    return {_name(path): leaf for path, leaf in leaves}


def _head(
    config: Wav2Vec2Config, objective: Objective, tensor: Callable[[str], np.ndarray]
) -> Head:
    """The head with the tensors that `tensor` returns by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _float32(tensor(_name(path))), objective.head(config)
    )


def _name(path: tuple) -> str:
    return ".".join(key.name for key in path)


def _float32(tensor: np.ndarray) -> Array:
    return jnp.asarray(tensor, jnp.float32)
