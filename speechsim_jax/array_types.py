"""The axis legend, and the array types that signatures are written in.

| axis       | meaning                                                             |
|------------|---------------------------------------------------------------------|
| `batch`    | utterances of a batch, filler rows included                         |
| `sample`   | audio samples at 16 kHz                                             |
| `frame`    | encoder frames (of most models 20 ms apart, 25 ms wide)             |
| `query`, `key` | frames, as the two sides of an attention map                    |
| `layer`    | hidden states: 0 is the input of the first transformer layer        |
| `block`    | transformer layers: block l makes hidden state l                    |
| `neuron`   | dimensions of one hidden state                                      |
| `head`     | attention heads of one block                                        |
| `row`      | frames gathered from many utterances, as samples of a statistic     |
| `pair`     | layer pairs of two models                                           |
| `representation` | one layer of one model, as the unit that is compared          |
| `x`, `y`   | representations, or neurons of the first and second one of a pair   |

A leading underscore marks an axis whose size may differ from array to array in one signature.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

Waveforms = Float32[jax.Array | np.ndarray, "batch sample"]
Lengths = Int32[jax.Array | np.ndarray, "*batch"]

Hidden = Float[jax.Array, "batch frame _neuron"]
HiddenStates = Float[jax.Array, "_layer batch frame _neuron"]
Attentions = Float[jax.Array, "block batch head query key"]
Projections = Float[jax.Array, "block batch frame head neuron"]
Gates = Float[jax.Array, "block batch head frame"]
PositionBias = Float[jax.Array, "head distance"]
PositionKeys = Float[jax.Array, "block _head distance neuron"]
FrameMask = Bool[jax.Array, "batch frame"]

ModelRows = Float[jax.Array, "_layer row _neuron"]
