"""A hub id or a folder in Hugging Face layout -> its configuration and its weights by name."""

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # names bfloat16 to numpy, which safetensors asks for it
import numpy as np
from safetensors import SafetensorError, safe_open

from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo
from speechsim_jax.models.torch_bin import read_torch_bin

# In this order: the first that is there is read. The second of each pair lists shards.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_MAX_JSON_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class WeightFiles:
    """A pretrained model: what it is, and (fetched and read when asked for) its files.

    Attributes:
      source: the hub id or folder, as the user gave it.
      config: config.json.
      preprocessor: preprocessor_config.json, or the feature_extractor of processor_config.json
        (transformers 5); empty when there is neither.
    """

    source: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    _place: "_Folder | _Hub" = field(repr=False)

    @property
    def folder(self) -> Path:
        """The folder that holds the files."""
        return self._place.folder

    @property
    def revision(self) -> str | None:
        """The commit of a hub model; None for a folder."""
        return self._place.revision

    def file(self, name: str) -> Path | None:
        """Returns a file of the same commit, fetched if need be; None if there is none.

        Raises:
          UserError: the hub cannot be asked.
        """
        return self._place.get(name)

    @functools.cached_property
    def _weights(self) -> tuple[tuple[str, ...], dict[str, str]]:
        return _find_weights(self.source, self._place)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files in use; asking fetches them. Raises UserError without any."""
        return self._weights[0]

    @property
    def weight_map(self) -> dict[str, str]:
        """Which file holds which tensor, for sharded weights; empty for a single file."""
        return self._weights[1]

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns every tensor by its name in the files, with the element type it has there.

        Arrays may be read-only views of the files.

        Raises:
          UserError: a file is missing, damaged, unsafe or not what the shard index says.
        """
        tensors: dict[str, np.ndarray] = {}
        for file in self.files:
            path = self.folder / file
            read = _read_safetensors if path.suffix == ".safetensors" else read_torch_bin
            shard = read(path)
            twice = tensors.keys() & shard.keys()
            if twice:
                raise UserError(f"{path}: tensor {min(twice)!r} is in another shard too")
            listed = {name for name, where in self.weight_map.items() if where == file}
            absent = listed - shard.keys()
            if absent:
                raise UserError(
                    f"{path}: lacks {len(absent)} of the tensors that the shard index lists, "
                    f"e.g. {min(absent)!r}; download the checkpoint again"
                )
            tensors |= shard
        return tensors

    def digest(self) -> str:
        """Returns the SHA-256 of the weight files and config.json, in hexadecimal."""
        total = hashlib.sha256()
        for file in (*self.files, "config.json"):
            path = self.folder / file
            try:
                # The name and size keep two files from being mistaken for one.
                total.update(f"{file}\0{path.stat().st_size}\0".encode())
                with path.open("rb") as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        total.update(chunk)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        return total.hexdigest()


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> WeightFiles:
    """Finds a checkpoint and reads its configuration; its weights wait until they are asked for.

    Args:
      source: a folder, or a hub id such as "facebook/hubert-base-ls960". What begins with
        ".", "/" or "~" or has two slashes is always a folder; "zoo:NAME" is a model that comes
        with the package.
      revision: branch, tag or commit of a hub model.
      cache_dir: the cache of hub models; huggingface_hub's own when None.
      local_files_only: take hub models from the cache and do not ask the network.

    Raises:
      UserError: there is no such folder or hub model, or it lacks a configuration.
    """
    text = str(source)
    if text.startswith(zoo.PREFIX):
        if revision is not None:
            raise UserError(f"{text}: comes with the package and has no revision {revision!r}")
        return _assemble(text, _Folder(zoo.folder(text.removeprefix(zoo.PREFIX))))
    try:
        folder = Path(text).expanduser() if text.startswith("~") else Path(text)
        is_folder, is_file = bool(text) and folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # too long, no permission, no such user
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{text[:200]}: cannot be looked up as a folder ({reason})") from error
    if is_folder and revision is not None:
        raise UserError(f"{text}: is a folder, and a folder has no revision {revision!r}")
    if is_folder:
        return _assemble(text, _Folder(folder))
    if is_file:
        raise UserError(f"{text}: is a file; give the folder that holds config.json")
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"{text}: there is no such folder")
    hub = _Hub(text, revision or "main", cache_dir, local_files_only)
    return _assemble(text, hub.at_commit())


@dataclass(frozen=True)
class _Folder:
    """A checkpoint's files in a local folder."""

    folder: Path
    revision: None = None
    hint: str = "save the model with save_pretrained(folder)"

    def get(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None


@dataclass(frozen=True)
class _Hub:
    """A checkpoint's files on the hub: each is fetched into the cache when asked for."""

    repo: str
    revision: str
    cache_dir: str | Path | None
    local_files_only: bool
    folder: Path = Path()
    pinned: bool = False

    def at_commit(self) -> "_Hub":
        """The same model at the commit that the revision means now.

        All other files are asked for by commit, so that they belong together even if the
        branch moves between two downloads.
        """
        config = self.get("config.json")
        if config is None:
            raise UserError(f"{self.repo}: there is no config.json; {self.hint}")
        folder = config.parent
        return _Hub(self.repo, folder.name, self.cache_dir, self.local_files_only, folder, True)

    @property
    def offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE

    @property
    def hint(self) -> str:
        if self.offline:
            return "the cache lacks it and the network may not be asked: fetch it once online"
        return "choose another model, or another revision of it"

    def get(self, name: str) -> Path | None:
        """The file in the cache, downloaded if need be; None if the model has no such file."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            if self.pinned:
                known = huggingface_hub.try_to_load_from_cache(
                    self.repo, name, cache_dir=self.cache_dir, revision=self.revision
                )
                if known is not None:
                    return Path(known) if isinstance(known, str) else None
            path = huggingface_hub.hf_hub_download(
                self.repo,
                name,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=self.offline,
            )
        except errors.EntryNotFoundError as error:
            # "Not in the cache" is an answer only if the network may not be asked.
            if isinstance(error, errors.LocalEntryNotFoundError) and not self.offline:
                raise UserError(self._explain(name, error)) from error
            return None
        except Exception as error:
            # The HTTP library below huggingface_hub, and so its errors, change with its version.
            raise UserError(self._explain(name, error)) from error
        return Path(path)

    def _explain(self, name: str, error: Exception) -> str:
        from huggingface_hub import constants, errors

        if isinstance(error, errors.GatedRepoError):
            page = f"{constants.ENDPOINT}/{self.repo}"
            return f"{self.repo}: is gated; accept its terms at {page}, then run `hf auth login`"
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return (
                f"{self.repo}: neither a folder nor a model on the hub; check the name (if it is "
                "private, run `hf auth login`)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return (
                f"{self.repo}: has no revision {self.revision!r}; check the branch, tag or commit"
            )
        if isinstance(error, errors.HFValidationError):
            return f"{self.repo}: neither a folder nor a hub id such as facebook/hubert-base-ls960"
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        reason = next(iter(str(cause or error).strip().splitlines()), type(error).__name__)
        return (
            f"{self.repo}: {name} cannot be fetched from {constants.ENDPOINT} ({reason}); check "
            "the connection and try again, or give a local folder"
        )


def _assemble(source: str, place: _Folder | _Hub) -> WeightFiles:
    path = place.get("config.json")
    if path is None:
        raise UserError(f"{source}: there is no config.json; {place.hint}")
    return WeightFiles(source, read_json(path), _find_preprocessor(place), place)


def _find_preprocessor(place: _Folder | _Hub) -> dict[str, Any]:
    if path := place.get("preprocessor_config.json"):
        return read_json(path)
    if path := place.get("processor_config.json"):
        extractor = read_json(path).get("feature_extractor", {})
        if not isinstance(extractor, dict):
            raise UserError(f"{path}: feature_extractor is not a JSON object")
        return extractor
    return {}


def _find_weights(source: str, place: _Folder | _Hub) -> tuple[tuple[str, ...], dict[str, str]]:
    for single, index in _WEIGHTS:
        if place.get(single):
            return (single,), {}
        if path := place.get(index):
            weight_map = _read_weight_map(path, Path(single).suffix)
            shards = tuple(sorted(set(weight_map.values())))
            for shard in shards:
                if place.get(shard) is None:
                    raise UserError(f"{source}: lacks the shard {shard} that {index} lists")
            return shards, weight_map
    names = " or ".join(single for single, _ in _WEIGHTS)
    raise UserError(f"{source}: there are no weights ({names}, whole or in shards); {place.hint}")


def _read_weight_map(path: Path, suffix: str) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no weight_map of tensor names to files")
    for file in weight_map.values():
        # The names come from strangers, and no name may lead out of the folder.
        if not (
            isinstance(file, str)
            and file.isprintable()
            and file.endswith(suffix)
            and not file.startswith(".")
            and not set(file) & set('/\\:*?"<>|')
        ):
            raise UserError(f"{path}: weight_map names {str(file)[:80]!r}, no {suffix} file here")
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UserError if there is none."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path}: is over {_MAX_JSON_BYTES // 2**20} MiB, too large for JSON")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is not JSON ({reason}); download or save it anew") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object but a {type(value).__name__}")
    return value


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("format", "pt")
            if kind != "pt":
                raise UserError(
                    f"{path}: holds weights in the format {kind[:20]!r}; only 'pt' (torch) is read"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: has an element type that numpy cannot name ({error})") from error
    except (SafetensorError, OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: is not a whole safetensors file ({lines[0][:200]}); download it again (or "
            "run `git lfs pull` in its folder)"
        ) from error
