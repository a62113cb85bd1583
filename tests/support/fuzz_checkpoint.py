"""Feed mutated weight files to the readers.

    python -m tests.support.fuzz_checkpoint --cases=10000

Cases are read in a child process with bounded address space and two seconds for each; an audit
hook counts every sign of execution.
"""

import argparse
import codecs
import collections
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechsim_jax.errors import UserError
from speechsim_jax.models import checkpoint_files, fairseq_checkpoint, torch_bin
from tests.support import fairseq_writer
from tests.support.paths import ROOT
from tests.support.torch_writer import (
    METADATA,
    Member,
    members,
    state_dict,
    storage,
    tensor,
    text,
    zip_file,
)

SECONDS_PER_CASE = 2.0
MEMORY_BYTES = 512 * 2**20

# --- mutations ------------------------------------------------------------------------------------

KINDS = {
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "BoolStorage": 1,
}
SMALL_NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**16)
LARGE_NUMBERS = (2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64)
JSON_NUMBERS = SMALL_NUMBERS + LARGE_NUMBERS
NUMBERS = (*JSON_NUMBERS, 2**2000)
HOSTILE = (
    b"cos\nsystem\n(" + text("true") + b"tR",
    b"c__builtin__\neval\n(" + text("1") + b"tR",
    b"cbuiltins\nexec\n(" + text("1") + b"tR",
    b"(" + text("true") + b"ios\nsystem\n",
    b"(cos\nsystem\n" + text("true") + b"o",
    b"csubprocess\nPopen\n)\x81",
    b"\x82\x01",
    b"\x83\x01\x00",
    b"\x84\x01\x00\x00\x00",
    b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    b"ctorch\nFloatStorage\n)R",
    b"}" + text("__setstate__") + b"cos\nsystem\nsb",
    b"}" + text("__class__") + text("x") + b"sb",
    b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
    b")" + b"q\x01h\x01h\x01\x86" * 200,
    b"(" * 5000,
    b"I" + b"9" * 20_000 + b"\n",
    b"L" + b"9" * 20_000 + b"L\n",
    b"Ppersid\n",
    b"\x80\x04",
    b"\x93",
    b"]" + b"a" * 3,
)
# What only a training checkpoint may have.
HOSTILE_OBJECTS = (
    b"cx\nY\n" + text("a") * 20 + b"(" + text("a") * 20 + b"tR",
    b"(" + b"N" * 5000 + b"tq\x01" + b"cx\nY\nh\x01R" * 50,
    b"(" * 60 + b"]" + b"q\x00h\x00t" * 60,
    b"}(" + b"(" * 40 + b")" + b"q\x00h\x00t" * 40 + b"NsN",
    b"]q\x01h\x01a",
    b"cx\nY\n)\x81q\x01h\x01b",
    b"cx\nY\n)\x81}" + text("__dict__") + b"cos\nsystem\nsb",
    b"cx\nY\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsbNb",
    b"cx\nY\n)\x81q\x01(" + b"h\x01" * 2000 + b"e",
    b"cx\nY\n)\x81q\x01(" + b"h\x01N" * 2000 + b"u",
    b"ccollections\nOrderedDict\n)\x81",
    b"ctorch\nFloatStorage\n)\x81",
    b"ctorch._utils\n_rebuild_tensor_v2\n)\x81",
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R",
    b"c_codecs\nencode\n" + text("a") + text("latin1") + b"\x86R",
    b"cbuiltins\neval\n" + text("1") + b"\x85R",
    b"cposix\nsystem\n" + text("true") + b"\x85\x81",
)


def _sample_tensor(rng: random.Random, key: str) -> tuple[bytes, bytes]:
    """A tensor's pickle and storage, with one field wrong in half of the cases."""
    kind, width = rng.choice(list(KINDS.items()))
    size = [rng.randint(0, 4) for _ in range(rng.randint(0, 3))]
    stride = [int(np.prod(size[axis + 1 :])) for axis in range(len(size))]
    numel, offset = int(np.prod(size)), 0
    block = rng.randbytes(numel * width)
    match rng.randrange(14):
        case 0 if size:
            size[rng.randrange(len(size))] = rng.choice(NUMBERS)
        case 1 if size:
            stride[rng.randrange(len(size))] = rng.choice(NUMBERS)
        case 2:
            offset = rng.choice(NUMBERS)
        case 3:
            numel = rng.choice(NUMBERS)
        case 4:
            block += rng.randbytes(rng.randint(1, 9))
        case 5:
            size, stride = [rng.choice(NUMBERS)] * 2, [0, 0]
        case 6:
            size, stride = [1] * rng.choice((32, 33, 1000)), [0] * 32
        case 7:
            kind = rng.choice(("QInt8Storage", "torch.storage.UntypedStorage", "NoStorage"))
        case _:
            pass
    return tensor(storage(kind, key, numel), tuple(size), tuple(stride), offset), block


def _mutate_pickle(
    rng: random.Random, pickled: bytes, hostile: tuple[bytes, ...] = HOSTILE
) -> bytes:
    at = rng.randrange(2, len(pickled))
    match rng.randrange(12):
        case 0:
            return pickled[:at] + rng.choice(hostile) + pickled[at:]
        case 1:
            return pickled[:-1] + rng.choice(hostile) + b"."
        case 2:
            return pickled[:at] + rng.randbytes(1) + pickled[at + 1 :]
        case 3:
            return pickled[:at] + pickled[at + rng.randint(1, 9) :]
        case 4:
            end = at + rng.randint(1, 60)
            return pickled[:end] + pickled[at:end] * rng.randint(1, 50) + pickled[end:]
        case _:
            return pickled


def _mutate_members(rng: random.Random, files: list[Member]) -> bytes:
    victim = rng.choice(files)
    match rng.randrange(36):
        case 0:
            victim.size = rng.choice((0, 1, 2**31, 2**32 - 2, len(victim.data) + 1))
        case 1:
            victim.name = rng.choice(
                ("archive/../x", "/etc/passwd", "x", "archive/data/0", "a\\b/c")
            )
        case 2:
            victim.method, victim.packed = rng.choice(((8, None), (0, 3), (99, None)))
        case 3:
            victim.header = rng.choice((0, 1, 2**31, 2**32 - 2))
        case 4:
            victim.local_name = "archive/other"
        case 5:
            files.append(victim)
        case 6:
            victim.zip64 = True
            victim.size, victim.header = (
                rng.choice((None, *NUMBERS[1:14])),
                rng.choice((None, 0, 2**63)),
            )
        case 7:
            files.remove(victim)
        case 8:
            return zip_file(files, count=rng.choice((0, 1, 65_535)))
        case _:
            pass
    packed = zip_file(files, zip64=rng.random() < 0.5)
    match rng.randrange(30):
        case 0:
            return packed[: rng.randrange(len(packed))]
        case 1:
            at = rng.randrange(len(packed))
            return packed[:at] + rng.randbytes(1) + packed[at + 1 :]
        case _:
            return packed


def torch_case(rng: random.Random) -> bytes:
    samples = {f"t{i}": _sample_tensor(rng, str(i)) for i in range(rng.randint(1, 4))}
    pickled = state_dict({name: pair[0] for name, pair in samples.items()}, METADATA)
    blocks = {name[1:]: pair[1] for name, pair in samples.items()}
    order = rng.choice((b"little",) * 20 + (b"big",) * 4 + (b"middle",))
    return _mutate_members(rng, members(_mutate_pickle(rng, pickled), blocks, order))


def training_case(rng: random.Random) -> bytes:
    """A small checkpoint in fairseq's layout, with one setting or weight wrong in half of them."""
    config = {
        "model_type": rng.choice(("wav2vec2", "hubert", "data2vec-audio")),
        "conv_pos_kernel_size": rng.choice((3, 19)),
        "feat_extract_norm": rng.choice(("group", "layer")),
        "num_hidden_layers": 1, "hidden_size": 2, "intermediate_size": 2,
        "num_attention_heads": 1, "do_stable_layer_norm": False, "conv_bias": False,
        "num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 1,
        "conv_dim": (2,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (2,) * 7,
    }  # fmt: skip
    model = fairseq_writer.settings(config)
    weights = {
        name: np.frombuffer(rng.randbytes(8), "<f4")
        for name in ("mask_emb", "layer_norm.weight", "encoder.layers.0.fc1.bias", "final_proj.x")
    }
    cfg = {"model": model, "task": {"normalize": rng.choice((True, False))}}
    victim = rng.choice((model, weights, cfg, cfg["task"], {}))
    if victim and rng.random() < 0.5:
        value = rng.choice((None, "x", -1, 2**70, 1.5, [], {}, (1, (2,)), *HOSTILE_OBJECTS))
        victim[rng.choice(list(victim))] = value
    if rng.random() < 0.3:
        cfg = fairseq_writer.omegaconf(cfg)
    elif rng.random() < 0.3:
        cfg = {"model": {"w2v_args": cfg}, "task": cfg["task"]}
    entries = fairseq_writer.checkpoint(cfg, weights)
    if rng.random() < 0.2:
        entries |= {"cfg": None, "args": fairseq_writer.namespace(**model, arch="wav2vec2")}
    pickled, blocks = fairseq_writer.pickled(entries)
    pickled = _mutate_pickle(rng, pickled, HOSTILE + HOSTILE_OBJECTS)
    return _mutate_members(rng, members(pickled, blocks))


def safetensors_case(rng: random.Random) -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    field = rng.choice(("dtype", "shape", "data_offsets", "none"))
    victim = header[rng.choice("ab")]
    if field == "dtype":
        victim[field] = rng.choice(("F64", "I8", "F8_E4M3", "BOOL", "X", 3, "F4"))
    elif field != "none":
        victim[field] = [rng.choice(JSON_NUMBERS) for _ in range(rng.randint(0, 4))]
    if rng.random() < 0.2:
        header["__metadata__"] = rng.choice(({"format": "tf"}, {}, [], {"format": 3}))
    raw = json.dumps(header).encode()
    if rng.random() < 0.2:
        at = rng.randrange(len(raw))
        raw = (
            raw[:at] + rng.choice((rng.randbytes(1), b"[" * 3000, b"\\ud800", b"")) + raw[at + 1 :]
        )
    length = rng.choice(NUMBERS[1:14]) if rng.random() < 0.1 else len(raw)
    return struct.pack("<Q", length) + raw + bytes(range(32))[: rng.choice((32, 32, 32, 31, 0))]


# --- the child: reads cases, one line of outcome each ---------------------------------------------


class Watch:
    """Counts the stages reached, and audit events that only executed code would raise."""

    def __init__(self):
        self.armed = False
        self.executions = 0
        self.stages: set[str] = set()
        sys.addaudithook(self._audit)
        self._note(torch_bin, "_checked", "pickle")
        self._note(torch_bin._Unpickler, "tensor", "tensor")
        self._note(fairseq_checkpoint, "_config", "settings")
        self._note(checkpoint_files, "safe_open", "header")

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        harmless = event in ("open", "mmap.__new__")
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if writes or not harmless:
            self.executions += 1

    def _note(self, owner: object, name: str, stage: str) -> None:
        inner: Callable = getattr(owner, name)

        def noted(*arguments, **options):
            self.stages.add(stage)
            return inner(*arguments, **options)

        setattr(owner, name, noted)


def read_training(path: Path) -> dict[str, np.ndarray]:
    return fairseq_checkpoint.read_training_checkpoint(path).tensors


def read_case(path: Path) -> str:
    readers = {
        ".safetensors": checkpoint_files._read_safetensors,
        ".bin": torch_bin.read_torch_bin,
        ".pt": read_training,
    }
    read = readers[path.suffix]
    try:
        result = read(path)
        if type(result) is not dict or any(
            type(name) is not str or type(array) is not np.ndarray for name, array in result.items()
        ):
            return "crash: not a dict of arrays"
        sum(array.tobytes().count(0) for array in result.values())  # touch every byte
        return "accepted"
    except UserError as error:
        return "refused" if "\n" not in str(error) else "crash: message of several lines"
    except BaseException as error:
        return f"crash: {type(error).__name__}: {error}".splitlines()[0]


def run_child(seed: int, first: int, cases: int, folder: Path) -> None:
    watch = Watch()
    empty = zip_file(members(state_dict({}), {}))
    for suffix, case in ((".bin", empty), (".pt", empty), (".safetensors", b"")):
        (folder / f"warm{suffix}").write_bytes(case)  # lazy imports now, not under watch
        read_case(folder / f"warm{suffix}")
    codecs.lookup("raw_unicode_escape")  # pickletools imports it for the opcode UNICODE
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for index in range(first, cases):
        rng = random.Random(f"{seed}/{index}")
        kinds = [(".bin", torch_case), (".pt", training_case), (".safetensors", safetensors_case)]
        ((suffix, make),) = rng.choices(kinds, (0.5, 0.4, 0.1))
        path = folder / f"case{suffix}"
        path.write_bytes(make(rng))
        watch.stages.clear()
        before = watch.executions
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)  # unhandled: ends the process
        watch.armed = True
        outcome = read_case(path)
        watch.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = {"i": index, "outcome": outcome, "stages": sorted(watch.stages)}
        print(json.dumps(line | {"executions": watch.executions - before}), flush=True)


# --- the parent: counts, and restarts a child that died ------------------------------------------


def run_parent(seed: int, cases: int) -> collections.Counter:
    totals: collections.Counter = collections.Counter()
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        while first < cases:
            command = [sys.executable, "-m", "tests.support.fuzz_checkpoint", f"--seed={seed}"]
            command += [f"--cases={cases}", f"--first={first}", f"--child={folder}"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            for line in lines:
                _count(totals, line)
            first += len(lines)
            if first < cases:
                hung = done.returncode == -signal.SIGALRM
                totals["hangs" if hung else "crashes"] += 1
                print(
                    f"case {first}: exit {done.returncode}: {done.stderr[-300:]}", file=sys.stderr
                )
                first += 1
    return totals


def _count(totals: collections.Counter, line: dict) -> None:
    totals["executions"] += line["executions"]
    for stage in line["stages"]:
        totals[stage] += 1
    totals["deep"] += bool(line["stages"])
    kind = line["outcome"].partition(":")[0]
    totals[{"accepted": "accepted", "refused": "refused"}.get(kind, "crashes")] += 1
    if kind == "crash" or line["executions"]:
        print(f"case {line['i']}: {line}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child is not None:
        return run_child(flags.seed, flags.first, flags.cases, flags.child)
    totals = run_parent(flags.seed, flags.cases)
    print(f"cases {flags.cases}")
    print(f"reached pickle stage {totals['pickle']}")
    print(f"reached tensor stage {totals['tensor']}")
    print(f"reached settings {totals['settings']}")
    print(f"reached safetensors header {totals['header']}")
    for name in ("accepted", "refused", "executions", "crashes", "hangs"):
        print(f"{name} {totals[name]}")
    sys.exit(any(totals[name] for name in ("executions", "crashes", "hangs")))


if __name__ == "__main__":
    main()
