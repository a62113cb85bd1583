"""Encoders that are run by torch: any speech model of transformers, or a module of your own.

torch is imported when a model is asked for, never before. A model becomes an encoder like any other
object (`models.external`). Its frames are what its own length function or a few probes say; their
centres are half of what the first frame needs after the start, as padding is alike at both ends.
"""

import contextlib
import fnmatch
import functools
import hashlib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import TORCH_PREFIX, open_checkpoint
from speechsim_jax.models.config import SAMPLE_RATE_HZ, check_sample_rate
from speechsim_jax.models.external import (
    ExternalEncoder,
    Representations,
    first_length,
    measured,
)

LastLayer = Literal["normed", "raw"]

_FIRST_SAMPLES = 8_000
_MOST_SAMPLES = 160_000


@runtime_checkable
class TorchModule(Protocol):
    """A `torch.nn.Module`, as far as it can be recognised without torch.

    It is called with float32 waveforms [batch, sample], in eval mode, in which it stays.
    """

    def named_modules(self) -> Any:
        """Its parts, by name."""
        ...

    def state_dict(self) -> Any:
        """Its weights, by name."""
        ...

    def register_forward_hook(self, hook: Any) -> Any:
        """Have a function called with what it returns."""
        ...


def load(
    source: str,
    *,
    layers: Sequence[str] = (),
    last_layer: LastLayer = "normed",
    device: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ExternalEncoder:
    """A model of transformers, with the feature extractor that comes with it; no code of it is run.

    Of an encoder-decoder it is the encoder.

    Args:
        source: a folder or hub id, without the prefix.
        layers: patterns of names of modules, whose outputs are the layers in the order in which
            they run; `*` stands for anything without a dot (default: the hidden states).
        last_layer: the last hidden state: the model's final output, or the last of what
            transformers calls hidden states.
        device: in torch's words (default: "cuda" where there is one, else "cpu").
        revision: as in `load_encoder`.
        cache_dir: as in `load_encoder`.
        local_files_only: as in `load_encoder`.

    Raises:
        UserError: torch is not installed; there is no such model, or it cannot be read or run.
    """
    torch = _torch()
    checkpoint = open_checkpoint(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    label = f"{TORCH_PREFIX}{source}"
    if checkpoint.file("adapter_config.json") or not (checkpoint.folder / "config.json").is_file():
        raise UserError(f"{label}: is no model of transformers; merge and save it as one first")
    check_sample_rate(checkpoint.preprocessor)
    if not checkpoint.preprocessor:
        raise UserError(f"{label}: has no preprocessor_config.json, which says what it reads")
    sha256 = checkpoint.digest()  # fetches what there is to read below
    model, extractor = _from_pretrained(checkpoint.folder, label)
    runner = _Runner(
        label,
        model.to(_device(torch, device)).eval(),
        extractor=extractor,
        layers=layers,
        last_layer=last_layer,
    )
    return runner.as_encoder(
        source.rstrip("/").split("/")[-1],
        {"source": label, "revision": checkpoint.revision, "sha256": sha256},
    )


def of_module(
    module: TorchModule,
    *,
    layers: Sequence[str] = (),
    last_layer: LastLayer = "normed",
    device: str | None = None,
) -> ExternalEncoder:
    """A module of your own.

    It returns [batch, frame, neuron], a tuple that begins with this, or something that has
    `hidden_states`, a list of those.

    Args:
        module: reads float32 waveforms [batch, sample] at 16 kHz.
        layers: as in `load`.
        last_layer: as in `load`.
        device: in torch's words (default: where it is).

    Raises:
        UserError: torch is not installed; the module cannot be run, or returns something else.
    """
    torch = _torch()
    model: Any = module
    if device is not None:
        model = model.to(_device(torch, device))
    name = type(module).__name__
    runner = _Runner(name, model.eval(), layers=layers, last_layer=last_layer)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return runner.as_encoder(name, {"source": kind, "sha256": _digest(torch, model)})


class _Runner:
    """Runs a model of torch: one utterance at a time, unless its padding is masked.

    Args:
        label: the model in messages.
        model: in eval mode, on its device.
        extractor: its feature extractor; None for one that reads waveforms as they are.
        layers: patterns of names of modules.
        last_layer: which last hidden state is taken.
    """

    def __init__(
        self,
        label: str,
        model: Any,
        *,
        extractor: Any = None,
        layers: Sequence[str] = (),
        last_layer: LastLayer = "normed",
    ):
        self._torch = _torch()
        self._label, self._model, self._extractor = label, model, extractor
        self._last_layer = last_layer
        self._hooked = _matching(label, model, layers)
        config = getattr(model, "config", None)
        is_pretrained = config is not None and hasattr(model, "main_input_name")
        self._options = {"output_hidden_states": True} if is_pretrained and not layers else {}
        self._called = model.get_encoder() if getattr(config, "is_encoder_decoder", 0) else model
        self._reads_waveforms = extractor is None or "input_values" in extractor.model_input_names
        self._masked = bool(
            extractor is not None
            and self._reads_waveforms
            and getattr(extractor, "return_attention_mask", False)
        )
        self.longest_samples = getattr(extractor, "n_samples", None)
        first = next(itertools.chain(model.parameters(), model.buffers()), None)
        self._device = "cpu" if first is None else first.device
        self._count = functools.cache(self._frames_of_noise)
        self._hop, self._first = self._times()

    def as_encoder(self, name: str, provenance: dict[str, Any]) -> ExternalEncoder:
        """The model as an encoder.

        Args:
            name: label of the model in results.
            provenance: where it comes from.
        """
        import transformers

        kind = type(self._model)
        facts = {
            "class": kind.__qualname__,
            "module": kind.__module__,
            "version": f"torch {self._torch.__version__}, transformers {transformers.__version__}",
            "torch_device": str(self._device),
        }
        return measured(self, name, facts | provenance, self._count)

    def representations(self, waveforms: list[np.ndarray], sample_rate: int, /) -> Representations:
        """As `external.Representing`."""
        apart = [waveforms] if self._masked else [[waveform] for waveform in waveforms]
        states = [of_one for several in apart for of_one in self._encoded(several)]
        frames = max(of_one.shape[1] for of_one in states)
        layers, _, neurons = states[0].shape
        arrays = np.zeros((layers, len(states), frames, neurons), np.float32)
        mask = np.zeros((len(states), frames), bool)
        for row, of_one in enumerate(states):
            arrays[:, row, : of_one.shape[1]] = of_one
            mask[row, : of_one.shape[1]] = True
        times = (self._first + self._hop * np.arange(frames)) / sample_rate
        return Representations(arrays, mask, times)

    def _encoded(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """[layer, frame, neuron] of each utterance, without what is padding."""
        torch = self._torch
        if self._extractor is None:
            inputs: dict[str, Any] = {}
            arguments = [torch.from_numpy(np.stack(waveforms)).to(self._device)]
            lengths = None
        else:
            extras = {} if self._reads_waveforms else {"return_attention_mask": True}
            if self._masked:
                extras = {"padding": True}
            found = self._extractor(
                waveforms, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **extras
            )
            inputs, arguments = found.to(self._device), []
            lengths = inputs.get("attention_mask")
        with torch.no_grad(), self._recorded() as recorded:
            output = self._called(*arguments, **inputs, **self._options)
        layers = recorded if self._hooked else self._hidden_states(output)
        states = self._stacked(layers, len(waveforms))
        counts = [states.shape[2]] * len(waveforms)
        if lengths is not None and not bool(lengths.all()):
            counts = self._without_padding(lengths, states.shape[2])
        arrays = states.float().cpu().numpy()
        return [arrays[:, row, :count] for row, count in enumerate(counts)]

    def _without_padding(self, mask: Any, frames: int) -> list[int]:
        """Frames of utterances of which the model's input has so many."""
        lengths = [mask.shape[1], *mask.sum(1).tolist()]
        function = getattr(self._called, "_get_feat_extract_output_lengths", None)
        if function is not None:
            lengths = function(self._torch.tensor(lengths)).tolist()
        if lengths[0] != frames:
            raise UserError(f"{self._label}: which of its {frames} frames are padding is not known")
        return lengths[1:]

    def _hidden_states(self, output: Any) -> list[Any]:
        """The layers in what the model returns."""
        states = getattr(output, "hidden_states", None)
        if states is None and isinstance(output, dict):
            states = output.get("hidden_states")
        if states is None:
            return [output[0] if isinstance(output, tuple | list) else output]
        states = list(states)
        last = getattr(output, "last_hidden_state", None)
        if self._last_layer == "normed" and last is not None and last.shape == states[-1].shape:
            states[-1] = last
        return states

    def _stacked(self, layers: Sequence[Any], batch: int) -> Any:
        """[layer, batch, frame, neuron]; raises UserError for what is none."""
        torch = self._torch
        names = self._hooked or [f"output {k}" for k in range(len(layers))]
        if not layers:
            raise UserError(f"{self._label}: none of {', '.join(names)} was run")
        for number, layer in enumerate(layers):
            name = names[min(number, len(names) - 1)]
            if not isinstance(layer, torch.Tensor) or layer.ndim != 3 or len(layer) != batch:
                what = list(layer.shape) if hasattr(layer, "shape") else type(layer).__name__
                raise UserError(
                    f"{self._label}: {name} is {what} for {batch} waveforms; expected [batch, "
                    "frame, neuron]"
                )
            if layer.shape != layers[0].shape:
                raise UserError(
                    f"{self._label}: {name} is {list(layer.shape)} and the first layer "
                    f"{list(layers[0].shape)}; layers of one model have one shape"
                )
        return torch.stack([*layers])

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[list[Any]]:
        """What the modules that are layers return, in the order in which they run."""
        outputs: list[Any] = []

        def note(_module: Any, _arguments: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple | list) else output)

        modules = dict(self._model.named_modules())
        hooks = [modules[name].register_forward_hook(note) for name in self._hooked]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _frames_of_noise(self, samples: int) -> int:
        """Frames of an input of so many samples, by the model's own function or by running it."""
        function = getattr(self._called, "_get_feat_extract_output_lengths", None)
        if function is not None and self._extractor is not None and not self._hooked:
            if self._reads_waveforms:
                return int(function(self._torch.tensor([samples]))[0])
            found = self._extractor(
                np.zeros(samples, np.float32),
                sampling_rate=SAMPLE_RATE_HZ,
                return_tensors="pt",
                return_attention_mask=True,
            )
            if "attention_mask" in found:
                return int(function(found["attention_mask"].sum(1))[0])
        return self._frames_by_running(samples)

    def _frames_by_running(self, samples: int) -> int:
        """Frames of noise of so many samples."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(samples)
        return self._encoded([noise.astype(np.float32)])[0].shape[1]

    def _times(self) -> tuple[int, float]:
        """Samples between two frames, and where the first is centred."""
        try:
            frames = self._frames_by_running(_FIRST_SAMPLES)
            enough = 2 * _FIRST_SAMPLES
            while self._count(enough) < frames + 2 and enough < _MOST_SAMPLES:
                enough *= 2
            if self._count(enough) < frames + 2:
                raise UserError(
                    f"{self._label}: gives {frames} frames for {_FIRST_SAMPLES} samples, and "
                    f"{self._count(enough)} for {enough}; expected one for every so many samples"
                )
            one = first_length(self._count, frames + 1, _FIRST_SAMPLES, enough)
            two = first_length(self._count, frames + 2, one, enough)
        except UserError:
            raise
        except Exception as error:  # whatever a model raises that is none of speech
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{self._label}: cannot be run on {_FIRST_SAMPLES} samples of noise "
                f"({type(error).__name__}: {reason})"
            ) from error
        hop = two - one
        return hop, (one - frames * hop) / 2


def _torch() -> Any:
    """The library torch; raises UserError where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            "a model of torch needs torch, which is not installed: pip install "
            "'speechsim_jax[torch]'"
        ) from error


def _device(torch: Any, name: str | None) -> Any:
    """A device of torch; raises UserError for one that there is not."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises of several kinds, by device
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"torch_device {name!r} cannot be used: {reason}") from error
    return device


def _from_pretrained(folder: Path, label: str) -> tuple[Any, Any]:
    """A model in float32 and its feature extractor; raises UserError where weights are missing."""
    import transformers
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of reading from disk, which nobody waits for
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, **options)
        model, report = transformers.AutoModel.from_pretrained(
            folder, dtype="float32", output_loading_info=True, **options
        )
    except Exception as error:  # of transformers and what it calls, of any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{label}: transformers cannot load it: {reason}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    decoder = "decoder." if model.config.is_encoder_decoder else None
    missing = [
        name
        for name in sorted(report["missing_keys"])
        # What only training reads, and what is not run here.
        if not name.endswith("masked_spec_embed") and not (decoder and decoder in name)
    ]
    if missing or report["mismatched_keys"]:
        names = missing or [str(key) for key in report["mismatched_keys"]]
        raise UserError(f"{label}: {len(names)} weights are missing or misshapen, e.g. {names[0]}")
    return model, extractor


def _matching(label: str, model: Any, patterns: Sequence[str]) -> list[str]:
    """Names of modules that match; raises UserError for a pattern that none does."""

    def matches(name: str, pattern: str) -> bool:
        parts, of_pattern = name.split("."), pattern.split(".")
        return len(parts) == len(of_pattern) and all(map(fnmatch.fnmatchcase, parts, of_pattern))

    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(
                f"{label}: no module is called {pattern!r}; there are {', '.join(names[:4])}, ..."
            )
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def _digest(torch: Any, model: Any) -> str:
    """The SHA-256 of names and bits of all weights, in hexadecimal."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            total.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
            total.update(bits.numpy().data)
    return total.hexdigest()
