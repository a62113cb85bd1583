"""Models that torch runs, against the ports of the same weights and against torch itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

import speechsim_jax as ss  # noqa: E402
from speechsim_jax.errors import UserError  # noqa: E402
from speechsim_jax.models import torch_models  # noqa: E402
from tests.support.make_parity_fixtures import make  # noqa: E402
from tests.support.small_models import QUICK, waves  # noqa: E402

pytestmark = pytest.mark.parity

SETTINGS = {"measures": "lincka,maxcorr,linreg"} | QUICK
LAYOUTS = ("wav2vec2-base", "hubert-large")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny models with random weights, as transformers saves them."""
    found = {}
    for layout in LAYOUTS:
        model, extractor = make(layout, seed=3)
        folder = tmp_path_factory.mktemp("models") / layout
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        found[layout] = str(folder)
    return found


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> str:
    config = transformers.WhisperConfig(
        d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=20,
        num_mel_bins=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "whisper"
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("last_layer", ["normed", "raw"])
@pytest.mark.parametrize("batch_seconds", [3, 12])
def test_scores_are_those_of_the_port(folders, layout, last_layer, batch_seconds):
    """Of both together: every layer of one is the same layer of the other."""
    settings = SETTINGS | {"last_layer": last_layer, "batch_seconds": batch_seconds}
    folder = folders[layout]
    port = ss.load_encoder(folder, name="port")
    found = ss.compare([f"torch:{folder}", port], waves(), **settings)
    assert found.models == (layout, "port")
    assert found.attributes["frame_grid"]["averaged"] is False
    expected = ss.compare([port], waves(), **settings)
    depth = len(expected.representations)
    for name in expected.measures:
        whole = found.matrix(name).values
        for rows in (slice(depth), slice(depth, None)):
            for columns in (slice(depth), slice(depth, None)):
                apart = np.abs(whole[rows, columns] - expected.matrix(name).values)
                assert apart.max() < 1e-5, (name, rows, columns)


def test_it_is_recorded(folders):
    (folder, *_) = folders.values()
    found = ss.compare([f"torch:{folder}"], waves(2), **SETTINGS)
    record = found.attributes["models"]["wav2vec2-base"]
    assert record["source"] == f"torch:{folder}" and len(record["sha256"]) == 64
    assert record["class"] == "Wav2Vec2Model" and "torch" in record["version"]
    assert record["torch_device"] in ("cpu", "cuda:0") and record["notes"] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hooks_give_the_hidden_states(folders, layout):
    samples = np.stack([wave[:7000] for wave in waves(2).values()])

    def states(layers=()) -> np.ndarray:
        encoder = torch_models.load(folders[layout], layers=layers, last_layer="raw")
        acts = encoder.apply(samples, np.array([7000, 5000], np.int32))
        return np.asarray(acts.hidden_states)

    hidden, hooked = states(), states(["encoder.layers.*"])
    assert hooked.shape == hidden[1:].shape
    assert np.abs(hooked - hidden[1:]).max() < 1e-6
    assert np.array_equal(states(["encoder.layers.1"]), hooked[1:2])
    assert np.array_equal(states(["encoder.layers.2", "encoder.layers.0"]), hooked[[0, 2]])
    feed_forward = states(["encoder.layers.*.feed_forward"])
    assert len(feed_forward) == 3 and np.abs(feed_forward - hooked).max() > 0.1
    with pytest.raises(UserError, match=r"'layers\.\*'"):
        states(["layers.*"])


def test_the_encoder_of_an_encoder_and_decoder(whisper):
    encoder = torch_models.load(whisper)
    assert (encoder.config.hop_samples, encoder.config.longest_samples) == (320, 480_000)
    assert abs(encoder.config.first_centre_samples) <= 0.5
    assert encoder.config.frames(np.array([320, 321, 20_000])).tolist() == [1, 2, 63]
    wave = next(iter(waves().values()))
    acts = encoder.apply(wave[None], np.array([len(wave)], np.int32))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(whisper)
    model = transformers.AutoModel.from_pretrained(whisper).eval()
    features = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = model.get_encoder()(features, output_hidden_states=True).hidden_states
    frames = -(-len(wave) // 320)
    assert acts.hidden_states.shape == (3, 1, frames, 24)
    for found, theirs in zip(acts.hidden_states[:-1], expected[:-1]):
        assert np.abs(found[0] - theirs[0, :frames].numpy()).max() < 1e-5


def test_two_kinds_are_compared_on_time(whisper, folders):
    found = ss.compare([f"torch:{whisper}", folders["hubert-large"]], waves(2), **SETTINGS)
    assert found.attributes["frame_grid"]["hop_seconds"] == 0.02
    assert np.isfinite(found.matrix("lincka").values).all()
    hooked = ss.compare(
        [f"torch:{whisper}"], waves(2), torch_layers=("encoder.layers.*",), **SETTINGS
    )
    assert len(hooked.representations) == 2


class Bands(torch.nn.Module):
    """Two layers of convolutions, as a module that knows nothing of transformers."""

    def __init__(self, returned="tensor", hop=320):
        super().__init__()
        self.first = torch.nn.Conv1d(1, 12, 400, hop)
        self.second = torch.nn.Conv1d(12, 12, 1)
        self.dropout = torch.nn.Dropout(0.5)
        self.returned = returned

    def forward(self, samples):
        one = self.first(samples[:, None])
        two = self.dropout(self.second(torch.tanh(one)))
        one, two = one.transpose(1, 2), two.transpose(1, 2)
        return {
            "tensor": two,
            "tuple": (two, "more"),
            "hidden_states": {"hidden_states": [one, two]},
            "time first": two.transpose(0, 1),
            "text": "no",
            "mean": two.mean(1, keepdim=True),
        }[self.returned]


@pytest.mark.parametrize("returned, layers", [("tensor", 1), ("tuple", 1), ("hidden_states", 2)])
@pytest.mark.parametrize("hop", [320, 640])
def test_a_module(returned, layers, hop):
    torch.manual_seed(0)
    module = Bands(returned, hop)
    encoder = torch_models.of_module(module)
    assert (encoder.config.hop, encoder.config.first_centre) == (hop, 200.0)
    samples = np.stack([wave[:7000] for wave in waves(3).values()])
    acts = encoder.apply(samples, np.array([7000, 5000, 3000], np.int32))
    assert acts.hidden_states.shape[0] == layers
    with torch.no_grad():
        alone = Bands.forward(module, torch.from_numpy(samples[1:2, :5000]))
    expected = {"tuple": lambda: alone[:1], "hidden_states": lambda: alone["hidden_states"]}
    expected = expected.get(returned, lambda: [alone])()
    frames = (5000 - 400) // hop + 1
    for found, theirs in zip(acts.hidden_states, expected):
        assert np.abs(found[1, :frames] - theirs[0].numpy()).max() < 1e-6


def test_a_module_in_a_comparison(folders, tmp_path):
    torch.manual_seed(0)
    module = Bands("hidden_states")
    folder = tmp_path / "job"
    models = [module, folders["wav2vec2-base"]]
    found = ss.compare(models, waves(), statistics_dir=folder, **SETTINGS)
    assert found.models == ("Bands", "wav2vec2-base")
    assert np.isfinite(found.matrix("lincka").values).all()
    with torch.no_grad():
        module.second.weight[0, 0] += 1e-6
    with pytest.raises(UserError, match="models: Bands"):
        ss.compare(models, waves(), statistics_dir=folder, **SETTINGS)
    alone = ss.compare([module], waves(2), **SETTINGS)
    assert alone.models == ("Bands",)


@pytest.mark.parametrize(
    "returned, words",
    [("time first", r"\[24, 1, 12\]"), ("text", "str"), ("mean", "1 frames for 8000")],
)
def test_a_module_of_another_kind(returned, words):
    with pytest.raises(UserError, match=words) as caught:
        torch_models.of_module(Bands(returned))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_run(folders, tmp_path):
    model, extractor = make("wav2vec2-base", seed=3)
    lacking = tmp_path / "lacking"
    state = {k: v for k, v in model.state_dict().items() if "layers.1.attention.k_proj" not in k}
    model.save_pretrained(lacking, state_dict=state)
    with pytest.raises(UserError, match="preprocessor_config"):
        torch_models.load(str(lacking))
    extractor.save_pretrained(lacking)
    with pytest.raises(UserError, match=r"2 weights are missing .*k_proj"):
        torch_models.load(str(lacking))
    with pytest.raises(UserError, match="torch_device 'abacus'"):
        torch_models.load(folders["hubert-large"], device="abacus")
    with pytest.raises(UserError, match="Linear: cannot be run on 8000 samples"):
        torch_models.of_module(torch.nn.Linear(3, 4))
    with pytest.raises(UserError, match="no such folder"):
        torch_models.load(str(tmp_path / "nothing"))
