"""The frames that models are compared on: those of the slowest, and the others' means within each.

Frame j of the grid is centred at sample `first_centre_samples` + j `hop_samples` and reaches half a
hop to either side. A model of the same hop has one frame centred within each, a faster one several,
whose mean is taken; one that is centred on an edge counts half on either side, without which
the frames of a model of twice the rate would lie a quarter of a frame too early:

    grid[j] = sum over t of w x[t] / sum of w,  w = 1 if |centre(t) - centre(j)| < hop/2, 1/2 if =

A frame of the grid is valid where every model has a whole frame, or both halves, within it. Where
all models make the same frames, the grid is theirs and nothing is averaged.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from speechsim_jax.array_types import FrameMask, HiddenStates
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig


@dataclasses.dataclass(frozen=True)
class FrameGrid:
    """The frames on which models are compared; made by `of`.

    Attributes:
      hop_samples: samples between the centres of two frames.
      first_centre_samples: where the first frame is centred.
      models: configurations of all models, each once.
      slowest: label of the model whose frames these are.
    """

    hop_samples: int
    first_centre_samples: float
    models: tuple[EncoderConfig, ...]
    slowest: str

    @classmethod
    def of(cls, models: Mapping[str, EncoderConfig]) -> "FrameGrid":
        """The grid of a comparison, the same for every order of its models.

        It has the frames of the model with the longest hop. Of several it is the one whose first
        frame is centred last; frames before the first that every model has are left out.

        Args:
          models: configurations by the models' labels.
        """

        def place(name: str) -> tuple[int, float]:
            return models[name].hop_samples, models[name].first_centre_samples

        slowest = max(models, key=place)
        hop, first = place(slowest)
        configs = tuple(dict.fromkeys(models.values()))
        grid = cls(hop, first, configs, slowest)
        skipped = max(int(np.floor(grid._place(config, 0))) for config in configs)
        return dataclasses.replace(grid, first_centre_samples=first + skipped * hop)

    @functools.cached_property
    def is_shared(self) -> bool:
        """Whether all models make these frames, of an input of any length."""
        first = self.models[0]
        mine = self.hop_samples, self.first_centre_samples
        return mine == (first.hop_samples, first.first_centre_samples) and all(
            config.makes_frames_of(first) for config in self.models
        )

    def frames(self, samples: Any) -> Any:
        """Valid frames of an input: those that every model has a frame within.

        Args:
          samples: length of the input; an integer or an integer array (numpy).
        """
        if self.is_shared:
            return self.models[0].frames(samples)
        last = [
            np.where(count > 0, np.ceil(self._place(config, count - 1)) - 1, -1)
            for config in self.models
            for count in [np.asarray(config.frames(samples))]
        ]
        return np.maximum(np.min(last, axis=0) + 1, 0).astype(np.int64)

    @functools.cached_property
    def window_samples(self) -> int:
        """Samples of the shortest input that has a frame."""
        short, enough = 0, max(config.window_samples for config in self.models)
        while self.frames(enough) < 1:
            short, enough = enough, 2 * enough
        while enough - short > 1:
            middle = (short + enough) // 2
            short, enough = (short, middle) if self.frames(middle) > 0 else (middle, enough)
        return enough

    @property
    def longest_samples(self) -> int | None:
        """Samples of the longest input that all models take; None for any."""
        limits = [c.longest_samples for c in self.models if c.longest_samples is not None]
        return min(limits, default=None)

    def frame_centres_seconds(self, count: int) -> Float64[np.ndarray, " frame"]:
        """Centre of each of the first `count` frames."""
        return (np.arange(count) * self.hop_samples + self.first_centre_samples) / SAMPLE_RATE_HZ

    def onto(self, config: EncoderConfig, activations: Activations, samples: int) -> Activations:
        """A model's hidden states, averaged within each frame of the grid.

        Args:
          config: of the model.
          activations: of a padded batch.
          samples: of a row of this batch, padding included.

        Returns:
          The same if all models make the frames of the grid. Else hidden states and mask on the
          grid, and nothing of the rest, which has no meaning there.
        """
        if self.is_shared:
            return activations
        numbers, weights = self.within(config, samples)
        states, mask = _means(activations.hidden_states, activations.frame_mask, numbers, weights)
        return Activations(states, mask)

    def within(
        self, config: EncoderConfig, samples: int
    ) -> tuple[Int[np.ndarray, "frame slot"], Float32[np.ndarray, "frame slot"]]:
        """Which frames of a model lie within each frame of the grid.

        Args:
          config: of the model.
          samples: length of the input.

        Returns:
          Numbers of the model's frames in ascending order, and their weights: 1, 1/2, or 0 for
          none.
        """
        place = self._place(config, np.arange(int(config.frames(samples))))
        number, frames = np.arange(len(place)), int(self.frames(samples))
        edge = place == np.floor(place)
        numbers = np.concatenate([number, number[edge]])
        places = np.concatenate([np.floor(place), place[edge] - 1]).astype(np.int64)
        weights = np.concatenate([np.where(edge, 0.5, 1), np.full(edge.sum(), 0.5)])
        inside = (places >= 0) & (places < frames)
        order = np.lexsort((numbers, places))
        order = order[inside[order]]
        numbers, places, weights = numbers[order], places[order], weights[order]
        slot = np.arange(len(places)) - np.searchsorted(places, places)
        shape = frames, int(slot.max(initial=0)) + 1
        found, weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        found[places, slot], weight[places, slot] = numbers, weights
        return found, weight

    def record(self) -> dict[str, Any]:
        """What the result says: whose frames, how long, and what was averaged."""
        return {
            "of": self.slowest,
            "hop_seconds": self.hop_samples / SAMPLE_RATE_HZ,
            "first_centre_seconds": self.first_centre_samples / SAMPLE_RATE_HZ,
            "averaged": not self.is_shared,
        }

    def _place(self, config: EncoderConfig, frame: Any) -> Any:
        """Where a model's frame is centred: in frame j from j to j + 1, on an edge if whole."""
        centre = config.first_centre_samples + config.hop_samples * frame
        return (centre - self.first_centre_samples) / self.hop_samples + 0.5


@jax.jit
def _means(
    states: HiddenStates,
    mask: FrameMask,
    numbers: Int[Array | np.ndarray, "place slot"],
    weights: Float32[Array | np.ndarray, "place slot"],
) -> tuple[Float[Array, "_layer batch place _neuron"], Bool[Array, "batch place"]]:
    """Means over the valid frames within each frame of the grid, and where there are any.

    Of differences from the first, so that no digits are lost to a large mean.
    """
    at = jnp.asarray(numbers)
    weight = jnp.where(mask[:, at], weights, 0)
    first = states[:, :, at[:, 0]]
    total = jnp.zeros_like(first)
    for slot in range(1, at.shape[1]):
        term = weight[:, :, slot, None] * (states[:, :, at[:, slot]] - first)
        total += jnp.where(weight[:, :, slot, None] > 0, term, 0)  # what is no frame may be NaN
    sums = weight.sum(-1)
    return first + total / jnp.where(sums > 0, sums, 1)[:, :, None], sums > 0
