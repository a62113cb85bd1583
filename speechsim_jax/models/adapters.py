"""LoRA adapters of PEFT: what their configuration means, and merging them into the base's weights.

    W' = W + s B A        s = alpha / r, with use_rslora alpha / sqrt(r)

Source: PEFT, `tuners/lora` and "PEFT checkpoint format" (its documentation).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechsim_jax.errors import UserError

MERGE = (
    "merge it where PEFT is installed: model.merge_and_unload() gives a model to save with "
    "save_pretrained(folder)"
)

# Fields that change what an adapter computes, beyond what is read here.
_UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
# Initial values that leave the base as it is; the others (pissa, olora, ...) change it too.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")

_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
# What PEFT puts around a model, and around a layer that it changes.
_WRAPPED = re.compile(r"^(?:.*\.)?base_model\.model\.")
_BASE_LAYER = re.compile(r"\.base_layer(?=\.)")
_TRAINED = re.compile(r"\.modules_to_save(?:\.(?P<adapter>[^.]+))(?=\.)")
_ORIGINAL = re.compile(r"\.original_module(?=\.)")
_ENCODER = re.compile(r"(^|\.)(feature_extractor|feature_projection|encoder)\.")
# Patterns are regular expressions from a file: those with few choices, and without a group that is
# repeated, take no time.
_PATTERN = re.compile(r"[\w.^$\\|()\[\]*+?-]{1,200}")
_MAX_CHOICES = 4


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter_config.json says of merging.

    Attributes:
        rank: r.
        alpha: lora_alpha.
        rank_pattern: ranks of modules whose names end in a pattern, by pattern.
        alpha_pattern: alphas likewise.
        by_root: scale by alpha / sqrt(r) (use_rslora).
        dora: rows get trained norms (use_dora).
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    by_root: bool
    dora: bool

    @classmethod
    def read(cls, config: Mapping[str, Any], origin: str) -> "LoraSettings":
        """Read a parsed adapter_config.json.

        Args:
            config: its content.
            origin: name of the adapter in messages.

        Raises:
            UserError: another kind of adapter, or a field that is not supported.
        """
        kind = config.get("peft_type")
        if kind != "LORA":
            raise UserError(f"{origin}: is an adapter of type {_shown(kind)}, not LORA; {MERGE}")
        for name in _UNSUPPORTED:
            if config.get(name):
                raise UserError(f"{origin}: adapter_config.json has {name}; {MERGE}")
        initial = config.get("init_lora_weights")
        if not any(initial is known or initial == known for known in _INITIAL):
            raise UserError(
                f"{origin}: adapter_config.json has init_lora_weights={_shown(initial)}, which "
                f"changes the base too; {MERGE}"
            )
        patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
        for pattern in patterns:
            _check_pattern(pattern, origin)
        return cls(
            _rank(config.get("r"), origin),
            _alpha(config.get("lora_alpha"), origin),
            *patterns,
            by_root=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )

    def of_module(self, module: str, origin: str) -> tuple[int, float]:
        """The rank of a module, and the scale of its product.

        Args:
            module: its name in the model that was adapted.
            origin: name of the adapter in messages.

        Raises:
            UserError: a pattern gives an impossible number.
        """
        rank = _rank(_matching(self.rank_pattern, module, self.rank), origin)
        alpha = _alpha(_matching(self.alpha_pattern, module, self.alpha), origin)
        return rank, alpha / (math.sqrt(rank) if self.by_root else rank)


def _rank(value: Any, origin: str) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise UserError(f"{origin}: adapter_config.json has r={_shown(value)}; expected a rank")
    return value


def _alpha(value: Any, origin: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 2**31:
        raise UserError(
            f"{origin}: adapter_config.json has lora_alpha={_shown(value)}; expected a number"
        )
    return float(value)


def _check_pattern(patterns: Any, origin: str) -> None:
    for pattern in patterns if isinstance(patterns, dict) else [None]:
        try:
            simple = (
                isinstance(pattern, str)
                and _PATTERN.fullmatch(pattern)
                and sum(map(pattern.count, "*+?|")) <= _MAX_CHOICES
                and not re.search(r"\)[*+?]", pattern)
                and re.compile(pattern)
            )
        except (re.error, RecursionError):
            simple = False
        if not simple:
            raise UserError(
                f"{origin}: adapter_config.json has the pattern {_shown(pattern)}; expected the "
                f"end of a module's name, or a simple regular expression of it; else {MERGE}"
            )


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default
    )


def has_lora(tensors: Mapping[str, Any]) -> bool:
    """Whether there are weights of LoRA under these names."""
    return any(_split(name)[1] for name in tensors)


def merged(
    settings: LoraSettings,
    base: Mapping[str, np.ndarray],
    adapter: Mapping[str, np.ndarray],
    origin: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Merge an adapter.

    Args:
        settings: its configuration.
        base: the base's tensors by their names in its files.
        adapter: the adapter's tensors by their names in its file. Those that are not of LoRA are
            biases and whole modules that were trained too (modules_to_save): they replace the
            base's.
        origin: name of the adapter in messages.

    Returns:
        The tensors by the base's names, and the modules outside the encoder that the base lacks.

    Raises:
        UserError: the adapter does not fit the base, or changes what cannot be merged.
    """
    result = dict(base)
    names = _Names(base, origin)
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in adapter.items():
        module, part = _split(name)
        if part:
            modules.setdefault(module, {})[part] = tensor
        else:
            result[names.find(module) or module] = tensor
    left_out = []
    for module, parts in modules.items():
        target = names.find(f"{module}.weight")
        if target is None:
            if names.find(f"{module}.weight_v") or names.find(
                f"{module}.parametrizations.weight.original1"
            ):
                raise UserError(
                    f"{origin}: changes {module}, a convolution with groups and weight norm; "
                    f"PEFT cannot merge that either: train without it"
                )
            if _ENCODER.search(module):
                raise UserError(f"{origin}: changes {module}, which the base lacks")
            left_out.append(module)
            continue
        result[target] = _merged(settings, result[target], module, parts, origin)
        if "lora_B.bias" in parts:
            bias = names.find(f"{module}.bias")
            if bias is None:
                raise UserError(f"{origin}: has a bias of {module}, which has none in the base")
            _, scale = settings.of_module(module, origin)
            result[bias] = _sum(result[bias], scale * _double(parts["lora_B.bias"]), module, origin)
    return result, left_out


def separated(
    tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The base's tensors and the adapter's of a file that holds both.

    Args:
        tensors: by their names in the file.
        origin: name of the file in messages.

    Returns:
        Both by names without what PEFT puts around a model and its layers.

    Raises:
        UserError: there are several adapters.
    """
    base, adapter, adapters = {}, {}, set()
    for name, tensor in tensors.items():
        plain, trained = _split(name)[1] == "", _TRAINED.search(name)
        if trained:
            adapters.add(trained["adapter"])
        elif not plain:
            adapters.update(_adapter_of(name))
        short = _ORIGINAL.sub("", _BASE_LAYER.sub("", _WRAPPED.sub("", name)))
        (base if plain and not trained else adapter)[short] = tensor
    if len(adapters) > 1:
        shown = ", ".join(ascii(name)[:40] for name in sorted(adapters)[:4])
        raise UserError(f"{origin}: holds several adapters ({shown}); {MERGE}")
    return base, adapter


class _Names:
    """The base's names, found whether or not they have the prefix that the adapter's have."""

    def __init__(self, base: Mapping[str, Any], origin: str):
        self.base = base
        self.origin = origin

    def find(self, name: str) -> str | None:
        """The base's tensor of this name; None if there is none."""
        if name in self.base:
            return name
        found = [
            other for other in self.base
            if other.endswith(f".{name}") or name.endswith(f".{other}")
        ]  # fmt: skip
        if len(found) > 1:
            raise UserError(f"{self.origin}: {name} could be {found[0]} or {found[1]} of the base")
        return found[0] if found else None


def _split(name: str) -> tuple[str, str]:
    """The module and the part of a LoRA tensor; the plain name and "" for another tensor."""
    pieces = _WRAPPED.sub("", name).split(".")
    at = next((i for i, piece in enumerate(pieces) if piece.startswith("lora_")), None)
    if at is None:
        return _TRAINED.sub("", _BASE_LAYER.sub("", ".".join(pieces))), ""
    leaf = "bias" if pieces[-1] == "bias" else ""
    return ".".join(pieces[:at]), pieces[at] + (f".{leaf}" if leaf else "")


def _adapter_of(name: str) -> list[str]:
    """The adapter's name in that of a LoRA tensor, where PEFT keeps it: lora_A.default.weight."""
    pieces = name.split(".")
    at = next(i for i, piece in enumerate(pieces) if piece.startswith("lora_"))
    return [piece for piece in pieces[at + 1 :] if piece not in ("weight", "bias")][:1]


def _merged(
    settings: LoraSettings,
    weight: np.ndarray,
    module: str,
    parts: Mapping[str, np.ndarray],
    origin: str,
) -> np.ndarray:
    """The weight of a linear map, a convolution without groups or an embedding, merged."""
    unknown = sorted({part.removesuffix(".bias") for part in parts} - {*_PARTS})
    if unknown:
        raise UserError(f"{origin}: {module} has {unknown[0]}, which is not known; {MERGE}")
    embedding = "lora_embedding_A" in parts
    left, right = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if left not in parts or right not in parts:
        raise UserError(f"{origin}: {module} lacks its lora_A or lora_B; save the adapter again")
    a, b = parts[left], parts[right]
    rank, scale = settings.of_module(module, origin)
    columns, *others = weight.shape[::-1] if embedding else weight.shape
    if a.shape != (rank, *others) or b.shape != (columns, rank) + (1,) * (weight.ndim - 2):
        raise UserError(
            f"{origin}: {left} {list(a.shape)} and {right} {list(b.shape)} of {module} do not fit "
            f"rank {rank} of adapter_config.json and the base's weight {list(weight.shape)}"
        )
    product = np.tensordot(_double(b).reshape(columns, rank), _double(a), axes=1)
    total = _sum(weight, scale * (product.T if embedding else product), module, origin, double=True)
    magnitude = parts.get("lora_magnitude_vector")
    if settings.dora != (magnitude is not None):
        raise UserError(f"{origin}: use_dora and the weights of {module} contradict each other")
    if magnitude is not None:
        if weight.ndim != 2 or embedding or magnitude.shape != (columns,):
            raise UserError(f"{origin}: {module} has DoRA, which is read for linear maps; {MERGE}")
        # The rows' norms become the trained ones.
        total *= (_double(magnitude) / np.linalg.norm(total, axis=1))[:, None]
    return total.astype(np.float32)


def _sum(
    weight: np.ndarray, change: np.ndarray, module: str, origin: str, double: bool = False
) -> np.ndarray:
    if weight.dtype.kind in "iub" or weight.shape != change.shape:
        raise UserError(
            f"{origin}: {module} of the base is {weight.dtype} {list(weight.shape)}, its change "
            f"{list(change.shape)}"
        )
    total = _double(weight) + change
    return total if double else total.astype(np.float32)


def _double(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float64)


def _shown(value: Any) -> str:
    """A value from the file as a few words of ASCII."""
    return ascii(value)[:80]
