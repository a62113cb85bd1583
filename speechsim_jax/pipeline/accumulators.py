"""The statistics of one pass, side by side: all see every batch, and are finished together."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MeasureSelection
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline import attention_inputs, costs
from speechsim_jax.settings import Settings
from speechsim_jax.statistics.accumulator import BatchRows
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape, Tile
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import LayerIndex, PassMoments
from speechsim_jax.statistics.sample import SampleAccumulator
from speechsim_jax.statistics.store import StoredStatistics

_log = logging.getLogger(__name__)


class Accumulators:
    """Everything that the chosen measures read, accumulated batch by batch.

    `layers`: hidden states that are compared, by model; attention layer l makes hidden state l.
    `listened`: the utterances whose attention is compared. `places`: of the representations among
    those of all passes. `tiles`: the layer pairs that this pass accumulates.
    """

    def __init__(
        self,
        chosen: MeasureSelection,
        encoders: Sequence[SpeechEncoder],
        layers: Sequence[tuple[int, ...]],
        options: Settings,
        listened: Corpus,
        mesh: Mesh,
        places: tuple[LayerIndex, ...],
        tiles: tuple[Tile, ...],
    ):
        self._places = places
        streams = tuple(
            ModelShape(len(ls), e.config.hidden_size) for e, ls in zip(encoders, layers)
        )
        self._config = encoders[0].config
        self._names = [encoder.name for encoder in encoders]
        # Weights, what they are rounded to, and everything that config.json says.
        self._models = [
            [e.provenance.get("sha256"), e.provenance.get("kernels"), _digest(e.config)]
            for e in encoders
        ]
        self._options = options
        self._wanted: tuple[str, ...] = ()
        self._moments = self._sample = self._attention = None
        if chosen.measures:
            self._moments = MomentsAccumulator(
                streams, options.rows_per_update, options.stats_dtype, mesh=mesh, tiles=tiles
            )
        if any(measure.statistic == "sample" for measure in chosen.measures):
            self._sample = SampleAccumulator(streams, options.sample_frames, options.seed)
        if chosen.attention:
            self._blocks = attention_blocks(encoders, layers)
            self._wanted = attention_inputs.wanted_sums(chosen.attention)
            heads = tuple(
                ModelShape(len(blocks), e.config.num_attention_heads)
                for e, blocks in zip(encoders, self._blocks)
            )
            self._listened = self._listen(
                listened, options, sum(s.layers * s.neurons for s in heads)
            )
            self._attention = AttentionAccumulator(
                heads, attention_inputs.rows_of_projections, self._wanted, options.stats_dtype,
                mesh, attention_inputs.BATCH_AXIS,
            )  # fmt: skip

    def _listen(self, corpus: Corpus, options: Settings, heads: int) -> frozenset[str]:
        """The ids of these utterances; says what their attention will cost."""
        seconds = np.array([source.seconds or 0.0 for source in corpus.sources])
        pieces = np.maximum(np.ceil(seconds / options.max_seconds), 1)
        frames = seconds / pieces * 16_000 / self._config.hop_samples
        cost = costs.estimate(heads, int(np.sum(pieces * frames**2)), self._wanted)
        _log.info(
            "attention of %d utterances, %.1f s: %s", len(corpus.sources), seconds.sum(), cost
        )
        return frozenset(source.id for source in corpus.sources)

    def append(self, acts: Sequence[Activations], batch: batching.Batch, rows: BatchRows) -> None:
        """What all models say of a batch, and which of its rows count."""
        hidden = tuple(a.hidden_states for a in acts)
        if self._moments is not None:
            self._moments.append(hidden, rows.positions)
        if self._sample is not None:
            self._sample.append(hidden, rows)
        if self._attention is not None:
            lengths = np.asarray(self._config.frames(batch.lengths), np.int32)
            for row, whole in enumerate(rows.wholes):
                lengths[row] *= whole in self._listened
            if lengths.any():
                parts = tuple(
                    attention_inputs.projected(a, blocks, lengths)
                    for a, blocks in zip(acts, self._blocks)
                )
                self._attention.append(parts, lengths, acts[0].frame_mask.shape[1])

    def identity(self) -> dict[str, Any]:
        """Everything but the audio that has a say in the statistics, for JSON."""
        options = dataclasses.asdict(self._options)
        for later in ("rank_tolerance", "strict"):
            del options[later]
        return {
            "models": dict(zip(self._names, self._models)),
            "statistics": list(self._streams),
            "attention": list(self._wanted),
            **options,
        }

    @property
    def _streams(self) -> dict[str, MomentsAccumulator | SampleAccumulator | AttentionAccumulator]:
        named = ("moments", self._moments), ("sample", self._sample), ("attention", self._attention)
        return {name: stream for name, stream in named if stream is not None}

    def snapshot(self) -> dict[str, Any]:
        """All statistics as arrays on the host, with what is still in buffers."""
        return {name: stream.snapshot() for name, stream in self._streams.items()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of the same statistics."""
        for name, stream in self._streams.items():
            stream.restore(snapshot[name])

    def wait(self) -> None:
        """Block until everything appended so far has been computed."""
        for statistic in (self._moments, self._attention):
            if statistic is not None:
                statistic.wait()

    def close(self) -> StoredStatistics:
        """What has been accumulated; nothing can be appended any more."""
        moments = self._moments and self._moments.close()
        return StoredStatistics(
            self._places,
            moments and PassMoments.held(moments, self._places),
            self._sample and self._sample.finish(),
            self._attention and self._attention.close(),
        )


def _digest(config: EncoderConfig) -> str:
    """Short, and another one for another configuration."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:16]


def attention_blocks(
    encoders: Sequence[SpeechEncoder], layers: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Transformer layers whose attention is compared; raises UserError for a model with none."""
    blocks = [tuple(layer for layer in ls if layer > 0) for ls in layers]
    for encoder, found in zip(encoders, blocks):
        if not found:
            raise UserError(f"{encoder.name}: layer 0 has no attention; --layers needs another")
    return blocks
