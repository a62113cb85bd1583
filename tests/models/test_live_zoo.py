"""The zoo's folders as transformers and torch read them. Needs the [parity] extra."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

import speechsim_jax as ss  # noqa: E402
from speechsim_jax.models import zoo  # noqa: E402
from tests.support import tolerances  # noqa: E402
from tests.support.parity import relative_error  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", zoo.names())
def test_transformers_reads_it_as_we_do(name):
    """No key is missing or left over; every hidden state is the same."""
    folder = zoo.folder(name)
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, report = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    wave = np.random.default_rng(1).standard_normal(24_000).astype(np.float32)
    wave = np.convolve(wave, np.ones(8, np.float32) / 8, "same")  # louder below than above
    values = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_values"]
    base = getattr(model, model.base_model_prefix, model).eval()
    with torch.no_grad():
        theirs = base(values, output_hidden_states=True)
    encoder = ss.load_encoder(folder)
    raw = np.asarray(encoder([wave], last_layer="raw").hidden_states[:, 0])
    normed = np.asarray(encoder([wave]).hidden_states[-1, 0])
    pairs = [*zip(raw, (state[0].numpy() for state in theirs.hidden_states), strict=True)]
    pairs.append((normed, theirs.last_hidden_state[0].numpy()))
    errors = [relative_error(a, b) for a, b in pairs]
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    print(f"{name}: {' '.join(f'{error:.1e}' for error in errors)}, of up to {largest:.0f}")
    assert max(errors) <= tolerances.ZOO_RELATIVE
