"""Feed mutated audio, alignments, manifests and configurations to their readers.

    python -m tests.support.fuzz_inputs --audio=5000 --alignments=2000 --manifests=2000

Each input is read in a child process with bounded address space and a time limit. It must be read,
be refused in one line (`UserError`), or be skipped with a reason in one line (`AudioError`);
whatever else happens is a crash, and is reported with the seed and number that make it again:

    python -m tests.support.fuzz_inputs --seed=0 --show=audio/123

The last line printed is a JSON object: by kind, how many were accepted, refused, crashed or hung,
the slowest in seconds, and the peak of the resident memory over that of the idle child in MB.
"""

import argparse
import collections
import json
import math
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.audio.alignments import read_alignments
from speechsim_jax.audio.corpus import AudioError, channels_of, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.models.families import config_from_hf
from tests.support import bad_corpus
from tests.support.paths import DATA, ROOT

SECONDS_PER_INPUT = 5.0
MEMORY_BYTES = 2**30

# --- mutations of bytes ---------------------------------------------------------------------------

_WORDS = (0, 1, 2, 3, 7, 8, 16, 24, 255, 1024, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31,
          2**32 - 1)  # fmt: skip


def _mutate_bytes(rng: random.Random, data: bytes, header: int) -> bytes:
    """One change, more often near the beginning, where the header is."""
    if not data:
        return rng.randbytes(rng.randint(0, 64))
    near = rng.random() < 0.7
    at = rng.randrange(min(header, len(data)) if near else len(data))
    match rng.randrange(12):
        case 0:
            return data[:at]
        case 1:
            return data + rng.randbytes(rng.choice((1, 7, 100, 5000)))
        case 2:
            return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]
        case 3:
            return data[:at] + data[at + rng.randint(1, 400) :]
        case 4:
            stretch = rng.randint(1, 3000)
            return data[:at] + bytes(min(stretch, len(data) - at)) + data[at + stretch :]
        case 5:
            end = at + rng.randint(1, 2000)
            return data[:end] + data[at:end] * rng.randint(1, 30) + data[end:]
        case 6:
            new = struct.pack(rng.choice("<>") + "I", rng.choice(_WORDS))
            return data[:at] + new + data[at + 4 :]
        case 7:
            new = struct.pack(rng.choice("<>") + "H", rng.choice(_WORDS[:13]))
            return data[:at] + new + data[at + 2 :]
        case 8:
            new = struct.pack(rng.choice("<>") + "Q", rng.choice((2**63 - 1, 2**64 - 1, 2**40)))
            return data[:at] + new + data[at + 8 :]
        case 9:
            return data[:at] + rng.randbytes(1) + data[at + 1 :]
        case 10:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case _:
            return data[:at] + rng.choice(_audio())[1][rng.randrange(200) :]


# --- audio ----------------------------------------------------------------------------------------


@cache
def _audio() -> tuple[tuple[str, bytes], ...]:
    """Suffix and content of good files of every format."""
    rng = bad_corpus.Rng(random.Random(0), np.random.default_rng(0))
    subtypes: tuple[tuple[str, dict], ...] = (
        ("wav", {"subtype": "GSM610"}), ("wav", {"subtype": "MS_ADPCM"}),
        ("wav", {"subtype": "IMA_ADPCM"}), ("wav", {"subtype": "ULAW"}),
        ("wav", {"endian": "BIG", "subtype": "PCM_32"}), ("caf", {"subtype": "ALAC_16"}),
        ("aiff", {"subtype": "FLOAT"}), ("au", {"subtype": "G721_32"}),
        ("mp3", {"bitrate_mode": "VARIABLE"}),
    )  # fmt: skip
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, options in (*bad_corpus.FORMATS, *subtypes):
            path = Path(folder, f"x.{suffix}")
            channels = rng.choices.choice((1, 1, 2))
            if "G721" in str(options) or "GSM" in str(options):
                channels = 1
            bad_corpus.write_sound(path, rng.speech(channels=channels), **options)
            made.append((suffix, path.read_bytes()))
    return tuple(made)


def _audio_case(rng: random.Random, folder: Path) -> Path:
    suffix, data = rng.choice(_audio())
    for _ in range(rng.randint(1, 4)):
        data = _mutate_bytes(rng, data, 120)
    if rng.random() < 0.05:
        suffix = rng.choice(_audio())[0]
    path = folder / f"case.{suffix}"
    path.write_bytes(data)
    return path


def _read_audio(path: Path) -> str:
    corpus = with_durations(open_corpus(path))
    (source,) = corpus.sources
    if source.seconds is not None and not 0 <= source.seconds < math.inf:
        return f"crash: a duration of {source.seconds} s"
    if channels_of(source) < 1:
        return "crash: no channels"
    samples = read(source, 400).samples
    if samples.dtype != np.float32 or samples.ndim != 1 or not np.isfinite(samples).all():
        return f"crash: samples of {samples.dtype} {samples.shape}"
    return "accepted"


# --- text -----------------------------------------------------------------------------------------

_LONGEST = 2_000_000
_NUMBERS = (
    "0", "-1", "1e-3", "0.5", "1e309", "-1e309", "nan", "inf", "", "99999999999999999999999", "1_0",
    "0x10", "\uff11", "\u00b2", "1,5", "1e5", "1000000000", "-0.0", "9" * 5000, "1e-400",
)  # fmt: skip
_TEXTS = (
    "\0", "\n", "\r", "\t", '"', '""', "\\", "\u2028", "\ufeff", "é", "e\u0301", "\ud800", "🙂",
    "#", ";", "|", ",", "<exists>", "[" * 3000, "{", "}", "x" * 200_000, "../../../etc/passwd", "!",
    "../" * 50, "/dev/zero", "~", "~nobody/x", "hf:", "file:", "<ALT>", "null", "a\x1b[2J",
)  # fmt: skip


def _mutate_text(rng: random.Random, text: str) -> str:
    if len(text) > _LONGEST:
        return text[:_LONGEST]
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    match rng.randrange(9):
        case 0:
            del lines[at : at + rng.randint(1, 3)]
        case 1:
            lines[at:at] = lines[at : at + rng.randint(1, 3)] * rng.choice((1, 2, 500))
        case 2:
            lines.insert(rng.randrange(len(lines) + 1), lines.pop(at))
        case 3 | 4:  # another number
            words = lines[at].replace("\t", " ").split(" ")
            old = rng.choice(words)
            lines[at] = lines[at].replace(old, rng.choice(_NUMBERS), 1) if old else lines[at]
        case 5 | 6:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + rng.choice(_TEXTS) + lines[at][column:]
        case 7:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + lines[at][column + rng.randint(1, 9) :]
        case _:
            return text[: rng.randrange(len(text) + 1)]
    return "\n".join(lines)


def _encoded(rng: random.Random, text: str) -> bytes:
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"))
    data = text.encode(encoding, "surrogatepass")
    return _mutate_bytes(rng, data, 300) if rng.random() < 0.15 else data


# --- alignments -----------------------------------------------------------------------------------

_LONG = "".join(
    (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 1.0\n',
        "tiers? <exists>\nsize = 2\nitem []:\n",
        '    item [1]:\n        class = "TextTier"\n        name = "clicks"\n',
        "        xmin = 0\n        xmax = 1.0\n        points: size = 1\n",
        '        points [1]:\n            number = 0.3\n            mark = "x"\n',
        '    item [2]:\n        class = "IntervalTier"\n        name = "phones"\n',
        "        xmin = 0\n        xmax = 1.0\n        intervals: size = 2\n",
        "        intervals [1]:\n            xmin = 0\n            xmax = 0.4\n",
        '            text = "SIL"   ! silence "here"\n',
        "        intervals [2]:\n            xmin = 0.4\n            xmax = 1.0\n",
        '            text = "AH"\n',
    )
)
_SHORT = """File type = "ooTextFile short"
"TextGrid"
0
0.5
<exists>
1
"IntervalTier"
"phones"
0
0.5
2
0
0.1
""
0.1
0.5
"AH"
"""
_CHRONOLOGICAL = """"Praat chronological TextGrid text file"
0 1   ! Time domain.
1   ! Number of tiers.
"IntervalTier" "phones" 0 1
1 0 0.4
"SIL"
1 0.4 1
"AH"
"""
_ALIGNMENTS = (
    ("TextGrid", _LONG),
    ("TextGrid", _SHORT),
    ("TextGrid", _CHRONOLOGICAL),
    ("tsv", "path\ttier\tstart\tend\tlabel\na/1.wav\tp\t0\t0.4\tAH\na/1.wav\tp\t0.4\t1\tB\n"),
    (
        "ctm",
        ";; by hand\na/1 A 0.25 0.15 AH 0.99 lex ann\n<ALT_BEGIN>\na/1 B 0.4 0.5 B\n2 1 0 1 C\n",
    ),
    ("phn", "0 2360 h#\n2360 4000 sh\n4000 9000 iy\n"),
    ("wrd", "2360 4000 she\n4000 9000 had\n"),
    ("lab", "0 2500000 sil\n2500000 9000000 ah\n"),
    ("lab", "0.0 0.25 sil\n0.25 0.9 ah\n"),
    ("lab", "separator ;\nnfields 1\n#\n 0.25 121 sil\n 0.9 121 ah ; x\n"),
    ("phones", "header\n#\n 0.05 122 SIL\n 0.2 122 ah; n\n"),
    ("words", "header\n#\n 0.05 122 <SIL>; S\n 0.2 122 a; ah; ah; d\n"),
)


def _alignments_case(rng: random.Random, folder: Path) -> Path:
    suffix, text = rng.choice(_ALIGNMENTS)
    for _ in range(rng.randint(1, 4)):
        text = _mutate_text(rng, text)
    if rng.random() < 0.05:
        suffix = rng.choice(_ALIGNMENTS)[0]
    path = folder / f"case.{suffix}"
    path.write_bytes(_encoded(rng, text))
    return path


def _read_alignments(path: Path) -> str:
    given = path.parent if path.suffix not in (".tsv", ".ctm") and path.stat().st_size % 2 else path
    aligned = read_alignments(given)
    matched = aligned.match(["a/1.wav", "case.wav", "2"])
    aligned.reasons(["a/1.wav", "case.wav", "2"])
    for segments in aligned.utterances.values():
        if not (np.isfinite(segments.starts).all() and np.isfinite(segments.ends).all()):
            return "crash: times that are not finite"
        if (segments.ends < segments.starts).any() or (np.diff(segments.starts) < 0).any():
            return "crash: segments that are not in order"
        if (segments.ends[:-1] > segments.starts[1:]).any():
            return "crash: segments that overlap"
    for segments in matched.values():
        segments.at(np.arange(0, 1, 0.02))
    return "accepted" if aligned.labels else "crash: no labels"


# --- manifests ------------------------------------------------------------------------------------

_NEMO = {"audio_filepath": "clips/a.wav", "duration": 0.5, "offset": 0.1, "text": "hi", "spk": "s"}
_LHOTSE = {
    "id": "cut-1", "start": 0.1, "duration": 0.2, "channel": 0,
    "supervisions": [{"text": "hello", "speaker": "spk7"}],
    "recording": {"sources": [{"type": "file", "channels": [0], "source": "clips/a.wav"}]},
}  # fmt: skip
_MANIFESTS: tuple[tuple[str, Any], ...] = (
    ("m.tsv", "client_id\tpath\tsentence\nc1\ta.wav\tHallo\nc2\tb.wav\tJa\n"),
    (
        "m.csv",
        'ID,duration,wav,spk_id,wrd\n1,0.5,clips/a.wav,s1,"one, two"\n2,0.5,clips/b.wav,s,x\n',
    ),
    ("m.csv", "path;start;end;speaker\nclips/a.wav;0.1;0.3;x\nclips/a.wav;0.3;0.4;x\n"),
    ("m.tsv", "/data/root\na.wav\t1000\nb.wav\t2000\n"),
    ("list.txt", "# names\nclips/a.wav\nclips/b.wav\n"),
    ("metadata.csv", "file_name,transcription,speaker_id\nclips/a.wav,yes,s1\nclips/b.wav,no,s2\n"),
    ("wav.scp", "r1 clips/a.wav\nr2 clips/b.wav\nr3 sox x.sph |\n"),
    ("segments", "u1 r1 0.0 0.1\nu2 r1 0.1 0.2\n"),
    ("utt2spk", "r1 ann\nr2 bob\n"),
    ("m.jsonl", [_NEMO, _NEMO | {"offset": 0.3}]),
    ("m.json", [_LHOTSE, _LHOTSE | {"id": "cut-2"}]),
    ("m.jsonl", [_LHOTSE]),
)
_JSON = (
    None, True, False, 0, -1, 2**70, 1.5, math.nan, math.inf, "", "x", "2", [], {}, [[]], [None],
    {"a": 1}, [1] * 5, "\ud800", "a\nb", 10**400, -(2**63), 1e-320, {"": {}}, "clips/b.wav",
)  # fmt: skip


def _mutate_json(rng: random.Random, value: Any) -> Any:
    """The value with one field, somewhere, changed in type or value, renamed or lost."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        match rng.randrange(10):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                new = rng.choice((key.upper(), key + "s", "", "path", "id", "speaker"))
                return {new if k == key else k: v for k, v in value.items()}
            case _:
                return value | {key: _mutate_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [_mutate_json(rng, item) if k == at else item for k, item in enumerate(value)]
    if isinstance(value, int) and abs(value) < 2**63 and rng.random() < 0.3:
        return rng.choice((value + 1, -value, value * 10**6, float(value), str(value), value // 2))
    return rng.choice(_JSON)


def _json_text(rng: random.Random, value: Any) -> str:
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = _mutate_text(rng, text)
    if rng.random() < 0.01:
        text = "[" * 100_000
    return text


def _manifests_case(rng: random.Random, folder: Path) -> Path:
    clips = folder / "clips"
    clips.mkdir()
    for name in ("a.wav", "b.wav"):
        (clips / name).write_bytes(_audio()[0][1])
    name, content = rng.choice(_MANIFESTS)
    if isinstance(content, str):
        for _ in range(rng.randint(1, 4)):
            content = _mutate_text(rng, content)
    else:
        for _ in range(rng.randint(1, 3)):
            content = _mutate_json(rng, content)
        records = content if isinstance(content, list) else [content]
        lines = "\n".join(_json_text(rng, record) for record in records)
        content = lines if name == "m.jsonl" else _json_text(rng, content)
    path = folder / name
    if name in ("segments", "utt2spk"):
        (folder / "wav.scp").write_text("r1 clips/a.wav\nr2 clips/b.wav\n")
    path.write_bytes(_encoded(rng, content))
    return folder if name in ("segments", "utt2spk", "wav.scp", "metadata.csv") else path


def _read_manifest(path: Path) -> str:
    corpus = with_durations(open_corpus(path))
    open_corpus(path, channel="each", transcripts=False)
    corpus.fingerprint()
    reasons = 0
    for source in corpus.sources[:20]:
        try:
            read(source, 400)
        except AudioError as error:
            reasons += 1
            if len(str(error).splitlines()) != 1:
                return "crash: a reason of several lines"
    return "accepted"


# --- configurations -------------------------------------------------------------------------------

_CONFIGS = ("wav2vec2-base", "hubert-large", "hubert-batch-norm", "wavlm-large")


def _configs_case(rng: random.Random, folder: Path) -> Path:
    parity = DATA / "parity" / rng.choice(_CONFIGS)
    names = ["config.json", "preprocessor_config.json"]
    contents = {name: json.loads((parity / name).read_text()) for name in names}
    if rng.random() < 0.4:
        inner = contents["preprocessor_config.json"]
        contents["processor_config.json"] = {"feature_extractor": inner, "processor_class": "X"}
    for _ in range(rng.randint(1, 4)):
        name = rng.choice((*contents, "config.json"))
        contents[name] = _mutate_json(rng, contents[name])
    for name, content in contents.items():
        (folder / name).write_bytes(_encoded(rng, _json_text(rng, content)))
    shutil.copyfile(parity / "model.safetensors", folder / "model.safetensors")
    return folder


def _read_config(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    config = config_from_hf(checkpoint.config, checkpoint.preprocessor)
    for value in (config.hop_samples, config.window_samples, config.head_size):
        if type(value) is not int or value < 1:
            return f"crash: accepted with a size of {value!r}"
    return "accepted"


# --- the child: reads inputs, one line of outcome each --------------------------------------------

KINDS: dict[str, tuple[Callable[[random.Random, Path], Path], Callable[[Path], str]]] = {
    "audio": (_audio_case, _read_audio),
    "alignments": (_alignments_case, _read_alignments),
    "manifests": (_manifests_case, _read_manifest),
    "configs": (_configs_case, _read_config),
}


def make_case(kind: str, seed: int, index: int, folder: Path) -> Path:
    """Write one input into an empty folder; returns what is opened."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return KINDS[kind][0](random.Random(f"{seed}/{kind}/{index}"), folder)


def read_case(kind: str, path: Path) -> str:
    """How reading it ends: "accepted", "refused", or "crash: ..."."""
    try:
        return KINDS[kind][1](path)
    except (UserError, AudioError) as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) == 1 else f"crash: message of {len(lines)} lines"
    except BaseException as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}" if last else ""
        text = str(error).encode("ascii", "backslashreplace").decode()[:200]
        return f"crash: {type(error).__name__}: {text} at {where}"


def run_child(kind: str, seed: int, first: int, count: int, folder: Path) -> None:
    """Read inputs until one kills this process; the first line says how much memory it has idle."""
    read_case(kind, make_case(kind, seed, -1, folder / "warm"))  # lazy imports now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(first, count):
        path = make_case(kind, seed, index, folder / "case")
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)  # unhandled: ends the process
        started = time.perf_counter()
        outcome = read_case(kind, path)
        seconds = time.perf_counter() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle
        line = {"i": index, "outcome": outcome, "seconds": seconds, "peak_mb": peak / 1024}
        print(json.dumps(line), flush=True)


# --- the parent: counts, and restarts a child that died -------------------------------------------


def run_parent(kind: str, count: int, seed: int) -> dict[str, Any]:
    """How `count` inputs of a kind went."""
    totals: collections.Counter[str] = collections.Counter(
        accepted=0, refused=0, crashes=0, hangs=0
    )
    slowest = peak = 0.0
    first = 0
    while first < count:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.support.fuzz_inputs", f"--seed={seed}"]
            command += [f"--child={kind}", f"--first={first}", f"--{kind}={count}"]
            command += [f"--folder={folder}"]
            done = subprocess.run(command, capture_output=True, cwd=ROOT)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
        for line in lines:
            crashed = line["outcome"].startswith("crash")
            totals["crashes" if crashed else line["outcome"]] += 1
            slowest, peak = max(slowest, line["seconds"]), max(peak, line["peak_mb"])
            if crashed:
                print(f"{kind}/{line['i']}: {line['outcome']}", file=sys.stderr, flush=True)
        first += len(lines)
        if first < count:
            hung = done.returncode == -signal.SIGALRM
            totals["hangs" if hung else "crashes"] += 1
            tail = done.stderr[-300:].decode(errors="replace")
            print(f"{kind}/{first}: exit {done.returncode}: {tail}", file=sys.stderr, flush=True)
            first += 1
    return {"inputs": count, **totals, "slowest_s": round(slowest, 2), "peak_mb": round(peak)}


def run(counts: dict[str, int], seed: int = 0) -> dict[str, dict[str, Any]]:
    """How so many inputs of each kind went."""
    return {kind: run_parent(kind, count, seed) for kind, count in counts.items() if count}


def main() -> None:
    """Make, read, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", default="", help="make and read KIND/NUMBER in this process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path("fuzzed"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        count = getattr(flags, flags.child)
        return run_child(flags.child, flags.seed, flags.first, count, flags.folder)
    if flags.show:
        kind, number = flags.show.split("/")
        path = make_case(kind, flags.seed, int(number), flags.folder)
        print(path)
        print(KINDS[kind][1](path))
        return
    found = run({kind: getattr(flags, kind) for kind in KINDS}, flags.seed)
    print(json.dumps(found))
    sys.exit(any(row["crashes"] or row["hangs"] for row in found.values()))


if __name__ == "__main__":
    main()
