"""The table from Hugging Face weight names to parameters, strict in both directions.

Parameter paths equal HF's names except for the last part, so the table is generated from the
network itself; it adds the transposition that turns a torch tensor into a parameter.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.families import FAMILIES, family_of
from speechsim_jax.models.families.family import Family, ParameterPath, Weight

# torch's layouts are [out, in] and [out, in, tap]; ours are [in, out] and [tap, in, out].
_TRANSPOSED = {"kernel": "weight", "weight_g": "weight_g", "weight_v": "weight_v"}
# Parameters equal to torch's `weight`, and the statistics of a batch norm.
_RENAMED = {"scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}

# Other spellings of the same tensor in released files.
_ALIASES = (
    (re.compile(r"\.parametrizations\.weight\.original0$"), ".weight_g"),
    (re.compile(r"\.parametrizations\.weight\.original1$"), ".weight_v"),
    (re.compile(r"(layer_norm|LayerNorm)\.gamma$"), r"\1.weight"),
    (re.compile(r"(layer_norm|LayerNorm)\.beta$"), r"\1.bias"),
)

# What programs that train wrap a model in; parts of names.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")
_FOLDED = "encoder.pos_conv_embed.conv"

# Tensors under the encoder's prefix that only training needs.
_IGNORED = re.compile(
    r"^(masked_spec_embed|mask_time_emb_vector|.*\.num_batches_tracked"
    r"|(quantizer|project_q|project_hid|label_embs|final_proj)\b.*)$"
)
_HEADS = re.compile(
    r"^(lm_head|projector|classifier|layer_weights|tdnn|objective|feature_extractor_head)\b"
)


def abstract_network(config: EncoderConfig) -> tuple[nnx.GraphDef, Any]:
    """The network's graph and its state of shapes (a copy), without allocating parameters."""
    # Families of one network have one graph: their models share compilations.
    network_of = family_of(config).network_of or config.family
    graph, state = _traced_network(dataclasses.replace(config, family=network_of))
    return graph, jax.tree.map(lambda shape: shape, state)


@functools.lru_cache(maxsize=16)
def _traced_network(config: EncoderConfig) -> tuple[nnx.GraphDef, Any]:
    # Tracing takes seconds for a deep network, and loading needs it twice.
    return nnx.split(nnx.eval_shape(lambda: family_of(config).network(config, nnx.Rngs(0))))


def weight_table(config: EncoderConfig) -> tuple[Weight, ...]:
    """Every parameter of the encoder and its HF name."""
    _, state = abstract_network(config)
    rows = []
    for path, shape in _flatten(nnx.to_pure_dict(state)):
        *parents, last = path
        transposed = last in _TRANSPOSED
        name = ".".join([*parents, (_TRANSPOSED | _RENAMED).get(last, last)])
        rows.append(Weight(name, path, tuple(shape.shape), transposed))
    return tuple(rows)


def _flatten(tree: Mapping[Any, Any], path: ParameterPath = ()) -> list[tuple[ParameterPath, Any]]:
    leaves = []
    for key, value in tree.items():
        here = (*path, str(key))
        leaves += _flatten(value, here) if isinstance(value, Mapping) else [(here, value)]
    return leaves


def strip_prefix(
    tensors: Mapping[str, np.ndarray], family: Family
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Separate the encoder's tensors from those of heads.

    A file saved from a larger model has the encoder under a prefix ("wav2vec2."), and heads or a
    decoder outside it. In a file without it everything is the encoder, except HF's own heads.

    Args:
        tensors: by their names in the file.
        family: of the checkpoint.

    Returns:
        The encoder's tensors by their canonical names, and the names of all others.
    """
    present = [p for p in family.prefixes if any(name.startswith(p) for name in tensors)]
    prefix = present[0] if present else ""
    encoder, others = {}, []
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        if not name.startswith(prefix) or (not prefix and _HEADS.match(name)):
            others.append(name)
            continue
        for pattern, replacement in _ALIASES:
            short = pattern.sub(replacement, short)
        encoder[short] = tensor
    return encoder, others


def fill(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    origin: str,
    table: tuple[Weight, ...] | None = None,
) -> tuple[nnx.GraphDef, Any, list[str]]:
    """Fill the network with a checkpoint's tensors.

    Args:
        config: the architecture.
        tensors: by their names in the file.
        origin: name of the checkpoint in messages.
        table: the names and paths of all parameters (default: `weight_table(config)`).

    Returns:
        The network's graph, its parameters, and notes for the user.

    Raises:
        UserError: one line that lists missing, unexpected and misshapen tensors.
    """
    table = table or weight_table(config)
    encoder, _, notes = matched(config, tensors, origin, table)
    graph, state = abstract_network(config)
    values: dict[str, Any] = {}
    for row in table:
        node = values
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = jnp.asarray(row.from_torch(encoder[row.name]))
    nnx.replace_by_pure_dict(state, values)
    return graph, state, notes


class Matched(NamedTuple):
    """A checkpoint's tensors and the parameters that they are.

    Attributes:
        encoder: the encoder's tensors by HF's names without prefix, one for every parameter.
        left_out: names of all others: of heads, and of what only training needs.
        notes: for the user.
    """

    encoder: dict[str, np.ndarray]
    left_out: list[str]
    notes: list[str]


def matched(
    config: EncoderConfig,
    tensors: Mapping[str, np.ndarray],
    origin: str,
    table: tuple[Weight, ...],
) -> Matched:
    """Find the encoder's tensors in a checkpoint, and check that they are all there.

    Args:
        config: the architecture.
        tensors: by their names in the file.
        origin: name of the checkpoint in messages.
        table: `weight_table(config)`.

    Raises:
        UserError: one line that lists missing, unexpected and misshapen tensors.
    """
    family = family_of(config)
    tensors, unwrapped = _unwrapped(tensors, family)
    encoder, others = strip_prefix(tensors, family)
    ignored = [name for name in encoder if _is_ignored(name, family)]
    encoder = {n: tensor for n, tensor in encoder.items() if n not in ignored}
    _refuse_integers(encoder, origin)
    notes = [f"{origin}: {unwrapped}"] if unwrapped else []
    notes += [f"{origin}: left out {_names(others)} (not part of the encoder)"] if others else []
    for complete in (_with_conv_biases, _with_weight_norm):
        encoder, note = complete(config, encoder, table)
        notes += [f"{origin}: {note}"] if note else []
    _check(encoder, table, origin)
    return Matched(encoder, [*others, *ignored], notes)


def _is_ignored(name: str, family: Family) -> bool:
    """Whether a tensor is no parameter of the encoder: only training needs it."""
    return bool(_IGNORED.match(name) or (family.ignored and family.ignored.match(name)))


def _unwrapped(
    tensors: Mapping[str, np.ndarray], family: Family
) -> tuple[Mapping[str, np.ndarray], str]:
    """The tensors without what a training program has wrapped the model in; and a note.

    The encoder gets transformers' own prefix, or none; what is outside the wrapper keeps its name.
    """
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    prefixes = {name.removesuffix(family.first) for name in plain if name.endswith(family.first)}
    if len(plain) < len(tensors) or len(prefixes) != 1:
        return tensors, ""  # `_check` says what is missing
    (prefix,) = prefixes
    if plain.keys() == tensors.keys() and prefix in ("", *family.prefixes):
        return tensors, ""
    alike = [other for other in FAMILIES.values() if other.first == family.first]
    others = {p for other in alike for p in other.prefixes} - {*family.prefixes}
    if prefix.endswith(tuple(f".{other}" for other in others)) or prefix in others:
        return tensors, ""  # another architecture than config.json says
    if prefix not in ("", *family.prefixes):
        kept = next((p for p in family.prefixes if prefix.endswith(p)), "")
        plain = {
            f"{kept}{name.removeprefix(prefix)}"
            if name.startswith(prefix)
            else f"objective.{name}": t
            for name, t in plain.items()
        }
    example = next(name for name in tensors if _WRAPPERS.sub("", name).endswith(family.first))
    return plain, f"names as {example} were unwrapped"


def _refuse_integers(encoder: Mapping[str, np.ndarray], origin: str) -> None:
    """Raise UserError for weights that are no plain floating-point numbers."""
    for name, tensor in encoder.items():
        kind = tensor.dtype.name
        if kind in ("float16", "bfloat16", "float32", "float64"):
            continue
        raise UserError(
            f"{origin}: {name} is {kind}, a type of quantised weights, which are not read; load "
            "the model without quantisation and save it again"
        )


def _with_weight_norm(
    config: EncoderConfig, encoder: dict[str, np.ndarray], table: tuple[Weight, ...]
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors with the positional convolution's weight norm, if the file has it folded.

    weight = g v / |v|, the norm over all but the last axis; g = |weight|, v = weight
    """
    folded = encoder.get(f"{_FOLDED}.weight")
    needed = {row.name for row in table}
    if folded is None or f"{_FOLDED}.weight_g" not in needed or folded.ndim != 3:
        return encoder, ""
    folded = folded.astype(np.float32)
    norm = np.sqrt(np.square(folded, dtype=np.float64).sum(axis=(0, 1), keepdims=True))
    # A tap of zeros has no direction: any will do, times 0.
    directions = np.where(norm == 0, np.float32(1), folded)
    parts = {f"{_FOLDED}.weight_g": norm.astype(np.float32), f"{_FOLDED}.weight_v": directions}
    rest = {name: tensor for name, tensor in encoder.items() if name != f"{_FOLDED}.weight"}
    return parts | rest, "the weight norm of the positional convolution is folded into its weight"


def _with_conv_biases(
    config: EncoderConfig, encoder: dict[str, np.ndarray], table: tuple[Weight, ...]
) -> tuple[dict[str, np.ndarray], str]:
    """The tensors with zero biases of the convolutions, if the file has none of them; and a note.

    hubert-large's config.json has conv_bias=true, but its training code had no such bias.
    """
    biases = [row for row in table if re.match(r"feature_extractor.*\.conv\.bias$", row.name)]
    if not biases or any(row.name in encoder for row in biases):
        return encoder, ""
    zeros = {row.name: np.zeros(row.shape, np.float32) for row in biases}
    return encoder | zeros, "no convolution has a bias in the file; taken as zero"


def _check(encoder: Mapping[str, np.ndarray], table: tuple[Weight, ...], origin: str) -> None:
    rows = {row.name: row for row in table}
    missing = [name for name in rows if name not in encoder]
    unexpected = [name for name in encoder if name not in rows]
    misshapen = []
    for name in rows.keys() & encoder.keys():
        row, shape = rows[name], encoder[name].shape
        expected = row.shape[::-1] if row.transposed else row.shape
        if shape != expected:
            misshapen.append(f"{name} {list(shape)} instead of {list(expected)}")
    problems = [
        f"{len(names)} {problem}: {_names(names)}"
        for problem, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", sorted(misshapen)),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{origin}: the weights do not fit config.json; tensors {'; '.join(problems)}"
        )


def _names(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def export(config: EncoderConfig, parameters: Any) -> dict[str, np.ndarray]:
    """The parameters as torch tensors under HF's names.

    Args:
        config: the architecture.
        parameters: as in `SpeechEncoder.parameters`.

    Returns:
        Float32 tensors by name, without prefix.
    """
    values = dict(_flatten(nnx.to_pure_dict(parameters)))
    return {
        row.name: row.to_torch(np.asarray(jax.device_get(values[row.path])))
        for row in weight_table(config)
    }


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of tensors in hexadecimal: name, type, shape and bytes of each, by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        total.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        total.update(tensor.data)
    return total.hexdigest()
