"""Checkpoints, on the hub, in a folder or in a file: configuration and weights.

Most are in Hugging Face's layout; adapters of PEFT have theirs merged into a base (`adapters`), the
weights of a language replace those of the main file (MMS), and the files of training programs are
read as transformers would convert them (`fairseq_checkpoint`).
"""

import difflib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401  # names bfloat16 to numpy, which safetensors asks for it
import numpy as np
from safetensors import SafetensorError, safe_open

from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.models import adapters, zoo
from speechsim_jax.models.fairseq_checkpoint import read_training_checkpoint
from speechsim_jax.models.torch_bin import read_torch_bin

TORCH_PREFIX = "torch:"
"""What the name of a model that torch is to run begins with."""

# (file, index of shards) in order of preference.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINING_SUFFIXES = (".pt", ".ckpt", ".pth")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LANGUAGE = re.compile(r"(?P<source>.+)#(?P<language>[\w-]+)", re.DOTALL | re.ASCII)
# The weights of a language: of its adapters and of the CTC head.
_OF_LANGUAGE = re.compile(r"(^|\.)adapter_layer\.|^lm_head\.")
_LANGUAGE_PREFIX = "wav2vec2."  # of a model with a head, the only family that has them
_LANGUAGE_FILES = ("adapter.{}.safetensors", "adapter.{}.bin")
_RANDOM = re.compile(r"random:(?P<source>.+?)(@(?P<seed>\d+))?", re.DOTALL)
_MAX_JSON_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**22

_log = logging.getLogger(__name__)

Read = TypeVar("Read")


@dataclass(frozen=True)
class WeightFiles:
    """A pretrained model: its configuration, and its files, which are fetched when asked for.

    Attributes:
        source: the hub id or folder, as the user wrote it.
        config: the content of config.json.
        preprocessor: the feature extractor of processor_config.json (transformers 5), or else the
            content of preprocessor_config.json; empty without either.
        notes: what the user should know about the files.
        lora: the content of adapter_config.json, for LoRA weights among the others.
        language: whose weights these are, in a model that has them for several (MMS).
    """

    source: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    _location: "_Folder | _Hub" = field(repr=False)
    notes: tuple[str, ...] = ()
    lora: dict[str, Any] | None = None
    language: str | None = None

    @property
    def folder(self) -> Path:
        """The folder that holds the files."""
        return self._location.folder

    @property
    def revision(self) -> str | None:
        """The commit of a hub model; None for a folder."""
        return self._location.revision

    def file(self, name: str) -> Path | None:
        """A file of the same commit, fetched if need be.

        Args:
            name: the name of the file in the folder or repository.

        Returns:
            Its path; None if the model has no such file.

        Raises:
            UserError: the hub cannot be reached.
        """
        return self._location.get(name)

    @functools.cached_property
    def _weights(self) -> tuple[tuple[str, ...], dict[str, str]]:
        return _find_weights(self.source, self._location)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files in use, which this fetches.

        Raises:
            UserError: there are none.
        """
        return self._weights[0]

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file for sharded weights; empty for a single file."""
        return self._weights[1]

    def tensors(self) -> dict[str, np.ndarray]:
        """Every tensor by its name in the files, with its element type there.

        Returns:
            Arrays that may be read-only views of the files.

        Raises:
            UserError: a file is missing, damaged, unsafe or disagrees with the index of shards.
        """
        return self._gathered(*self._weights, lambda file: _read_weights(self.folder / file))

    def _gathered(
        self,
        files: Iterable[str],
        weight_map: Mapping[str, str],
        read: Callable[[str], dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """The tensors of all files; an adapter among them is merged."""
        tensors: dict[str, np.ndarray] = {}
        for file in files:
            path = self.folder / file
            shard = read(file)
            duplicates = tensors.keys() & shard.keys()
            if duplicates:
                raise UserError(f"{path}: tensor {min(duplicates)!r} is in another shard too")
            listed = {name for name, holder in weight_map.items() if holder == file}
            missing = listed - shard.keys()
            if missing:
                raise UserError(
                    f"{path}: lacks {len(missing)} of the tensors that the shard index lists, "
                    f"e.g. {min(missing)!r}; download the checkpoint again"
                )
            tensors |= shard
        return self._with_lora(tensors) if adapters.has_lora(tensors) else tensors

    @functools.cached_property
    def _listed(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """As `_weights`, without fetching any."""
        return _find_weights(self.source, self._location, self._location.size)

    @functools.cached_property
    def weight_sizes(self) -> dict[str, int]:
        """Bytes of every weight file, none of which is fetched for it.

        Raises:
            UserError: there are none.
        """
        return {file: self._location.size(file) or 0 for file in self._listed[0]}

    @property
    def not_fetched(self) -> dict[str, int]:
        """Those of `weight_sizes` that `headers` would have to fetch, being files of torch.

        Raises:
            UserError: there are no weight files.
        """
        return {
            file: size
            for file, size in self.weight_sizes.items()
            if Path(file).suffix != ".safetensors" and not self._location.is_here(file)
        }

    def headers(self) -> dict[str, np.ndarray]:
        """Tensors of the types and shapes of `tensors`, by name, of which no weight is read.

        Of safetensors files on the hub only the heads are fetched.

        Returns:
            Read-only arrays of ones that take no memory.

        Raises:
            UserError: as `tensors`, as far as it can be known.
        """
        return self._gathered(*self._listed, functools.partial(_headers, self._location))

    def _with_lora(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of a file that holds an adapter beside its base, merged."""
        if self.lora is None:
            raise UserError(
                f"{self.source}: has LoRA weights, and no {_ADAPTER_CONFIG} with their alpha; "
                f"{adapters.MERGE}"
            )
        settings = adapters.LoraSettings.read(self.lora, self.source)
        base, adapter = adapters.separated(tensors, self.source)
        return _merged(settings, base, adapter, self.source)

    def digest(self) -> str:
        """The SHA-256 of the weight files and config.json, in hexadecimal.

        Raises:
            UserError: a file cannot be read.
        """
        with_alpha = () if self.lora is None else (_ADAPTER_CONFIG,)
        names = (*self.files, "config.json", *with_alpha)
        return _digest(self.folder / file for file in names)


@dataclass(frozen=True, kw_only=True)
class _Adapted(WeightFiles):
    """An adapter of PEFT and its base, whose configuration this has."""

    base: WeightFiles
    settings: adapters.LoraSettings

    @functools.cached_property
    def _weights(self) -> tuple[tuple[str, ...], dict[str, str]]:
        for name in _ADAPTERS:
            if self._location.get(name):
                return (name,), {}
        raise UserError(
            f"{self.source}: has {_ADAPTER_CONFIG}, but no {' or '.join(_ADAPTERS)}; "
            f"{self._location.hint}"
        )

    def file(self, name: str) -> Path | None:
        return self._location.get(name) or self.base.file(name)

    @functools.cached_property
    def weight_sizes(self) -> dict[str, int]:
        own = {file: self._location.size(file) or 0 for file in self.files}
        return own | self.base.weight_sizes

    @property
    def not_fetched(self) -> dict[str, int]:
        return self.base.not_fetched

    def headers(self) -> dict[str, np.ndarray]:
        adapter = _headers(self._location, self.files[0])
        return _merged(self.settings, self.base.headers(), adapter, self.source)

    def tensors(self) -> dict[str, np.ndarray]:
        adapter = _read_weights(self.folder / self.files[0])
        return _merged(self.settings, self.base.tensors(), adapter, self.source)

    def digest(self) -> str:
        own = _digest([self.folder / self.files[0], self.folder / _ADAPTER_CONFIG])
        return hashlib.sha256(f"{own}\0{self.base.digest()}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _OfLanguage(WeightFiles):
    """A model, and the file with the weights of one of its languages."""

    base: WeightFiles
    adapter: Path
    own: dict[str, np.ndarray] = field(repr=False)

    @functools.cached_property
    def _weights(self) -> tuple[tuple[str, ...], dict[str, str]]:
        return self.base.files, self.base.weight_map

    @functools.cached_property
    def weight_sizes(self) -> dict[str, int]:
        return {self.adapter.name: self.adapter.stat().st_size} | self.base.weight_sizes

    @property
    def not_fetched(self) -> dict[str, int]:
        return self.base.not_fetched

    def headers(self) -> dict[str, np.ndarray]:
        own = {name: _like(tensor.dtype, tensor.shape) for name, tensor in self.own.items()}
        return self._of_language(self.base.headers(), own)

    def tensors(self) -> dict[str, np.ndarray]:
        return self._of_language(self.base.tensors(), self.own)

    def _of_language(
        self, base: dict[str, np.ndarray], own: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The tensors with those of this language instead of those of the main file's."""
        prefixed = any(name.startswith(_LANGUAGE_PREFIX) for name in base)
        prefix = _LANGUAGE_PREFIX if prefixed else ""
        own = {
            name if name.startswith("lm_head.") else f"{prefix}{name}": tensor
            for name, tensor in own.items()
        }
        return {name: t for name, t in base.items() if not _OF_LANGUAGE.search(name)} | own

    def digest(self) -> str:
        return hashlib.sha256(
            f"{_digest([self.adapter])}\0{self.base.digest()}".encode()
        ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _TrainingFile(WeightFiles):
    """A checkpoint of a training program: one file with configuration and weights."""

    path: Path
    named: dict[str, np.ndarray] = field(repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path.name,)

    @property
    def weight_map(self) -> dict[str, str]:
        return {}

    @functools.cached_property
    def weight_sizes(self) -> dict[str, int]:
        return {self.path.name: self.path.stat().st_size}

    def headers(self) -> dict[str, np.ndarray]:
        return {name: _like(array.dtype, array.shape) for name, array in self.named.items()}

    def file(self, name: str) -> Path | None:
        return None  # what lies beside it belongs to other checkpoints too

    def tensors(self) -> dict[str, np.ndarray]:
        return dict(self.named)

    def digest(self) -> str:
        return _digest([self.path])


def _merged(
    settings: adapters.LoraSettings,
    base: dict[str, np.ndarray],
    adapter: dict[str, np.ndarray],
    source: str,
) -> dict[str, np.ndarray]:
    tensors, left_out = adapters.merged(settings, base, adapter, source)
    if left_out:
        _log.warning(
            "%s: changes %s, which is not part of the encoder and not in the base; left out",
            source, ", ".join(left_out[:4]),
        )  # fmt: skip
    return tensors


def _digest(paths: Iterable[Path]) -> str:
    """The SHA-256 of files, and of their names and sizes, which keep two from looking like one."""
    total = hashlib.sha256()
    for path in paths:
        try:
            total.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    total.update(chunk)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return total.hexdigest()


def untrained(source: str) -> tuple[str, int] | None:
    """The model and the seed of "random:ID" or "random:ID@SEED"; None for another source.

    Raises:
        UserError: the model has a language, which random weights have not.
    """
    match = _RANDOM.fullmatch(source)
    if match is None:
        return None
    check_no_language(match["source"])
    return match["source"], int(match["seed"] or 0)


def check_no_language(source: str) -> None:
    """Raise UserError for "ID#LANGUAGE" as the model of a random baseline."""
    model, language = split_language(source)
    if language is not None:
        raise UserError(f"random:{source}: random weights have no language; use random:{model}")


def split_language(source: str) -> tuple[str, str | None]:
    """The model and the language of "ID#LANGUAGE"; None for a source without a language.

    A folder or file whose own name is so is no model with a language.
    """
    match = _LANGUAGE.fullmatch(source)
    try:
        if match is None or Path(source).expanduser().exists():
            return source, None
    except (OSError, RuntimeError):  # too long, no permission, no such user: said elsewhere
        pass
    return (source, None) if match is None else (match["source"], match["language"])


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> WeightFiles:
    """Locate a checkpoint and read its configuration, but not its weights.

    Args:
        source: a folder, a checkpoint of fairseq, s3prl or the original WavLM (a file .pt), or
            a hub id such as "facebook/hubert-base-ls960". What begins with ".", "/" or "~" or has
            two slashes is never a hub id; "zoo:NAME" is a model that comes with the package.
            "ID#LANGUAGE" is a folder or hub model with the weights of a language that it has in
            adapter.LANGUAGE.safetensors or .bin (MMS).
        revision: branch, tag or commit of a hub model (default: "main").
        cache_dir: the cache of hub models (default: huggingface_hub's own).
        local_files_only: take hub models from the cache, without the network.

    Returns:
        The checkpoint; its weights are fetched when they are asked for.

    Raises:
        UserError: there is no such folder, file or hub model, or it lacks a configuration.
    """
    model, language = split_language(str(source))
    if language is not None:
        checkpoint = open_checkpoint(
            Path(model) if isinstance(source, Path) else model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return _of_language(str(source), checkpoint, language)
    text = str(source)
    if text.startswith(zoo.PREFIX):
        if revision is not None:
            raise UserError(f"{text}: comes with the package and has no revision {revision!r}")
        return _plain(text, _Folder(zoo.folder(text.removeprefix(zoo.PREFIX))))
    hub = functools.partial(_Hub, cache_dir=cache_dir, local_files_only=local_files_only)
    try:
        folder = Path(text).expanduser() if text.startswith("~") else Path(text)
        is_folder, is_file = bool(text) and folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError) as error:  # too long, no permission, no such user
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{text[:200]}: cannot be looked up as a folder ({reason})") from error
    if is_folder and revision is not None:
        raise UserError(f"{text}: is a folder, and a folder has no revision {revision!r}")
    if is_folder:
        return _assemble(text, _Folder(folder), hub)
    if is_file and revision is not None:
        raise UserError(f"{text}: is a file, and a file has no revision {revision!r}")
    if is_file and folder.suffix in _TRAINING_SUFFIXES:
        return _training_file(text, folder)
    if is_file:
        raise UserError(
            f"{text}: is a file; give the folder that holds config.json, or a checkpoint of "
            "fairseq, s3prl or the original WavLM (.pt)"
        )
    if folder.suffix in _TRAINING_SUFFIXES:
        raise UserError(f"{text}: there is no such file")
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"{text}: there is no such folder{_similar_folder(folder)}")
    if similar := _similar_folder(folder):  # the hub may take minutes to say no
        _log.warning("%s: no such folder here%s The hub is asked for it", text, similar)
    return _assemble(text, hub(text, revision or "main").at_commit(), hub)


def _of_language(source: str, base: WeightFiles, language: str) -> WeightFiles:
    """A model with the weights of a language; raises UserError if it has none of that."""
    if type(base) is not WeightFiles:
        raise UserError(
            f"{source}: a language can be chosen of a folder or hub model of MMS only, not of an "
            "adapter or a training checkpoint"
        )
    files = [base.file(name.format(language)) for name in _LANGUAGE_FILES]
    path = next((file for file in files if file is not None), None)
    if path is None:
        raise UserError(f"{source}: {_languages(base, language)}")
    own = {name.removeprefix(_LANGUAGE_PREFIX): t for name, t in _read_weights(path).items()}
    others = [name for name in own if not _OF_LANGUAGE.search(name)]
    if others:
        raise UserError(
            f"{path}: has {others[0][:80]}, which is neither of an adapter (adapter_layer) nor of "
            "the head (lm_head); expected the weights of a language of MMS"
        )
    config = base.config
    if (head := own.get("lm_head.bias")) is not None:
        config = config | {"vocab_size": head.size}
    return _OfLanguage(
        source,
        config,
        base.preprocessor,
        base._location,
        base.notes,
        base.lora,
        language,
        base=base,
        adapter=path,
        own=own,
    )


def _languages(base: WeightFiles, language: str) -> str:
    """What to say of a language that a model has no weights of."""
    pattern = re.compile("|".join(f.format("([\\w-]+)") for f in _LANGUAGE_FILES), re.ASCII)
    matches = map(pattern.fullmatch, base._location.names())
    known = sorted({match[1] or match[2] for match in matches if match})
    if not known:
        return f"has no weights of languages, and so none of {language!r}; leave out #{language}"
    if len(known) <= 8:
        return f"has no language {language!r}, only {', '.join(known)}"
    some = ", ".join(difflib.get_close_matches(language, known, n=8, cutoff=0))
    return f"has no language {language!r}; the nearest of its {len(known)} in spelling: {some}"


def _training_file(source: str, path: Path) -> WeightFiles:
    read = read_training_checkpoint(path)
    notes = tuple(f"{source}: {note}" for note in read.notes)
    location = _Folder(path.parent)
    return _TrainingFile(
        source,
        read.config,
        read.preprocessor,
        location,
        notes,
        path=path,
        named=read.tensors,
    )


def _similar_folder(path: Path) -> str:
    """The question after a path of which the last part does not exist, but nearly does."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    return did_you_mean(path.name, siblings)


@dataclass(frozen=True)
class _Folder:
    """A checkpoint's files in a local folder."""

    folder: Path
    revision: None = None
    hint: str = "save the model with save_pretrained(folder)"

    def get(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """The names of all files that are here."""
        return [path.name for path in self.folder.iterdir()]

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        path = self.get(name)
        return None if path is None else path.stat().st_size

    def is_here(self, name: str) -> bool:
        """Whether the file need not be fetched."""
        return True


@dataclass(frozen=True)
class _Hub:
    """A checkpoint's files on the hub, each fetched into the cache when it is asked for."""

    repo: str
    revision: str
    cache_dir: str | Path | None
    local_files_only: bool
    folder: Path = Path()
    pinned: bool = False

    def at_commit(self) -> "_Hub":
        """The same model, pinned to the commit that the revision points to now.

        All other files are requested by commit, so that they belong together even if the branch
        moves between two downloads.
        """
        located = self
        if self.offline and (commit := self._cached_commit()):
            located = replace(self, revision=commit)
        config = located.get("config.json") or located.get(_ADAPTER_CONFIG)
        if config is None:
            raise UserError(f"{self.repo}: there is no config.json; {self.hint}")
        folder = config.parent
        return _Hub(self.repo, folder.name, self.cache_dir, self.local_files_only, folder, True)

    def _cached_commit(self) -> str | None:
        """The commit in the cache that the revision means; None if huggingface_hub finds it itself.

        A cache that was copied may lack its refs, or have them with a line end: then the only
        snapshot is taken.
        """
        from huggingface_hub import constants

        root = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        root /= f"models--{self.repo.replace('/', '--')}"
        ref = root / "refs" / self.revision
        try:
            snapshots = [path.name for path in (root / "snapshots").iterdir() if path.is_dir()]
            text = ref.read_text() if ref.is_file() else ""
        except (OSError, ValueError):
            return None
        if text.strip() in snapshots:
            return text.strip() if text != text.strip() else None
        if self.revision in snapshots or self.revision != "main" or len(snapshots) != 1:
            return None
        _log.warning("%s: the cache has no refs; its only snapshot is used", self.repo)
        return snapshots[0]

    @property
    def offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE

    @property
    def hint(self) -> str:
        if self.offline:
            return "the cache lacks it and the network is switched off: fetch it once online"
        return "choose another model, or another revision of it"

    def get(self, name: str) -> Path | None:
        """The file in the cache, downloaded if need be; None if the model has no such file."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            if self.pinned:
                cached = huggingface_hub.try_to_load_from_cache(
                    self.repo, name, cache_dir=self.cache_dir, revision=self.revision
                )
                if cached is not None:  # a path, or a marker that the commit has no such file
                    return Path(cached) if isinstance(cached, str) else None
            path = huggingface_hub.hf_hub_download(
                self.repo,
                name,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=self.offline,
            )
        except errors.EntryNotFoundError as error:
            # "Not in the cache" is an answer only while the network is switched off.
            if isinstance(error, errors.LocalEntryNotFoundError) and not self.offline:
                raise UserError(self._explain(name, error)) from error
            return None
        except Exception as error:
            # The HTTP library below huggingface_hub, and so its errors, change with its version.
            raise UserError(self._explain(name, error)) from error
        return Path(path)

    def names(self) -> list[str]:
        """The names of all files of the commit; offline, of those in the cache."""
        import huggingface_hub

        if not self.offline:
            try:
                return huggingface_hub.HfApi().list_repo_files(self.repo, revision=self.revision)
            except Exception:  # of the HTTP library: what is in the cache will do
                _log.debug("%s: its files cannot be listed", self.repo, exc_info=True)
        return [path.name for path in self.folder.iterdir()]

    def _cached(self, name: str) -> Path | None:
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(
            self.repo, name, cache_dir=self.cache_dir, revision=self.revision
        )
        return Path(cached) if isinstance(cached, str) else None

    def is_here(self, name: str) -> bool:
        """Whether the file need not be fetched."""
        return self._cached(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file, which is not fetched for it; None if there is none."""
        if (path := self._cached(name)) is not None or self.offline:
            return None if path is None else path.stat().st_size
        import huggingface_hub
        from huggingface_hub import errors

        try:
            url = huggingface_hub.hf_hub_url(self.repo, name, revision=self.revision)
            return huggingface_hub.get_hf_file_metadata(url).size
        except errors.EntryNotFoundError:
            return None
        except Exception as error:
            raise UserError(self._explain(name, error)) from error

    def safetensors_head(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every tensor of a file that is not here, from its first bytes."""
        import huggingface_hub

        try:
            read = huggingface_hub.HfApi().parse_safetensors_file_metadata(
                self.repo, name, revision=self.revision
            )
        except Exception as error:
            raise UserError(self._explain(name, error)) from error
        _check_layout(f"{self.repo}/{name}", read.metadata)
        return {name: (t.dtype, tuple(t.shape)) for name, t in read.tensors.items()}

    def _explain(self, name: str, error: Exception) -> str:
        from huggingface_hub import constants, errors

        if isinstance(error, errors.GatedRepoError):
            page = f"{constants.ENDPOINT}/{self.repo}"
            return f"{self.repo}: is gated; accept its terms at {page}, then run `hf auth login`"
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return (
                f"{self.repo}: neither a folder nor a model on the hub; check the name (if it is "
                f"private, run `hf auth login`){_similar_folder(Path(self.repo))}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return (
                f"{self.repo}: has no revision {self.revision!r}; check the branch, tag or commit"
            )
        if isinstance(error, errors.HFValidationError):
            return f"{self.repo}: neither a folder nor a hub id such as facebook/hubert-base-ls960"
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        similar = _similar_folder(Path(self.repo))
        reason = next(iter(str(cause or error).strip().splitlines()), type(error).__name__)
        return (
            f"{self.repo}: {name} cannot be fetched from {constants.ENDPOINT} ({reason}); check "
            f"the connection and try again, or give a local folder{similar}"
        )


def _assemble(
    source: str, location: _Folder | _Hub, hub: Callable[[str, str], _Hub]
) -> WeightFiles:
    """A model, or an adapter with its base: as in transformers, an adapter goes first."""
    config = location.get(_ADAPTER_CONFIG)
    if config is None:
        return _plain(source, location)
    lora = read_json(config)
    if location.get("config.json") and not any(map(location.get, _ADAPTERS)):
        return _plain(source, location, lora)
    settings = adapters.LoraSettings.read(lora, source)
    base = _base(source, location, lora, hub)
    preprocessor, notes = _find_preprocessor(location)
    at = f" at commit {base.revision}" if base.revision else ""
    notes = (f"is a LoRA adapter, merged into {base.source}{at}", *notes)
    return _Adapted(
        source,
        base.config,
        preprocessor or base.preprocessor,
        location,
        (*(f"{source}: {note}" for note in notes), *base.notes),
        base=base,
        settings=settings,
    )


def _base(
    source: str,
    location: _Folder | _Hub,
    config: dict[str, Any],
    hub: Callable[[str, str], _Hub],
) -> WeightFiles:
    """The model that an adapter belongs to: a folder, if the adapter is in one, or a hub id.

    Raises UserError if it cannot be opened. The name comes from a file that others wrote: that of
    an adapter on the hub never opens a folder here.
    """
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) < 1000:
        raise UserError(f"{source}: {_ADAPTER_CONFIG} has no base_model_name_or_path")
    if untrained(name):
        raise UserError(
            f"{source}: its base, {ascii(name)[:200]}, is a random network, which an adapter "
            f"cannot have; an untrained one of its architecture is random:{source}"
        )
    try:
        if name.startswith(zoo.PREFIX):
            return _plain(name, _Folder(zoo.folder(name.removeprefix(zoo.PREFIX))))
        if isinstance(location, _Folder) and not name.startswith(("//", "\\\\")):
            for folder in (Path(name), location.folder / name):  # as PEFT, or beside the adapter
                if any((folder / file).is_file() for file in ("config.json", _ADAPTER_CONFIG)):
                    own = folder.resolve() == location.folder.resolve()
                    return _base_itself(str(folder), _Folder(folder), own)
        if _HUB_ID.fullmatch(name):
            revision = config.get("revision")
            model = hub(name, revision if isinstance(revision, str) else "main").at_commit()
            return _base_itself(name, model, model.folder == location.folder)
    except (UserError, OSError) as error:
        raise UserError(f"{source}: its base cannot be opened: {error}") from error
    raise UserError(
        f"{source}: its base, {ascii(name)[:200]}, is not here; put the base's folder or hub id "
        f"into base_model_name_or_path of {_ADAPTER_CONFIG} (in a local folder), or "
        f"{adapters.MERGE}"
    )


def _base_itself(source: str, location: _Folder | _Hub, own: bool) -> WeightFiles:
    """A base's files; `own`: they lie in the adapter's folder, whose adapter is not the base's."""
    config = None if own else location.get(_ADAPTER_CONFIG)
    if config and (any(map(location.get, _ADAPTERS)) or not location.get("config.json")):
        raise UserError(
            f"{source} is an adapter too, and adapters of adapters are not supported; merge that "
            f"one first and put the folder of the result into base_model_name_or_path of "
            f"{_ADAPTER_CONFIG}; {adapters.MERGE}"
        )
    return _plain(source, location, read_json(config) if config else None)


def _plain(
    source: str, location: _Folder | _Hub, lora: dict[str, Any] | None = None
) -> WeightFiles:
    path = location.get("config.json")
    if path is None:
        raise UserError(f"{source}: there is no config.json; {location.hint}")
    preprocessor, notes = _find_preprocessor(location)
    notes = tuple(f"{source}: {note}" for note in notes)
    return WeightFiles(source, read_json(path), preprocessor, location, notes, lora)


def _find_preprocessor(location: _Folder | _Hub) -> tuple[dict[str, Any], list[str]]:
    """As transformers 5: what processor_config.json nests goes before preprocessor_config.json."""
    old = {}
    if path := location.get("preprocessor_config.json"):
        old = read_json(path)
    if path := location.get("processor_config.json"):
        processor = read_json(path)
        for key in ("feature_extractor", "audio_processor"):
            if key not in processor:
                continue
            nested = processor[key]
            if not isinstance(nested, dict):
                raise UserError(f"{path}: {key} is not a JSON object")
            differing = [
                f"{name} {nested[name]} and {old[name]}"
                for name in ("do_normalize", "sampling_rate")
                if name in nested and name in old and nested[name] != old[name]
            ]
            return nested, [
                f"processor_config.json and preprocessor_config.json differ in {what}; the first "
                "counts, as in transformers"
                for what in differing
            ]
    return old, []


def _find_weights(
    source: str, location: _Folder | _Hub, find: Callable[[str], Any] | None = None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The weight files, and which of them holds which tensor (empty for a single file).

    `find`: None of a file that is not there; by default weights are fetched.
    """
    find = location.get if find is None else find
    for single, index in _WEIGHTS:
        if find(single) is not None:
            return (single,), {}
        if path := location.get(index):
            weight_map = _read_weight_map(path, Path(single).suffix)
            shards = tuple(sorted(set(weight_map.values())))
            for shard in shards:
                if find(shard) is None:
                    raise UserError(f"{source}: lacks the shard {shard} that {index} lists")
            return shards, weight_map
    names = " or ".join(single for single, _ in _WEIGHTS)
    raise UserError(
        f"{source}: there are no weights ({names}, single or in shards); {location.hint}"
    )


def _read_weight_map(path: Path, suffix: str) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no weight_map of tensor names to files")
    for file in weight_map.values():
        # The names come from untrusted files, and none may lead out of the folder.
        if not (
            isinstance(file, str)
            and file.isprintable()
            and file.endswith(suffix)
            and not file.startswith(".")
            and not set(file) & set('/\\:*?"<>|')
        ):
            raise UserError(
                f"{path}: weight_map names {str(file)[:80]!r}; expected a {suffix} file next to it"
            )
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
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
        raise UserError(f"{path}: is not JSON ({reason}); download or save it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object but a {type(value).__name__}")
    return value


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_bin(path)


# Types of safetensors files by their names there.
_ELEMENT_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def _headers(location: _Folder | _Hub, file: str) -> dict[str, np.ndarray]:
    """Tensors of the types and shapes of those in a file, of which no weight is read."""
    fetched = location.is_here(file) or Path(file).suffix != ".safetensors"
    if isinstance(location, _Hub) and not fetched:
        return _of_types(f"{location.repo}/{file}", location.safetensors_head(file))
    path = location.get(file)
    if path is None:
        raise UserError(f"{location.folder / file}: there is no such file")
    if path.suffix != ".safetensors":
        return {name: _like(t.dtype, t.shape) for name, t in read_torch_bin(path).items()}

    def types(opened: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: (p.get_dtype(), tuple(p.get_shape())) for name, p in parts.items()}

    return _of_types(str(path), _opened_safetensors(path, types))


def _of_types(
    origin: str, types: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    unknown = [kind for kind, _ in types.values() if kind not in _ELEMENT_TYPES]
    if unknown:
        raise UserError(f"{origin}: has an element type that is not known ({unknown[0][:20]!r})")
    return {name: _like(np.dtype(_ELEMENT_TYPES[t]), shape) for name, (t, shape) in types.items()}


def _like(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Ones of a type and shape that take no memory."""
    return np.broadcast_to(np.ones((), dtype), shape)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    def arrays(opened: Any) -> dict[str, np.ndarray]:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    return _opened_safetensors(path, arrays)


def _check_layout(origin: str, metadata: Mapping[str, str] | None) -> None:
    layout = (metadata or {}).get("format", "pt")
    if layout != "pt":
        raise UserError(
            f"{origin}: contains weights in the format {layout[:20]!r}; only 'pt' (torch) is read"
        )


def _opened_safetensors(path: Path, read: Callable[[Any], Read]) -> Read:
    """What `read` makes of the file; raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            _check_layout(str(path), file.metadata())
            return read(file)
    except UserError:
        raise
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: has an element type that numpy cannot name ({error})") from error
    except (SafetensorError, OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: is not a complete safetensors file ({lines[0][:200]}); download it again (or "
            "run `git lfs pull` in its folder)"
        ) from error
