"""Checkpoints from a hub that lives on 127.0.0.1."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.models.load import load_encoder
from speechsim_jax.models.recognizer import load_recognizer
from tests.support.checkpoint_folders import (
    CONFIG,
    LAYOUTS,
    SAFETENSORS,
    TORCH,
    A,
    B,
    check_tensors,
    fill,
    refusal,
    safetensors_of,
)
from tests.support.hub_server import FIRST, Hub, serving
from tests.support.paths import DATA, ROOT

REPO = "org/model"
SECOND = "2" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10)  # only complete chunks are resumed
    with serving(Hub(REPO, SAFETENSORS), monkeypatch, tmp_path) as server:
        yield server


def blobs(tmp_path: Path) -> dict[str, bytes]:
    """What the cache holds as finished files, by etag."""
    found = (tmp_path / "cache").glob("*/blobs/*")
    return {path.name: path.read_bytes() for path in found if "." not in path.name}


def test_hub_model(hub, tmp_path):
    hub.commits[FIRST] |= {"pytorch_model.bin": b"", "tf_model.h5": b"", "README.md": b""}
    found = open_checkpoint(REPO)
    assert (found.source, found.revision) == (REPO, FIRST)
    assert found.folder.is_relative_to(tmp_path / "cache") and found.folder.name == FIRST
    assert found.config == {"model_type": "hubert"} and found.preprocessor == {"do_normalize": True}
    check_tensors(found)
    assert hub.fetched() == ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert found.digest() == open_checkpoint(fill(tmp_path / "local", SAFETENSORS)).digest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hub_layouts(hub, layout):
    files, weights = LAYOUTS[layout]
    hub.commits[FIRST] = files
    found = open_checkpoint(REPO)
    assert found.files == weights
    check_tensors(found)
    assert set(hub.fetched()) == set(files)


def test_weights_are_fetched_when_asked_for(hub):
    found = open_checkpoint(REPO)
    assert hub.fetched() == ["config.json", "preprocessor_config.json"]
    assert found.files == ("model.safetensors",)
    assert hub.fetched()[2:] == ["model.safetensors"]


CTC = DATA / "ctc" / "wav2vec2-base"


def fine_tuned() -> dict[str, bytes]:
    """A fine-tuned model with its tokenizer, and what else may be in its folder."""
    files = {path.name: path.read_bytes() for path in CTC.iterdir() if path.suffix != ".npz"}
    return files | {"README.md": b"x", "language_model/5gram.bin": b"x"}


def test_only_what_a_recognizer_needs_is_fetched(hub):
    hub.commits[SECOND] = hub.commits[FIRST]
    hub.commits[FIRST], hub.move_main_to = fine_tuned(), SECOND
    found = load_recognizer(REPO)
    assert found.encoder.provenance["revision"] == FIRST
    assert hub.fetched() == [
        "config.json",
        "preprocessor_config.json",
        "vocab.json",
        "tokenizer_config.json",
        "model.safetensors",
    ]
    hub.error = (503, "")
    again = load_recognizer(REPO, revision=FIRST, local_files_only=True)
    assert again.tokenizer.get_vocab() == found.tokenizer.get_vocab()


def test_a_tokenizer_is_refused_before_weights_are_fetched(hub):
    hub.commits[FIRST] = fine_tuned() | {"vocab.json": b"{"}
    with pytest.raises(UserError, match=r"vocab\.json: is not JSON"):
        load_recognizer(REPO)
    assert "model.safetensors" not in hub.fetched()


def test_a_random_baseline_fetches_no_weights(hub):
    hub.commits[FIRST] = fine_tuned()
    found = load_encoder(f"random:{REPO}@2")
    assert hub.fetched() == ["config.json", "preprocessor_config.json"]
    assert found.name == "random:model@2"
    origin = {name: found.provenance[name] for name in ("source", "revision", "seed")}
    assert origin == {"source": f"random:{REPO}", "revision": FIRST, "seed": 2}
    hub.refs["v2"] = FIRST
    assert load_encoder(f"random:{REPO}", revision="v2").provenance["revision"] == FIRST


def test_hub_revision(hub):
    hub.commits[SECOND] = SAFETENSORS | {"config.json": b'{"model_type": "wavlm"}'}
    hub.refs["v2"] = SECOND
    for revision in ("v2", SECOND):
        found = open_checkpoint(REPO, revision=revision)
        assert found.revision == SECOND and found.config == {"model_type": "wavlm"}
    assert open_checkpoint(REPO).revision == FIRST
    assert "has no revision 'v3'" in refusal(REPO, revision="v3")
    assert "has no revision" in refusal(REPO, revision="3" * 40)


def test_a_branch_that_moves_between_two_files(hub):
    hub.commits[SECOND] = SAFETENSORS | {"model.safetensors": safetensors_of(a=A + 1, b=B)}
    hub.move_main_to = SECOND
    found = open_checkpoint(REPO)
    assert found.revision == FIRST
    check_tensors(found)
    assert open_checkpoint(REPO).revision == SECOND


def test_hub_cache_dir(hub, tmp_path):
    found = open_checkpoint(REPO, cache_dir=tmp_path / "elsewhere")
    assert found.folder.is_relative_to(tmp_path / "elsewhere")
    assert not (tmp_path / "cache").exists()


def test_hub_offline_from_the_cache(hub, monkeypatch):
    digest = open_checkpoint(REPO).digest()
    hub.log.clear()
    for options in ({"local_files_only": True}, {"local_files_only": True, "revision": FIRST}):
        found = open_checkpoint(REPO, **options)
        assert found.revision == FIRST and found.digest() == digest
        check_tensors(found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_tensors(open_checkpoint(REPO))
    assert not hub.log


def test_hub_unreachable_but_cached(hub):
    # A cache that records which files the model lacks is enough, even while online.
    hub.commits[FIRST] = TORCH
    check_tensors(open_checkpoint(REPO))
    hub.error = (503, "")
    check_tensors(open_checkpoint(REPO))


def test_hub_offline_without_cache(hub):
    line = refusal(REPO, local_files_only=True)
    assert "there is no config.json; the cache lacks it" in line and "online" in line
    hub.commits[FIRST] = {"config.json": CONFIG}
    assert "there are no weights" in refusal(REPO)
    assert "choose another model" in refusal(REPO)
    line = refusal(REPO, local_files_only=True)
    assert "there are no weights" in line and "the cache lacks it" in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((403, "GatedRepo"), "is gated; accept its terms at"),
        ((401, "GatedRepo"), "is gated; accept its terms at"),
        ((404, "RepoNotFound"), "neither a folder nor a model on the hub"),
        ((401, ""), "neither a folder nor a model on the hub"),
        ((403, ""), "cannot be fetched from"),
        ((500, ""), "cannot be fetched from"),
        ((503, ""), "cannot be fetched from"),
        ((404, "EntryNotFound"), "there is no config.json"),
    ],
)
def test_hub_says_no(hub, tmp_path, error, words):
    hub.error = error
    line = refusal(REPO)
    assert words in line and line.startswith(REPO)
    hub.error = None
    check_tensors(open_checkpoint(REPO))


def test_hub_fails_after_the_config(hub):
    class FailsLater(dict):
        def get(self, name, default=None):
            hub.error = (503, "")
            return super().get(name, default)

    hub.commits[FIRST] = FailsLater(SAFETENSORS)
    # An optional file that could not be asked for is not an absent file.
    assert "cannot be fetched" in refusal(REPO)


def test_folder_with_a_similar_name(hub, tmp_path, caplog):
    (tmp_path / "org" / "others").mkdir(parents=True)
    line = refusal("org/other")
    assert "neither a folder nor a model on the hub" in line and line.endswith("mean 'others'?")
    assert "org/other: no such folder here; did you mean 'others'?" in caplog.text


def test_folder_with_a_similar_name_where_the_hub_fails(hub, tmp_path):
    (tmp_path / "org" / "others").mkdir(parents=True)
    hub.error = (503, "")
    assert refusal("org/other").endswith("or give a local folder; did you mean 'others'?")


def test_no_such_model(hub):
    assert "neither a folder nor a model on the hub" in refusal("org/other")
    for source in ("", "org/..", "no spaces here", "a" * 200, "\x00"):
        assert "nor a hub id such as" in refusal(source)


def test_nothing_listens(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    line = refusal(REPO)
    assert "cannot be fetched from http://127.0.0.1:9" in line and "check the connection" in line


def test_cut_connection_is_resumed(hub, tmp_path):
    hub.cuts = [30, 40]
    found = open_checkpoint(REPO)
    check_tensors(found)
    ranges = [asked for method, path, asked in hub.log if path.endswith("model.safetensors")]
    assert ranges[-2:] == ["bytes=30-", "bytes=70-"]
    for etag, content in blobs(tmp_path).items():
        assert hashlib.sha256(content).hexdigest() == etag


@pytest.mark.parametrize("fault", [{"cuts": [30] + [0] * 50}, {"short": 5}])
def test_cut_connection_leaves_no_corrupt_file(hub, tmp_path, fault):
    for name, value in fault.items():
        setattr(hub, name, value)
    assert "model.safetensors cannot be fetched" in refusal(REPO)
    assert len(blobs(tmp_path)) == 2
    for etag, content in blobs(tmp_path).items():
        assert hashlib.sha256(content).hexdigest() == etag
    assert "there are no weights" in refusal(REPO, local_files_only=True)
    hub.cuts, hub.short = [], 0
    check_tensors(open_checkpoint(REPO))


def test_environment_of_the_hub(hub, tmp_path):
    """HF_ENDPOINT and HF_HOME, which huggingface_hub reads when it is imported."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from speechsim_jax.models.checkpoint_files import open_checkpoint\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"found = open_checkpoint({REPO!r})\n"
        "print(found.revision, found.folder, sorted(found.tensors()))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{FIRST} {tmp_path / 'home'}")
    assert done.stdout.strip().endswith("['a', 'b']")
