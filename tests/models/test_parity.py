"""The tiny torch models of tests/data/parity: we compute what they computed.

Most runs are not jitted: an operation is compiled once for all layouts, a whole model for each.
Then the tests are tested: any two weights of the same shape are swapped, and parity must break.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from speechsim_jax.errors import UserError
from speechsim_jax.models import attention, weight_names
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import forward
from speechsim_jax.models.families import wavlm
from speechsim_jax.models.families.family import ParameterPath, Weight
from speechsim_jax.models.load import load_encoder
from speechsim_jax.pipeline import attention_inputs
from speechsim_jax.pipeline.attention_inputs import projected, rows_of_projections
from tests.support import tolerances
from tests.support.parity import EVERYTHING, FOLDER, LAYOUTS, fixture

CONFORMERS = ("conformer-no-positions", "conformer-relative", "conformer-rotary")
# With a norm after the last layer.
STABLE = (
    *("hubert-large", "mms", "unispeech", "wav2vec2-large", "wavlm-large", "whisper"),
    *CONFORMERS,
)
WINDOWED = ("whisper",)  # reads a window of fixed length, silence behind the utterance included
WAVLM = ("wavlm-base", "wavlm-large")

# Those of which everything is fast enough, one of each norm and with a bias of positions.
COMMON = ("hubert-large", "wav2vec2-base", "wavlm-base")


def of_layouts(layouts: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each of them, slow for all but the common ones."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "layout", [name if name in COMMON else pytest.param(name, marks=slow) for name in layouts]
    )


each_layout = of_layouts(LAYOUTS)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.size
    return float(np.max(np.abs(a - b)))


def errors(found: Activations, row: int, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest absolute error of everything that torch computed for the utterance in `row`."""
    frames = len(expected["last_hidden_state"])
    hidden = np.asarray(found.hidden_states[:, row, :frames])
    keys = np.asarray(found.keys[:, row, :frames])
    theirs = expected["attentions"]
    queries, window = theirs.shape[-2:]
    attentions = np.asarray(found.attentions[:, row, :, :queries, :window])
    if found.gates is not None:  # transformers gives WavLM's mean over heads, H times
        attentions, theirs = attentions.mean(1), theirs[:, 0]
    assert (found.features is None) == ("features" not in expected)
    features = {}
    if found.features is not None:
        ours = np.asarray(found.features[row, :frames])
        features = {"features": distance(ours, expected["features"])}
    return features | {
        "hidden_states": distance(hidden[:-1], expected["hidden_states"][:-1]),
        "last_hidden_state": distance(hidden[-1], expected["last_hidden_state"]),
        "keys": distance(keys.reshape(*keys.shape[:2], -1), expected["keys"]),
        "attentions": distance(attentions, theirs),
    }
    if found.features is not None:
        features = np.asarray(found.features[row, :frames])
        errors["features"] = distance(features, expected["features"])
    return errors


def assert_parity(found: dict[str, float]) -> None:
    worst = np.max([*found.values()])  # max() may miss what is not a number
    assert worst <= tolerances.PARITY, found
    assert found["attentions"] <= tolerances.PARITY_ATTENTION, found


@pytest.mark.slow
@each_layout
@pytest.mark.parametrize("index", range(3))
def test_alone(layout, index):
    case = fixture(layout)
    found = errors(case.alone(index), 0, case.expected[index])
    print(found)
    assert_parity(found)


@pytest.mark.slow
@each_layout
def test_in_a_padded_batch(layout):
    case = fixture(layout)
    for row, expected in enumerate(case.expected):
        found = errors(case.together, row, expected)
        print(found)
        assert_parity(found)


@each_layout
def test_frame_mask_and_padded_keys(layout):
    case = fixture(layout)
    frames = case.encoder.config.frames(case.batch[1])
    mask = np.asarray(case.together.frame_mask)
    assert mask.sum(1).tolist() == frames.tolist()
    assert frames[-1] == 0  # the filler row
    attentions = np.asarray(case.together.attentions)
    for row, count in enumerate(frames[:-1]):
        assert attentions[:, row, :, :, count:].any() == (layout in WINDOWED)
        np.testing.assert_allclose(attentions[:, row].sum(-1), 1, atol=1e-6)


@each_layout
def test_rows_of_maps_from_queries_and_keys(layout):
    """What attention statistics read: rows over the utterance's own frames."""
    case = fixture(layout)
    acts, lengths = case.together, case.encoder.config.frames(case.batch[1])
    blocks = range(1, case.encoder.config.num_hidden_layers + 1)
    inputs = (attention_inputs.projected(acts, blocks, lengths),)
    for row, count in enumerate(lengths[:-1]):
        found = attention_inputs.rows_of_projections(inputs, jnp.int32(row), jnp.arange(count))
        maps = np.asarray(acts.attentions)[:, row, :, :count, :count]
        expected = maps / maps.sum(-1, keepdims=True)
        found = np.asarray(found).reshape(*maps.shape[:2], count, -1)
        assert distance(found[..., :count], expected) <= tolerances.PARITY_ATTENTION
        assert not found[..., count:].any()


# --- WavLM's attention, head by head --------------------------------------------------------------


def bucket(key: int, query: int, num_buckets: int, max_distance: int) -> int:
    """T5's bucket of a distance, in exact steps: half per sign, exact, then logarithmic."""
    half = num_buckets // 2
    exact = half // 2
    size = abs(key - query)
    if size >= exact:
        share = math.log(size / exact) / math.log(max_distance / exact)
        size = min(exact + math.floor(share * (half - exact)), half - 1)
    return size + half * (key > query)


def layer_norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + shift


def wavlm_attentions(layout: str, hidden_states: np.ndarray) -> np.ndarray:
    """Chen et al. 2022, section III-A, from the checkpoint's tensors; float64, plain loops.

    g = x W + b in four parts summed, for update a and reset b: gate = a (b c - 1) + 2 (with
    sigmoids), and the first layer's embedding of the distance is added gate times.
    """
    tensors = {
        name: value.astype(np.float64)
        for name, value in load_file(FOLDER / layout / "model.safetensors").items()
    }
    config = fixture(layout).encoder.config
    heads, size, frames = config.num_attention_heads, config.head_size, hidden_states.shape[1]
    table = tensors["encoder.layers.0.attention.rel_attn_embed.weight"]
    buckets = [
        [bucket(k, q, config.num_buckets, config.max_bucket_distance) for k in range(frames)]
        for q in range(frames)
    ]
    maps = np.zeros((config.num_hidden_layers, heads, frames, frames))
    for layer, head in np.ndindex(*maps.shape[:2]):
        at = f"encoder.layers.{layer}."
        x = hidden_states[layer].astype(np.float64)
        if config.do_stable_layer_norm:
            x = layer_norm(x, tensors[at + "layer_norm.weight"], tensors[at + "layer_norm.bias"])
        part = slice(head * size, (head + 1) * size)
        at += "attention."
        query, key = (
            x @ tensors[f"{at}{name}.weight"][part].T + tensors[f"{at}{name}.bias"][part]
            for name in ("q_proj", "k_proj")
        )
        linear = tensors[at + "gru_rel_pos_linear.weight"], tensors[at + "gru_rel_pos_linear.bias"]
        eight = x[:, part] @ linear[0].T + linear[1]
        update, reset = (1 / (1 + np.exp(-eight[:, i : i + 4].sum(1))) for i in (0, 4))
        gate = update * (reset * tensors[at + "gru_rel_pos_const"][0, head, 0, 0] - 1) + 2
        scores = query @ key.T / math.sqrt(size) + gate[:, None] * table[buckets, head]
        powers = np.exp(scores - scores.max(1, keepdims=True))
        maps[layer, head] = powers / powers.sum(1, keepdims=True)
    return maps


@pytest.mark.slow
@pytest.mark.parametrize("layout", WAVLM)
@pytest.mark.parametrize("index", range(3))
def test_wavlm_heads(layout, index):
    case = fixture(layout)
    expected = wavlm_attentions(layout, case.expected[index]["hidden_states"])
    frames = expected.shape[-1]
    alone = np.asarray(case.alone(index).attentions)[:, 0]
    batched = np.asarray(case.together.attentions)[:, index, :, :frames, :frames]
    found = distance(alone, expected), distance(batched, expected)
    print(found)
    assert max(found) <= tolerances.PARITY_ATTENTION
    # the formula's mean over heads is what transformers gives
    theirs = case.expected[index]["attentions"].mean(1)
    assert distance(expected.mean(1), theirs) <= tolerances.PARITY_ATTENTION


@pytest.mark.parametrize("num_buckets, max_distance", [(320, 800), (16, 12), (32, 128)])
def test_position_buckets_are_exact_for_long_inputs(num_buckets, max_distance):
    frames = 3000
    distances = np.arange(1 - frames, frames)
    found = wavlm.relative_position_buckets(distances, num_buckets, max_distance)
    assert found.tolist() == [bucket(k, 0, num_buckets, max_distance) for k in distances]


# --- facts about transformers that the port relies on ---------------------------------------------


@each_layout
def test_last_hidden_state_of_transformers_5_is_raw_iff_stable(layout):
    tensors = load_file(FOLDER / layout / "model.safetensors")
    place = "encoder." if "encoder.layer_norm.weight" in tensors else ""
    for expected in fixture(layout).expected:
        raw, last = expected["hidden_states"][-1], expected["last_hidden_state"]
        if layout in STABLE:
            gain, shift = (tensors[f"{place}layer_norm.{name}"] for name in ("weight", "bias"))
            assert distance(raw, last) > 0.1
            assert distance(layer_norm(raw, gain, shift), last) <= tolerances.PARITY
        else:
            assert np.array_equal(raw, last)


@each_layout
def test_only_wavlm_attentions_of_transformers_are_equal_across_heads(layout):
    for expected in fixture(layout).expected[1:]:  # the first utterance is one frame
        spread = np.ptp(expected["attentions"], axis=1).max()
        assert spread == 0 if layout in WAVLM else spread > 0.01


# --- what a caller may choose ---------------------------------------------------------------------


@each_layout
def test_last_layer_raw_or_normed(layout):
    case = fixture(layout)
    raw = np.asarray(case.alone(1, Outputs(last_layer="raw")).hidden_states)
    normed = np.asarray(case.alone(1, Outputs(last_layer="normed")).hidden_states)
    expected = case.expected[1]
    assert distance(raw[:, 0], expected["hidden_states"]) <= tolerances.PARITY
    assert distance(normed[-1, 0], expected["last_hidden_state"]) <= tolerances.PARITY
    assert np.array_equal(raw[:-1], normed[:-1])
    assert np.array_equal(raw[-1], normed[-1]) == (layout not in STABLE)


@pytest.mark.slow
@each_layout
def test_layers_are_entries_of_the_full_run_and_nothing_above_is_computed(layout):
    case = fixture(layout)
    full = case.alone(1)
    for layers in ((0,), (2,), (2, 0), (3,), (1, 3)):
        outputs = dataclasses.replace(EVERYTHING, layers=layers)
        found = case.alone(1, outputs)
        assert np.array_equal(found.hidden_states, np.asarray(full.hidden_states)[list(layers)])
        depth = max(layers)
        for name in ("attentions", "queries", "keys", "gates"):
            some, every = getattr(found, name), getattr(full, name)
            if depth == 0 or every is None:
                assert some is None
            else:
                assert np.array_equal(some, every[:depth])
    nothing = case.alone(1, Outputs())
    assert nothing.attentions is None and nothing.keys is None and nothing.features is None


@pytest.mark.slow
@each_layout
def test_maps_made_in_blocks_of_rows_change_nothing(layout, monkeypatch):
    case = fixture(layout)
    rows = case.together.attentions.shape[3]  # computed before any is watched
    complete = case.run(*case.batch, Outputs()).hidden_states
    sizes = []

    def watched(queries, *rest):
        sizes.append(queries.shape[2])
        return attention_rows(queries, *rest)

    attention_rows = attention.attention_rows
    monkeypatch.setattr(attention, "attention_rows", watched)
    at_once = 4 if rows % 4 else 3
    monkeypatch.setattr(attention, "_ROWS_AT_ONCE", at_once)
    blocks = case.run(*case.batch, Outputs()).hidden_states
    assert rows > at_once and sizes and max(sizes) <= at_once
    assert rows % sizes[0]  # the last block is not full
    assert distance(np.asarray(blocks), np.asarray(complete)) <= tolerances.PARITY


@pytest.mark.slow
@each_layout
def test_rounded_kernels(layout):
    case = fixture(layout)
    full = case.alone(2)
    rounded = case.encoder.astype("bfloat16")
    found = case.run(case.waves[2][None], np.array([len(case.waves[2])], np.int32),
                     parameters=rounded.parameters)  # fmt: skip
    assert found.queries.dtype == found.keys.dtype == np.dtype("bfloat16")
    for name in ("hidden_states", "attentions", "features"):
        if getattr(full, name) is None:
            continue
        a, b = np.asarray(getattr(found, name)), np.asarray(getattr(full, name))
        assert a.dtype == np.float32
        cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
        assert 0.999 < cosine <= 1 + 1e-6, name
        # Mel features have no kernels.
        assert np.array_equal(a, b) == (name == "features" and layout.startswith("w2v-bert"))
    assert np.allclose(np.asarray(found.attentions).sum(-1), 1, atol=1e-6)  # softmax in float32
    again = rounded.astype("float32").parameters
    kernels = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(case.encoder.parameters))
    ]
    assert all(a.dtype == np.float32 for a, _ in kernels)
    # 8 bits of the kernels, and nothing else, are gone
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in kernels if np.any(b)]
    assert 0 < max(errors) < 2**-8


def test_layers_that_do_not_exist():
    for layers in ((4,), (0, -1), ()):
        with pytest.raises(UserError, match="layers 0 to 3"):
            fixture("hubert-base").alone(0, Outputs(layers=layers))


def test_calling_an_encoder():
    case = fixture("wavlm-large")
    found = case.encoder(case.waves, layers=(1, 3), last_layer="raw")
    expected = case.expected[2]["hidden_states"][[1, 3]]
    frames = expected.shape[1]
    assert distance(np.asarray(found.hidden_states)[:, 2, :frames], expected) <= tolerances.PARITY
    assert found.attentions is None
    for waves in ([], [case.waves[0], case.waves[0][:399]]):
        with pytest.raises(UserError, match="at least 400 samples"):
            case.encoder(waves)


@pytest.mark.slow
def test_a_result_is_written_over_when_it_is_given_back():
    encoder = load_encoder(FOLDER / "wavlm-base")
    rng = np.random.default_rng(0)
    first, second = (
        [rng.standard_normal(n).astype(np.float32) for n in lengths]
        for lengths in ((3000, 2000), (1500, 3000))
    )
    some = dict(layers=(0, 1))  # which compile sooner than all
    everything = dict(attentions=True, projections=True, features=True) | some
    samples, lengths = encoder.padded(second)
    asked = Outputs(layers=(0, 1), attentions=True, projections=True, features=True)
    expected = encoder.apply(samples[:, :3000], lengths, asked)
    old = encoder(first, **everything)
    place = old.attentions.unsafe_buffer_pointer()
    new = encoder(second, **everything, out=old)
    assert new.attentions.unsafe_buffer_pointer() == place
    assert old.hidden_states.is_deleted() and old.attentions.is_deleted()
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(
        UserError, match=r"out.hidden_states is float32 \[2, 2, .* give float32 \[2, 1,"
    ):
        encoder(first[:1], **some, out=new)
    # the refused result is still there, and may be one of fewer parts
    assert encoder(second, **everything, out=encoder(first, **some)).attentions is not None


def test_models_of_one_architecture_share_compilations():
    wave = fixture("wavlm-base").waves[0]
    fixture("wavlm-base").encoder([wave], layers=[0])
    compiled = forward._cache_size()
    load_encoder(FOLDER / "wavlm-base")([wave], layers=[0])
    assert forward._cache_size() == compiled


# --- a batch changes nothing ----------------------------------------------------------------------


@pytest.mark.slow
@each_layout
def test_batch_equals_single(layout):
    case = fixture(layout)
    assert len({*map(len, case.waves)}) == 8
    differences, states = [], []
    for row in range(8):
        alone = case.alone(row)
        frames = alone.frame_mask.shape[1]
        state = np.asarray(alone.hidden_states)[:, 0]
        together = np.asarray(case.together.hidden_states)[:, row, :frames]
        assert distance(together, state) <= tolerances.PARITY
        theirs = np.asarray(alone.attentions)[:, 0]
        queries, window = theirs.shape[-2:]
        maps = np.asarray(case.together.attentions)[:, row, :, :queries, :window]
        assert distance(maps, theirs) <= tolerances.PARITY_ATTENTION
        differences.append(together - state)
        states.append(state)
    # per layer and neuron, over the frames of all utterances: rms(a - b) / rms(b)
    power = [
        np.square(np.concatenate(x, 1), dtype=np.float64).mean(1) for x in (differences, states)
    ]
    relative = np.sqrt(power[0] / power[1]).max()
    print(f"{layout}: relative {relative:.1e}")
    assert relative <= tolerances.BATCH_RELATIVE


@each_layout
def test_garbage_in_the_padding_changes_nothing(layout):
    case = fixture(layout)
    samples, lengths = case.batch
    dirty = np.where(np.arange(samples.shape[1]) < lengths[:, None], samples, np.nan)
    found = case.run(dirty.astype(np.float32), lengths)
    for clean, after in zip(jax.tree.leaves(case.together), jax.tree.leaves(found)):
        assert np.array_equal(clean, after)
        assert np.isfinite(after).all()


# Of a window, rows are those over the utterance's frames: tests/models/test_whisper.py.
@of_layouts(layout for layout in LAYOUTS if layout not in WINDOWED)
def test_rows_from_projections_are_those_of_the_maps(layout):
    """The inputs of attention statistics, of a padded batch: of each utterance, every other row."""
    case = fixture(layout)
    frames = case.encoder.config.frames(case.batch[1])
    inputs = projected(case.together, (1, 3), frames)
    maps = np.asarray(case.together.attentions)[[0, 2]]
    for utterance in (1, 2, 6):
        queries = np.arange(0, frames[utterance], 2)
        rows = rows_of_projections((inputs,), jnp.int32(utterance), jnp.asarray(queries))
        expected = maps[:, utterance][:, :, queries]
        assert distance(np.asarray(rows), expected.reshape(rows.shape)) <= 1e-6


# SEW and Whisper have no features: tests/models/test_config.py and test_whisper.py.
@of_layouts(layout for layout in LAYOUTS if layout not in ("sew", *WINDOWED))
def test_frames_are_about_the_samples_that_the_configuration_says(layout):
    """Clicks near the centre of a frame move its features most."""
    case = fixture(layout)
    config, outputs = case.encoder.config, Outputs(layers=(0,), features=True)
    wave = case.waves[2]
    middle = config.frames(len(wave)) // 2
    centre = config.first_centre_samples + middle * config.hop_samples
    offsets = np.array([-0.25, -0.1, 0.1, 0.25]) * config.hop_samples
    samples = np.repeat(wave[None], 1 + len(offsets), 0)
    for row, offset in zip(samples[1:], offsets):
        row[int(centre + offset)] += 1
    lengths = np.full(len(samples), len(wave), np.int32)
    found = np.asarray(case.run(samples, lengths, outputs).features)
    moved = np.square(found[1:] - found[0]).sum(-1)
    assert (moved.argmax(1) == middle).all()


# --- mutations: parity breaks when two weights change places --------------------------------------


def swapped_leaves(state, a: ParameterPath, b: ParameterPath):
    """The state with the leaves at two paths exchanged."""
    paths, tree = jax.tree_util.tree_flatten_with_path(state)
    names = [
        tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        for path, _ in paths
    ]
    i, j = (next(n for n, name in enumerate(names) if name[: len(p)] == p) for p in (a, b))
    leaves = [leaf for _, leaf in paths]
    leaves[i], leaves[j] = leaves[j], leaves[i]
    return jax.tree.unflatten(tree, leaves)


def swapped_table(table: tuple[Weight, ...], a: Weight, b: Weight):
    """The weight table with the paths of two rows exchanged."""
    other = {a.name: b.path, b.name: a.path}
    return tuple(dataclasses.replace(row, path=other.get(row.name, row.path)) for row in table)


@pytest.mark.slow
@each_layout
def test_every_swap_of_two_weights_is_noticed(layout):
    case = fixture(layout)
    config, expected = case.encoder.config, case.expected[1]
    samples, lengths = case.waves[1][None], np.array([len(case.waves[1])], np.int32)

    def error(parameters) -> float:
        # parameters are arguments: nothing is compiled for a swap
        found = case.run(samples, lengths, parameters=parameters, function=forward)
        found = errors(found, 0, expected)
        # max() may miss what is not a number
        return float(np.max([found[name] for name in found if name != "features"]))

    assert error(case.encoder.parameters) <= tolerances.PARITY
    table = weight_names.weight_table(config)
    pairs = [pair for pair in itertools.combinations(table, 2) if pair[0].shape == pair[1].shape]
    smallest, unnoticed = math.inf, []
    for a, b in pairs:
        found = error(swapped_leaves(case.encoder.parameters, a.path, b.path))
        smallest = min(smallest, found)
        if found <= tolerances.PARITY:  # not a number is noticed too
            unnoticed.append((a.name, b.name))
    print(f"{len(pairs)} pairs, smallest error {smallest:.1e}")
    assert not unnoticed
    assert len(pairs) > 400
    # the shortcut above is what the loader does with a wrong table
    tensors = load_file(FOLDER / layout / "model.safetensors")
    a, b = pairs[len(pairs) // 2]
    _, filled, _ = weight_names.fill(config, tensors, "here", table=swapped_table(table, a, b))
    short = swapped_leaves(case.encoder.parameters, a.path, b.path)
    same, changed = (
        [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(filled), jax.tree.leaves(other))]
        for other in (short, case.encoder.parameters)
    )
    assert all(same) and changed.count(False) == 2
