"""Several processes of one job, on one machine or on many: who is there, and what they exchange.

Each process works on its own devices and its own share of the corpus, in no lockstep with the
others. Only this module knows `jax.distributed` and `multihost_utils`, and only for the arrays that
are exchanged: everything jax cannot do with its peers (one did not come, one died, the port is
taken) it answers with an abort, so the processes meet and watch each other through `watch`.
"""

import atexit
import contextlib
import heapq
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt8

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.watch import Place, Watch, meet, relay

# Bytes of all processes together that go through the devices at a time.
_MOST_BYTES = 1 << 24
_HOW = (
    "give the address of process 0 as HOST:PORT, the number of processes and the number of this "
    'one from 0 on, or "auto" alone on a TPU pod, under SLURM or Open MPI'
)

Item = TypeVar("Item")


class _Job(NamedTuple):
    """What a process that is not alone keeps."""

    place: Place
    watch: Watch


_job: _Job | None = None


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout_seconds: float | int = 300.0,
    silence_seconds: float | int = 60.0,
) -> Iterator[None]:
    """Be one process of a job for as long as this lasts; with nothing given, or alone, of none.

    `coordinator` is where process 0 is met, "host:port", and `count` and `index` say which process
    this is; "auto" finds all three in the environment that a TPU pod, SLURM or Open MPI gives. The
    others must come within `timeout_seconds`. It has to begin before any device is touched.

    An error that leaves the block ends the job on all processes with a UserError that says which
    one has failed and why; so does a process that dies, or that nothing has been heard of for
    `silence_seconds`. The block ends on all together.

    Raises UserError for values that are missing or contradict each other and if the others do not
    come.
    """
    global _job
    if _job is not None:
        raise UserError("this process has joined a job already")
    place, devices = _place(coordinator, count, index, timeout_seconds)
    if place is None:
        yield
        return
    watch = Watch(meet(place, timeout_seconds), place, silence_seconds)
    try:
        _initialize(place, watch, devices, timeout_seconds, silence_seconds)
        _job = _Job(place, watch)
        yield
        watch.collect("done")
        watch.tell("all are")
        jax.distributed.shutdown()
    except BaseException as error:
        watch.fail(_reason(error))
        # jax waits for all processes before it lets one exit, and one of them has failed.
        atexit.register(_exit, _code(error))
        raise
    finally:
        _job = None
    watch.close()


def count() -> int:
    """How many processes there are."""
    return 1 if _job is None else _job.place.count


def index() -> int:
    """Which one this is, from 0 on."""
    return 0 if _job is None else _job.place.index


def is_first() -> bool:
    """Whether this is process 0, to which the others report and which writes the result."""
    return index() == 0


def check_joined() -> None:
    """Raise UserError where jax sees several processes, and this one has not joined them."""
    if _job is None and jax.process_count() > 1:
        raise UserError(
            f"there are {jax.process_count()} processes, and each would do the whole job; share it "
            'with --coordinator=auto, or processes.joined("auto")'
        )


def check() -> None:
    """Raise UserError if another process has failed or died; call it between batches."""
    if _job is not None:
        _job.watch.check()


def share(items: Sequence[Item], weights: Sequence[float | int]) -> tuple[Item, ...]:
    """The part of this process, in their order; `weights` are seconds of audio, 0 for unknown."""
    return tuple(items[i] for i in shares(weights, count())[index()])


def shares(weights: Sequence[float | int], count: int) -> list[list[int]]:
    """Positions of the items of each of `count` parts, in their order, about equally heavy.

    The heaviest first, always to the lightest part (Graham 1969, "Bounds on multiprocessing timing
    anomalies": at most 4/3 of the best there is). A weight of 0 is unknown and counts as the mean.
    """
    known = [weight for weight in weights if weight]
    mean = sum(known) / len(known) if known else 1.0
    filled = [weight or mean for weight in weights]
    parts: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0.0, part) for part in range(count)]
    for i in sorted(range(len(filled)), key=lambda i: (-filled[i], i)):
        load, part = lightest[0]
        parts[part].append(i)
        heapq.heapreplace(lightest, (load + filled[i], part))
    return [sorted(part) for part in parts]


def broadcast(tree: Any) -> Any:
    """The arrays of process 0, bit by bit, in the place of those of every process.

    They must have the same shapes and dtypes on all; raises UserError if they have not, or if
    another process is lost.
    """
    leaves, form = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    if _job is None:
        return form.unflatten(arrays)
    shapes = _job.watch.collect([_shape(array) for array in arrays])
    if shapes is not None and any(shape != shapes[0] for shape in shapes):
        raise UserError(f"the processes disagree about the shapes of what they share: {shapes}")
    _job.watch.tell(None)
    data = np.concatenate([_NOTHING, *map(_bytes, arrays)])
    start = 0
    for rows in _exchanged(data if is_first() else _NOTHING, len(data)):
        part = data[start : start + rows.shape[1]]
        part[:] = rows[0, : len(part)]
        start += len(part)
    ends = np.cumsum([array.nbytes for array in arrays])
    return form.unflatten(
        [
            data[end - array.nbytes : end].copy().view(array.dtype).reshape(array.shape)
            for array, end in zip(arrays, ends)
        ]
    )


def gather(array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]] | None:
    """The arrays of all processes, bit by bit, on process 0; None on the others.

    Shapes and dtypes may differ. They go through the devices in parts of 16 MiB of all together;
    only process 0 keeps them. Raises UserError if another process is lost.
    """
    if _job is None:
        return [array]
    shapes = _job.watch.collect(_shape(np.asarray(array)))
    found = [np.empty(shape, np.dtype(name)) for name, shape in shapes or ()]
    size = _job.watch.tell(max((one.nbytes for one in found), default=0))
    start = 0
    for rows in _exchanged(_bytes(array), size):
        for one, row in zip(found, rows):
            part = _bytes(one)[start : start + len(row)]
            part[:] = row[: len(part)]
        start += rows.shape[1]
    return found if is_first() else None


def gather_json(value: Any) -> list[Any] | None:
    """What JSON can hold, of all processes, on process 0; None on the others.

    Raises UserError if another process is lost.
    """
    return [value] if _job is None else _job.watch.collect(value)


_NOTHING = np.zeros(0, np.uint8)


def _shape(array: np.ndarray) -> list[Any]:
    return [array.dtype.name, list(array.shape)]


def _bytes(array: np.ndarray) -> UInt8[np.ndarray, " byte"]:
    """The memory of an array, where it is."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _exchanged(
    data: UInt8[np.ndarray, " byte"], size: int
) -> Iterator[UInt8[np.ndarray, "process part"]]:
    """The first `size` bytes of every process, part by part, filled up with zeros.

    As integers: without its 64-bit mode jax would round float64, and nothing is done to an integer.
    Parts are powers of two long, so that few programs are compiled.
    """
    assert _job is not None
    most = 1 << (_MOST_BYTES // _job.place.count).bit_length() - 1
    start = 0
    while start < size:
        length = min(most, max(4, 1 << (size - start - 1).bit_length()))
        words = np.zeros(length // 4, np.uint32)
        part = data[start : start + length]
        words.view(np.uint8)[: len(part)] = part
        try:
            gathered = multihost_utils.process_allgather(words)
        except jax.errors.JaxRuntimeError:
            _job.watch.wait_for_loss()
            raise
        yield np.ascontiguousarray(gathered).view(np.uint8)
        start += length


def _place(
    coordinator: str | None, count: int | None, index: int | None, timeout_seconds: float | int
) -> tuple[Place | None, Sequence[int] | None]:
    """Which process this is, None if it is the only one, and the devices that are its own.

    All devices of the machine (None), if the environment does not say otherwise.
    """
    devices: Sequence[int] | None = None
    if coordinator is None and count is None and index is None:
        return None, None
    if coordinator == "auto" and count is None and index is None:
        coordinator, count, index, devices = _from_environment(timeout_seconds)
    if coordinator in (None, "auto") or count is None or index is None:
        raise UserError(
            f"which process of how many is not clear from coordinator {coordinator!r}, number of "
            f"processes {count} and number of this process {index}; {_HOW}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"coordinator {coordinator!r} is no HOST:PORT; {_HOW}")
    if not 0 <= index < count:
        raise UserError(f"there is no process {index} of {count}: they are 0 to {count - 1}")
    place = Place(host.strip("[]"), int(port), count, index)
    return (None, None) if count == 1 else (place, devices)


def _from_environment(
    timeout_seconds: float | int,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Address, count, index and devices, as `jax.distributed.initialize()` would find them.

    Private in jax: there is no other way to know the address before all have met.
    """
    from jax._src import clusters

    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout_seconds)
        )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"the environment does not say which process this is: {error}") from error
    if None in found[:3]:
        raise UserError(f"the environment does not say which process this is; {_HOW}")
    return found


def _initialize(
    place: Place,
    watch: Watch,
    devices: Sequence[int] | None,
    timeout_seconds: float | int,
    silence_seconds: float | int,
) -> None:
    """`jax.distributed.initialize`, when all processes are there: it aborts if one is not.

    jax meets on another port than the watch, which process 0 chooses and tells.
    """
    port = watch.tell(_free_port() if place.index == 0 else None)
    ends = signal.getsignal(signal.SIGTERM)
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port if place.index == 0 else relay(place, port)}",
            place.count,
            place.index,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout_seconds) + 1,
            # The watch is always faster.
            heartbeat_timeout_seconds=int(10 * silence_seconds) + 100,
        )
    except RuntimeError as error:
        raise UserError(
            f"this process cannot join others any more, its devices have been touched: {error}"
        ) from error
    # Older releases of jax take SIGTERM for a hint, of which they make nothing.
    with contextlib.suppress(ValueError, TypeError):  # only the main thread may
        signal.signal(signal.SIGTERM, ends)
    devices_of_each = watch.collect([jax.local_device_count(), jax.process_count()])
    if any(one != [jax.local_device_count(), place.count] for one in devices_of_each or ()):
        raise UserError(
            f"each process must see {place.count} processes and equally many devices of its own, "
            f"but they see (devices, processes): {devices_of_each}"
        )
    watch.tell(None)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def _reason(error: BaseException) -> str:
    """One line for the others."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def _code(error: BaseException) -> int:
    """What the scripts exit with after such an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, UserError) else 1


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
