"""Checkpoints from folders, and from a hub that lives on 127.0.0.1."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from speechsim_jax.errors import UserError
from speechsim_jax.models import checkpoint
from speechsim_jax.models.checkpoint import Checkpoint, open_checkpoint
from tests.fuzz_checkpoint import members, state_dict, storage, tensor, zip_file

REPO = "org/model"
FIRST, SECOND = "1" * 40, "2" * 40
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([7, 8], np.float32)


def safetensors_of(metadata: dict[str, str] | None = None, **arrays: np.ndarray) -> bytes:
    return save(arrays, metadata={"format": "pt"} if metadata is None else metadata)


def torch_of(**arrays: np.ndarray) -> bytes:
    values = {
        name: tensor(storage("FloatStorage", name, array.size), (array.size,), (1,))
        for name, array in arrays.items()
    }
    blocks = {name: array.astype("<f4").tobytes() for name, array in arrays.items()}
    return zip_file(members(state_dict(values), blocks))


def index_of(**weight_map: object) -> bytes:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


CONFIG = b'{"model_type": "hubert"}'
PREPROCESSOR = b'{"do_normalize": true}'
SAFETENSORS = {
    "config.json": CONFIG,
    "preprocessor_config.json": PREPROCESSOR,
    "model.safetensors": safetensors_of(a=A, b=B),
}
SHARDS = {
    "config.json": CONFIG,
    "model.safetensors.index.json": index_of(
        a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"
    ),
    "model-00001-of-00002.safetensors": safetensors_of(a=A),
    "model-00002-of-00002.safetensors": safetensors_of(b=B),
}
TORCH = {"config.json": CONFIG, "pytorch_model.bin": torch_of(a=A.ravel(), b=B)}
TORCH_SHARDS = {
    "config.json": CONFIG,
    "pytorch_model.bin.index.json": index_of(a="a.bin", b="b.bin"),
    "a.bin": torch_of(a=A.ravel()),
    "b.bin": torch_of(b=B),
}
LAYOUTS = {
    "safetensors": (SAFETENSORS, ("model.safetensors",)),
    "shards": (
        SHARDS,
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    ),
    "torch": (TORCH, ("pytorch_model.bin",)),
    "torch shards": (TORCH_SHARDS, ("a.bin", "b.bin")),
}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_tensors(found: Checkpoint) -> None:
    tensors = found.tensors()
    assert sorted(tensors) == ["a", "b"]
    np.testing.assert_array_equal(tensors["a"].ravel(), A.ravel())
    np.testing.assert_array_equal(tensors["b"], B)


def refusal(source: str | Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(source, **options).tensors()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder(tmp_path, layout):
    files, weights = LAYOUTS[layout]
    found = open_checkpoint(fill(tmp_path / "model", files))
    assert found.source == str(tmp_path / "model") and found.folder == tmp_path / "model"
    assert found.revision is None and found.files == weights
    assert found.config == {"model_type": "hubert"}
    check_tensors(found)


def test_order_of_preference(tmp_path):
    fill(tmp_path, TORCH_SHARDS | TORCH | SHARDS | SAFETENSORS)
    for files, weights in LAYOUTS.values():
        assert open_checkpoint(tmp_path).files == weights
        for name in files:
            if name != "config.json":
                (tmp_path / name).unlink()


@pytest.mark.parametrize("spelling", ["./model", "~/model", "model", "nest/../model"])
def test_spellings_of_a_folder(tmp_path, monkeypatch, spelling):
    fill(tmp_path / "model", SAFETENSORS)
    (tmp_path / "nest").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = open_checkpoint(spelling)
    assert found.source == spelling
    check_tensors(found)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"preprocessor_config.json": PREPROCESSOR}, {"do_normalize": True}),
        (
            {"processor_config.json": b'{"feature_extractor": {"sampling_rate": 16000}}'},
            {"sampling_rate": 16000},
        ),
        ({"processor_config.json": b'{"tokenizer": 1}'}, {}),
        ({}, {}),
    ],
)
def test_preprocessor(tmp_path, files, expected):
    assert open_checkpoint(fill(tmp_path, TORCH | files)).preprocessor == expected


def test_half_precision_stays(tmp_path):
    arrays = {
        "h": A.astype(np.float16),
        "b": A.astype(ml_dtypes.bfloat16),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    content = safetensors_of(**arrays)
    found = open_checkpoint(fill(tmp_path, SAFETENSORS | {"model.safetensors": content})).tensors()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_weights_without_metadata(tmp_path):
    content = save({"a": A, "b": B})
    check_tensors(open_checkpoint(fill(tmp_path, SAFETENSORS | {"model.safetensors": content})))


def test_digest(tmp_path):
    def digest(name: str, files: dict[str, bytes]) -> str:
        return open_checkpoint(fill(tmp_path / name, files)).digest()

    whole = digest("whole", SAFETENSORS)
    assert len(whole) == 64 and whole == digest("copy", SAFETENSORS)
    assert whole == digest("readme", SAFETENSORS | {"README.md": b"x", "pytorch_model.bin": b"x"})
    others = {
        digest("config", SAFETENSORS | {"config.json": b"{}"}),
        digest("weights", SAFETENSORS | {"model.safetensors": safetensors_of(a=A, b=B + 1)}),
        digest("shards", SHARDS),
        digest("torch", TORCH),
    }
    assert len(others - {whole}) == 4


def test_digest_of_a_vanished_file(tmp_path):
    found = open_checkpoint(fill(tmp_path, SAFETENSORS))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        found.digest()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        found.tensors()


def without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in files.items() if key != name}


def shard_map(*names: object) -> dict[str, bytes]:
    return SHARDS | {
        "model.safetensors.index.json": index_of(**{f"t{i}": name for i, name in enumerate(names)})
    }


INDEX = "model.safetensors.index.json"
WHOLE = SAFETENSORS["model.safetensors"]
BAD_FOLDERS = {
    "no config": (without(SAFETENSORS, "config.json"), "there is no config.json"),
    "config no JSON": (SAFETENSORS | {"config.json": b"{'a': 1}"}, "config.json: is not JSON"),
    "config empty": (SAFETENSORS | {"config.json": b""}, "config.json: is not JSON"),
    "config not UTF-8": (SAFETENSORS | {"config.json": b"\xff\xfe"}, "config.json: is not JSON"),
    "config too deep": (SAFETENSORS | {"config.json": b"[" * 10**5}, "config.json: is not JSON"),
    "config a list": (SAFETENSORS | {"config.json": b"[]"}, "not a JSON object but a list"),
    "preprocessor no JSON": (
        SAFETENSORS | {"preprocessor_config.json": b"x"},
        "preprocessor_config.json: is not JSON",
    ),
    "extractor a list": (
        TORCH | {"processor_config.json": b'{"feature_extractor": []}'},
        "feature_extractor is not a JSON object",
    ),
    "no weights": ({"config.json": CONFIG, "tf_model.h5": b""}, "there are no weights"),
    "missing shard": (without(SHARDS, "model-00002-of-00002.safetensors"), "lacks the shard"),
    "tensor not in its shard": (
        SHARDS | {"model-00002-of-00002.safetensors": safetensors_of(x=B)},
        "lacks 1 of the tensors",
    ),
    "tensor in two shards": (
        SHARDS | {"model-00002-of-00002.safetensors": safetensors_of(a=A, b=B)},
        "tensor 'a' is in another shard",
    ),
    "index without map": (SHARDS | {INDEX: b"{}"}, "has no weight_map"),
    "index with an empty map": (SHARDS | {INDEX: index_of()}, "has no weight_map"),
    "index with a list": (SHARDS | {INDEX: b'{"weight_map": ["a"]}'}, "has no weight_map"),
    "shard a number": (shard_map(3), "weight_map names '3'"),
    "shard above": (shard_map("../a.safetensors"), "weight_map names '../a.safetensors'"),
    "shard absolute": (shard_map("/a.safetensors"), "weight_map names '/a.safetensors'"),
    "shard below": (shard_map("x/a.safetensors"), "weight_map names 'x/a.safetensors'"),
    "shard on a drive": (shard_map("C:a.safetensors"), "weight_map names"),
    "shard with backslash": (shard_map("..\\a.safetensors"), "weight_map names"),
    "shard hidden": (shard_map(".safetensors"), "weight_map names"),
    "shard with line break": (shard_map("a\n.safetensors"), "weight_map names"),
    "shard of another format": (shard_map("pytorch_model.bin"), "weight_map names"),
    "tensorflow": (
        SAFETENSORS | {"model.safetensors": safetensors_of({"format": "tf"}, a=A)},
        "in the format 'tf'",
    ),
    "safetensors cut off": (SAFETENSORS | {"model.safetensors": WHOLE[:-1]}, "not a whole"),
    "safetensors too long": (SAFETENSORS | {"model.safetensors": WHOLE + b"x"}, "not a whole"),
    "safetensors cut early": (SAFETENSORS | {"model.safetensors": WHOLE[:20]}, "not a whole"),
    "safetensors empty": (SAFETENSORS | {"model.safetensors": b""}, "not a whole"),
    "git-lfs pointer": (
        SAFETENSORS | {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        "git lfs pull",
    ),
    "torch file is no ZIP": (TORCH | {"pytorch_model.bin": b"x"}, "pytorch_model.bin: "),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folder(tmp_path, what):
    files, words = BAD_FOLDERS[what]
    line = refusal(fill(tmp_path / "model", files))
    assert words in line and str(tmp_path / "model") in line


def test_element_type_without_numpy_name(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    folder = fill(tmp_path, SAFETENSORS | {"model.safetensors": content})
    assert "element type that numpy cannot name" in refusal(folder)


def test_too_large_json(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MAX_JSON_BYTES", 10)
    assert "too large for JSON" in refusal(fill(tmp_path, SAFETENSORS))


def test_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for source in ("./none", "/none", "~/none", "a/b/c", Path("none"), Path("a/b")):
        assert refusal(source) == f"{source}: there is no such folder"
    assert "is a file; give the folder" in refusal("file")
    with pytest.raises(UserError, match=r"^x{200}: cannot be looked up") as caught:
        open_checkpoint("x" * 5000)
    assert len(str(caught.value)) < 300
    assert "cannot be looked up" in refusal("~no-such-user/model")
    fill(tmp_path / "model", SAFETENSORS)
    assert "a folder has no revision 'main'" in refusal("model", revision="main")


# --- the hub --------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of huggingface.co to download files."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.commits = {FIRST: dict(SAFETENSORS)}
        self.refs = {"main": FIRST}
        self.log: list[tuple[str, str, str | None]] = []
        self.error: tuple[int, str] | None = None
        self.cuts: list[int] = []  # how many bytes each coming download of weights may send
        self.short = 0  # how many bytes all downloads of weights leave out
        self.move_main_to = ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        paths = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return [path.rpartition("/")[2] for path in paths]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.log.append((self.command, self.path, self.headers.get("Range")))
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if hub.error:
            return self.fail(*hub.error)
        if repo != REPO:
            return self.fail(404, "RepoNotFound")
        commit = hub.refs.get(revision, revision)
        if commit not in hub.commits:
            return self.fail(404, "RevisionNotFound")
        content = hub.commits[commit].get(name)
        if content is None:
            return self.fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        self.send_file(commit, name, content, body)
        if hub.move_main_to and body:
            hub.refs["main"] = hub.move_main_to

    def send_file(self, commit: str, name: str, content: bytes, body: bool) -> None:
        etag = hashlib.sha256(content).hexdigest()
        large = body and "." in name and not name.endswith(".json")
        if large and self.server.short:
            content = content[: -self.server.short]
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            total = len(content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if body:
            cut = self.server.cuts.pop(0) if large and self.server.cuts else len(content)
            self.wfile.write(content[start : start + cut])
            self.close_connection = cut < len(content) - start


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10)  # only whole chunks are resumed
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits to retry
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    huggingface_hub.close_session()


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
    # A cache that knows what the model has not is enough, even without being told to be offline.
    hub.commits[FIRST] = TORCH
    open_checkpoint(REPO)
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
        f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from speechsim_jax.models.checkpoint import open_checkpoint\n"
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
