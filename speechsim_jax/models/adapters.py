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
_ENCODER = re.compile(r"(^|\.)(feature_extractor|feature_projection|encoder)(?=\.)")
# Of transformers' WhisperEncoder, which has nothing before the names of its parts.
_ENCODER_ALONE = re.compile(r"(layers|conv\d|embed_positions|layer_norm)\.")
# Patterns are regular expressions from a file: those with few ways to match, and without a group
# that is repeated, take no time. The ways are counted in bits: 5 for a * or +, 1 for a ?.
_PATTERN = re.compile(r"[\w.^$\\|()\[\]*+?:-]{1,200}")
_MAX_BITS = 20

_ALL_LINEAR = "all-linear"
# The end of a tensor's name after that of its module, the last two with weight norm.
_WEIGHT = re.compile(r"\.(weight|weight_v|parametrizations\.weight\.original1)$")
_EMBEDDING = re.compile(r"embed$")


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
        bias: lora_B has a bias (lora_bias).
        targets: names of the adapted modules or their ends, or a pattern of whole names.
        excluded: modules that are not adapted, likewise (exclude_modules).
        trained: modules that are saved whole (modules_to_save).
        layers: indices of the adapted layers; None for all (layers_to_transform).
        layers_patterns: what goes before a layer's index; empty for any name.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, Any]
    alpha_pattern: Mapping[str, Any]
    by_root: bool
    dora: bool
    bias: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    trained: tuple[str, ...]
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]

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
            bias=bool(config.get("lora_bias")),
            targets=_targets(config, origin),
            excluded=_modules(config, "exclude_modules", origin),
            trained=_names(config, "modules_to_save", origin),
            layers=_layers(config.get("layers_to_transform"), origin),
            layers_patterns=_layers_patterns(config, origin),
        )

    def adapts(self, module: str) -> bool:
        """Whether a module gets LoRA weights, as PEFT's `check_target_module_exists` decides it.

        Args:
            module: its name in the model that was adapted.
        """
        if self.excluded and _is_one_of(self.excluded, module):
            return False
        if any(f".{name}." in f".{module}." for name in self.trained):
            return False
        if self.targets == _ALL_LINEAR:
            return not _EMBEDDING.search(module)
        if isinstance(self.targets, str) or module in self.targets or self.layers is None:
            return _is_one_of(self.targets, module)
        found = (re.match(rf".*\.(?:{pattern})\.(\d+)\.", module)
                 for pattern in self.layers_patterns or ("[^.]*",))  # fmt: skip
        layer = next(filter(None, found), None)
        within = layer is not None and int(layer[1]) in self.layers
        return within and _is_one_of(self.targets, module)

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


def _is_one_of(modules: str | tuple[str, ...], module: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return any(f".{module}".endswith(f".{end}") for end in modules)


def _targets(config: Mapping[str, Any], origin: str) -> str | tuple[str, ...]:
    targets = config.get("target_modules")
    if not targets:
        raise UserError(
            f"{origin}: adapter_config.json has no target_modules, without which missing weights "
            f"go unnoticed; {MERGE}"
        )
    if isinstance(targets, str) and targets.lower() == _ALL_LINEAR:
        return _ALL_LINEAR
    return _modules(config, "target_modules", origin)


def _modules(config: Mapping[str, Any], field: str, origin: str) -> str | tuple[str, ...]:
    """Names of modules or their ends, or a pattern."""
    value = config.get(field)
    if isinstance(value, str) and value:
        _check_pattern({value: None}, origin)
        return value
    return _names(config, field, origin)


def _names(config: Mapping[str, Any], field: str, origin: str) -> tuple[str, ...]:
    value = config.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise UserError(
            f"{origin}: adapter_config.json has {field}={_shown(value)}; expected names of modules"
        )
    return tuple(value)


def _layers(value: Any, origin: str) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise UserError(
            f"{origin}: adapter_config.json has layers_to_transform={_shown(value)}; expected "
            f"indices of layers"
        )
    return frozenset(layers)


def _layers_patterns(config: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    found = _modules(config, "layers_pattern", origin)
    found = (found,) if isinstance(found, str) else found
    _check_pattern(dict.fromkeys(found), origin)
    return found


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
                and _bits(pattern) <= _MAX_BITS
                and not re.search(r"\)[*+]", pattern)
                and re.compile(pattern)
            )
        except (re.error, RecursionError):
            simple = False
        if not simple:
            raise UserError(
                f"{origin}: adapter_config.json has the pattern {_shown(pattern)}; expected the "
                f"end of a module's name, or a simple regular expression of it; else {MERGE}"
            )


def _bits(pattern: str) -> float:
    """A bound of log2 of the ways in which a pattern may match a name."""
    groups = pattern.count("(") + 1
    choices = groups * math.log2(1 + pattern.count("|") / groups)
    return choices + 5 * (pattern.count("*") + pattern.count("+")) + pattern.count("?")


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
        UserError: the adapter does not fit the base, lacks weights or has others than its
            configuration says, or changes what cannot be merged.
    """
    _check_one_adapter(adapter, origin)
    result = dict(base)
    names = _Names(base, origin)
    modules: dict[str, dict[str, np.ndarray]] = {}
    replaced: dict[str, np.ndarray] = {}
    for name, tensor in adapter.items():
        module, part = _split(name)
        into = modules.setdefault(module, {}) if part else replaced
        key = part or names.find(module) or module
        if key in into:
            raise UserError(f"{origin}: has {ascii(name)[:200]} twice, by two names")
        into[key] = tensor
    result |= replaced
    _check_complete(settings, base, modules, replaced, origin)
    left_out, changed = [], set()
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
        if target in changed:
            raise UserError(f"{origin}: changes {module} twice, by two names")
        changed.add(target)
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
    _check_one_adapter(tensors, origin)
    base, adapter = {}, {}
    for name, tensor in tensors.items():
        plain, trained = _split(name)[1] == "", _TRAINED.search(name)
        short = _ORIGINAL.sub("", _BASE_LAYER.sub("", _WRAPPED.sub("", name)))
        (base if plain and not trained else adapter)[short] = tensor
    return base, adapter


def _check_one_adapter(tensors: Mapping[str, Any], origin: str) -> None:
    adapters = set()
    for name in tensors:
        if trained := _TRAINED.search(name):
            adapters.add(trained["adapter"])
        elif _split(name)[1]:
            adapters.add(_adapter_of(name))
    if len(adapters) > 1:
        shown = ", ".join(ascii(name)[:40] for name in sorted(adapters)[:4])
        raise UserError(f"{origin}: holds several adapters ({shown}); {MERGE}")


def _check_complete(
    settings: LoraSettings,
    base: Mapping[str, np.ndarray],
    modules: Mapping[str, Mapping[str, Any]],
    replaced: Mapping[str, Any],
    origin: str,
) -> None:
    """Raise UserError unless the modules with weights are those of the configuration.

    A head may be missing: the base can have one that the adapted model had not.
    """
    starts = [(_start(module), module) for module in modules]
    # What the adapted model has before the encoder's names: "wav2vec2.", or nothing.
    prefix = next((module[:start] for start, module in starts if start is not None), None)
    needed, lacking = set(), []
    for name, tensor in base.items():
        start = _start(name)
        if start is None:
            continue
        short = name[start:]
        adapted = (name[:start] if prefix is None else prefix) + short
        whole = any(f".{module}." in f".{adapted}" for module in settings.trained)
        if whole and name not in replaced:
            lacking.append(adapted)
        module, is_weight = _WEIGHT.subn("", adapted)
        fits = tensor.ndim == 2 if settings.targets == _ALL_LINEAR else tensor.ndim > 1
        if is_weight and fits and settings.adapts(module):
            needed.add(module)
    missing = lacking + [
        f"{module}.lora_A and lora_B" for module in sorted(needed - modules.keys())
    ]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise UserError(
            f"{origin}: lacks weights that adapter_config.json says it has: "
            f"{', '.join(missing[:4])}{more}; save or download the adapter again"
        )
    for module in modules:
        if not settings.adapts(module):
            raise UserError(
                f"{origin}: changes {module}, which target_modules, layers_to_transform or another "
                f"field of adapter_config.json leaves out; save or download the adapter again"
            )


def _start(name: str) -> int | None:
    """Where an encoder's name begins after what is around it; None for one outside an encoder."""
    if _ENCODER_ALONE.match(name):
        return 0
    starts = [match.start(2) for match in _ENCODER.finditer(name)]
    return starts[-1] if starts else None


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


def _adapter_of(name: str) -> str:
    """The adapter's name in that of a LoRA tensor (lora_A.default.weight); "" if it has none."""
    pieces = name.split(".")
    at = next(i for i, piece in enumerate(pieces) if piece.startswith("lora_"))
    return next((piece for piece in pieces[at + 1 :] if piece not in ("weight", "bias")), "")


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
        lacking = left if left not in parts else right
        raise UserError(
            f"{origin}: {module} lacks its {lacking}; save or download the adapter again"
        )
    if not embedding and settings.bias != ("lora_B.bias" in parts):
        raise UserError(f"{origin}: lora_bias and the weights of {module} contradict each other")
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
