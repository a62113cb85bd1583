"""Fine-tuned models, from transformers and back: `python -m pytest -m parity -s`."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertProcessor,
    Wav2Vec2Processor,
)

from speechsim_jax.models.recognizer import load_recognizer  # noqa: E402
from tests.support import tolerances  # noqa: E402
from tests.support.live_models import (  # noqa: E402
    assert_same_weights,
    loaded,
    logits_of,
    noise,
    their_logits,
)
from tests.support.make_parity_fixtures import LAYOUTS, make, make_tokenizer  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "whisper"])
def test_fine_tuned_folders_both_ways(layout, tmp_path):
    """save_pretrained -> load_recognizer -> save -> from_pretrained, on one utterance."""
    model, extractor = make(layout, seed=8, ctc=True)
    wave = noise(np.random.default_rng(9), 4000, extractor)
    with torch.no_grad():  # tokens that are equally likely on average
        model.lm_head.bias -= their_logits(model, extractor, wave).mean((0, 1))
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(layout, folder)
    mel = isinstance(extractor, SeamlessM4TFeatureExtractor)
    processor_class = Wav2Vec2BertProcessor if mel else Wav2Vec2Processor
    processor_class(extractor, tokenizer).save_pretrained(folder)
    recognizer = load_recognizer(folder)
    expected = their_logits(model, extractor, wave)
    found = logits_of(recognizer, wave)
    error = float(np.abs(np.asarray(found) - expected.numpy()).max())
    print(f"{layout}: logits {error:.1e}")
    assert error <= tolerances.PARITY
    assert np.array_equal(np.asarray(found).argmax(-1), expected.argmax(-1))
    texts = tokenizer.batch_decode(expected.argmax(-1))
    assert recognizer.transcribe([wave]) == texts and texts != [""]

    folder = recognizer.save(tmp_path / "ours")
    saved, saved_extractor = loaded(type(model), folder)
    assert_same_weights(model, saved)
    again = their_logits(saved, saved_extractor, wave)
    assert torch.equal(again, expected)
    processor = processor_class.from_pretrained(folder)
    assert processor.batch_decode(again.argmax(-1)) == texts
    assert saved.config.pad_token_id == recognizer.blank


def test_a_language_of_mms(tmp_path):
    """transformers puts the adapters and the head of the language in place, and so do we."""
    model, extractor = make("mms", seed=8, ctc=True)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    make_tokenizer("mms", tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    more = vocabulary | {"Ä": len(vocabulary)}
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": vocabulary, "deu": more}))
    other, _ = make("mms", seed=9, ctc=True)
    other.lm_head = torch.nn.Linear(other.config.hidden_size, len(more))
    own = {name: tensor.detach() for name, tensor in other._get_adapters().items()}
    save_file(own, tmp_path / "adapter.deu.safetensors", {"format": "pt"})

    german = (
        type(model)
        .from_pretrained(
            tmp_path, target_lang="deu", ignore_mismatched_sizes=True, attn_implementation="eager"
        )
        .eval()
    )
    wave = noise(np.random.default_rng(9), 4000)
    logits = {}
    for source, theirs_ in ((f"{tmp_path}#deu", german), (f"{tmp_path}#eng", model)):
        if source.endswith("eng"):
            eng = {name: tensor.detach() for name, tensor in model._get_adapters().items()}
            save_file(eng, tmp_path / "adapter.eng.safetensors", {"format": "pt"})
        recognizer = load_recognizer(source)
        expected = their_logits(theirs_, extractor, wave).numpy()
        found = logits_of(recognizer, wave)
        error = float(np.abs(found - expected).max())
        print(f"{source}: logits {error:.1e}")
        assert error <= tolerances.PARITY
        logits[source] = expected
    first, second = logits.values()
    assert first.shape[-1] == second.shape[-1] + 1
    assert np.abs(first[..., :-1] - second).max() > 0.1
    # what we save is the language, with its tokens, for transformers too
    recognizer = load_recognizer(f"{tmp_path}#deu")
    folder = recognizer.save(tmp_path / "saved")
    saved, saved_extractor = loaded(type(model), folder)
    assert torch.equal(
        their_logits(saved, saved_extractor, wave), their_logits(german, extractor, wave)
    )
    processor = Wav2Vec2Processor.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids("Ä") == len(vocabulary)
