"""How public corpora are laid out: who speaks in a file, by its path alone.

One row of `LAYOUTS` a corpus. Patterns are strict, so that a path says by itself which corpus it is
from, whatever folder was opened, and files of several corpora may be mixed. Where no pattern
matches, the speaker is unknown: the name of a folder is no evidence.
"""

import collections
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from speechsim_jax.audio.columns import gender_of
from speechsim_jax.audio.paths import is_file
from speechsim_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """How a corpus is laid out.

    Attributes:
        name: Of the corpus.
        pattern: Matches the end of a path without its suffix; its group `speaker`, if it has one,
            is who speaks.
        example: A path that it matches, as downloaded.
        transcript: (file, its root) -> what is said, "" if that is not there; None if the layout
            has no transcripts.
        alignments: Where published alignments are: paths relative to the folder of the file, with
            its name for "*", without suffixes.
        tables: Manifests that know speakers and transcripts by the name of the file, relative to
            its folder; the first that names a file counts.
        gender: (file, speaker) -> "female" or "male", "" if it is not known; None if the layout
            does not say.
    """

    name: str
    pattern: str
    example: str
    transcript: Callable[[Path, Path], str] | None = None
    alignments: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    gender: Callable[[Path, str], str] | None = None

    def match(self, path: PurePosixPath) -> re.Match[str] | None:
        """The match of a path, None if the file is not of this layout."""
        return re.search(rf"(?:^|/){self.pattern}$", str(_without_suffixes(path)))

    def aligned(self, path: Path) -> list[Path]:
        """The files of alignments of a file that exist."""
        stem = _without_suffixes(PurePosixPath(path.name)).name
        found = []
        for pattern in self.alignments:
            place = path.parent / pattern.replace("*", stem)
            spellings = (place, place.with_suffix(place.suffix.lower()))
            found += [spelling for spelling in spellings if is_file(spelling)][:1]
        return found


@dataclass(frozen=True)
class Recognised:
    """What a path says.

    Attributes:
        layout: None if it is of no known corpus.
        speaker: "" if the path does not say.
    """

    layout: Layout | None = None
    speaker: str = ""


def recognise(path: Path | PurePosixPath, only: str | None = None) -> Recognised:
    """Which corpus a file is of, and who speaks.

    Args:
        path: Of the file.
        only: Name of the layout; None for any.
    """
    for layout in LAYOUTS if only is None else (layout_called(only),):
        if match := layout.match(PurePosixPath(path.as_posix())):
            return Recognised(layout, match.groupdict().get("speaker") or "")
    return Recognised()


def layout_called(name: str) -> Layout:
    """The layout of this name; raises UserError if there is none."""
    for layout in LAYOUTS:
        if layout.name.casefold() == name.casefold():
            return layout
    names = [layout.name for layout in LAYOUTS]
    raise UserError(
        f"there is no layout {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}"
    )


def speaker_pattern(text: str) -> re.Pattern[str]:
    """The pattern of the setting `speaker_from`: its group `speaker`, or its first group.

    Raises:
        UserError: It is no regular expression, or has no group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"speaker_from is {text!r}, no regular expression: {error}") from error
    if not pattern.groups:
        raise UserError(
            f"speaker_from is {text!r}; expected a group that is the speaker, e.g. '([^/]+)/[^/]+$'"
        )
    return pattern


def speaker_by(pattern: re.Pattern[str], path: str) -> str:
    """The speaker in a path by a pattern of `speaker_pattern`; "" if it does not match."""
    match = pattern.search(path)
    if match is None:
        return ""
    return (match["speaker"] if "speaker" in pattern.groupindex else match[1]) or ""


def repeated(ids: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of files that look like one utterance twice: two suffixes, or two microphones.

    Args:
        ids: Paths of the files.
    """
    first: dict[str, str] = {}
    pairs = []
    for id_ in ids:
        name = re.sub(r"[_-]mic\d$", "", str(_without_suffixes(PurePosixPath(id_))))
        if name in first:
            pairs.append((first[name], id_))
        first.setdefault(name, id_)
    return pairs


def summary(layouts: Iterable[Layout | None]) -> dict[str, int]:
    """Files by name of their layout, the most frequent first; "unknown" for those of none."""
    counts = collections.Counter(layout.name if layout else "unknown" for layout in layouts)
    return dict(counts.most_common())


def _without_suffixes(path: PurePosixPath) -> PurePosixPath:
    """The path without the suffixes of its name; those of names like "1.2" stay."""
    while re.fullmatch(r"\.[A-Za-z]\w{1,4}", path.suffix):
        path = path.with_suffix("")
    return path


# --- transcripts ---


def _in_chapter(path: Path, _: Path) -> str:
    """LibriSpeech: all utterances of a chapter in one file next to them."""
    for table in path.parent.glob("*.trans.txt"):
        if text := _table(table, " ", 1).get(path.stem):
            return text
    return ""


def _next_to_it(suffix: str, clean: Callable[[str], str] = str.strip) -> Callable[..., str]:
    """A text file of its own, with this suffix, in either case."""

    def read(path: Path, _: Path) -> str:
        stem = path.with_name(_without_suffixes(PurePosixPath(path.name)).name)
        for name in (f"{stem}{suffix}", f"{stem}{suffix.upper()}"):
            if lines := _lines(Path(name)):
                return clean(" ".join(lines))
        return ""

    return read


def _in_folder(folder: str) -> Callable[..., str]:
    """A text file of its own, in a folder beside that of the speaker's audio."""

    def read(path: Path, _: Path) -> str:
        stem = re.sub(r"_mic\d$", "", path.stem)
        for text in (
            path.parents[2] / folder / path.parent.name / f"{stem}.txt",
            path.parents[1] / folder / f"{stem}.txt",
        ):
            if lines := _lines(text):
                return " ".join(lines).strip()
        return ""

    return read


def _in_prompts(path: Path, _: Path) -> str:
    """Festvox: ( NAME "TEXT" ), all prompts of a speaker in one file."""
    prompts = path.parents[1] / "etc" / "txt.done.data"
    # Behind the bracket, the name ends at a space as in other tables.
    line = _table(prompts, " ", 2, key=1).get(path.stem, "")
    return line.removesuffix(")").strip().strip('"').replace('\\"', '"')


def _in_table(name: str, separator: str, text: int = 1) -> Callable[..., str]:
    """A line of a table above the audio: the name of the file first, what is said in a column."""

    def read(path: Path, root: Path) -> str:
        for folder in path.parents:
            if found := _table(folder / name, separator, text).get(path.stem):
                return found
            if folder == root:
                break
        return ""

    return read


def _table(path: Path, separator: str, text: int, key: int = 0) -> dict[str, str]:
    """What is said by name of the file; the last column may contain the separator."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return {}
    return _read_table(path, changed, separator, text, key)


@functools.lru_cache(maxsize=64)
def _read_table(path: Path, changed: int, separator: str, text: int, key: int) -> dict[str, str]:
    """A table once; `changed` is part of the key, so an edited one is read again."""
    rows = (line.split(separator, text) for line in _lines(path))
    return {Path(row[key]).stem: row[text].strip() for row in rows if len(row) > text}


def _listed_gender(names: tuple[str, ...], column: int) -> Callable[[Path, str], str]:
    """By a table in a folder above the audio: the speaker first, the gender in a column."""

    def find(path: Path, speaker: str) -> str:
        # Some tables leave out the letter: 225 is p225.
        for folder in path.parents:
            for name in names:
                genders = _genders_once(folder / name, column)
                for key in (speaker, speaker.lstrip("pS")):
                    if key in genders:
                        return genders[key]
        return ""

    return find


def _genders_once(path: Path, column: int) -> dict[str, str]:
    try:
        return _genders(path, path.stat().st_mtime_ns, column)
    except OSError:
        return {}


@functools.lru_cache(maxsize=64)
def _genders(path: Path, changed: int, column: int) -> dict[str, str]:
    """Genders by speaker, of a table with any separators; `changed` as in `_read_table`."""
    rows = (re.split(r"[\s|,]+", line.strip(), maxsplit=column + 1) for line in _lines(path))
    genders = {row[0]: gender_of(row[column]) for row in rows if len(row) > column}
    return {speaker: gender for speaker, gender in genders.items() if gender in ("female", "male")}


def _initial(_: Path, speaker: str) -> str:
    """TIMIT: F or M, then initials."""
    return gender_of(speaker[0])


def _parity(_: Path, speaker: str) -> str:
    """RAVDESS: odd numbers are men."""
    return "male" if int(speaker) % 2 else "female"


def _without_times(text: str) -> str:
    """TIMIT: two sample numbers come first."""
    return re.sub(r"^\d+ \d+ ", "", text).strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


LAYOUTS = (
    Layout(
        "LibriSpeech",
        r"(?P<speaker>\d{1,5})/(\d{1,6})/(?P=speaker)-\2-\d{4}",
        "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac",
        _in_chapter,
        ("*.TextGrid",),
        gender=_listed_gender(("SPEAKERS.TXT",), 1),
    ),
    # One folder of files from it, as many sets are handed on.
    Layout(
        "LibriSpeech files",
        r"(?P<speaker>\d{1,5})-\d{3,6}-\d{4}",
        "84-121123-0000.flac",
        gender=_listed_gender(("SPEAKERS.TXT",), 1),
    ),
    Layout(
        "LibriTTS",
        r"(?P<speaker>\d{1,5})/(\d{1,6})/(?P=speaker)_\2_\d{6}_\d{6}",
        "LibriTTS/dev-clean/84/121123/84_121123_000007_000001.wav",
        _next_to_it(".normalized.txt"),
        gender=_listed_gender(("speakers.tsv", "SPEAKERS.txt"), 1),
    ),
    Layout(
        "MLS",
        r"audio/(?P<speaker>\d+)/(\d+)/(?P=speaker)_\2_\d{6}",
        "mls_german/dev/audio/1054/1599/1054_1599_000000.opus",
        _in_table("transcripts.txt", "\t"),
        gender=_listed_gender(("metainfo.txt",), 1),
    ),
    Layout(
        "TIMIT",
        r"(?i:dr[1-8]/(?P<speaker>[fm][a-z]{2}[a-z0-9]\d)/s[aix]\d{1,4})",
        "TRAIN/DR1/FCJF0/SA1.WAV",
        _next_to_it(".txt", _without_times),
        ("*.PHN", "*.WRD"),
        gender=_initial,
    ),
    Layout(
        "VCTK",
        r"(?P<speaker>[ps]\d{1,3})/(?P=speaker)_\d{3}(?:_mic[12])?",
        "wav48_silence_trimmed/p225/p225_001_mic1.flac",
        _in_folder("txt"),
        gender=_listed_gender(("speaker-info.txt",), 2),
    ),
    Layout(
        "VoxCeleb",
        r"(?P<speaker>id\d{5})/[\w-]{11}/\d{5}",
        "vox1_dev_wav/wav/id10001/1zcIwhmdeo4/00001.wav",
        gender=_listed_gender(("vox1_meta.csv", "vox2_meta.csv"), 2),
    ),
    Layout(
        "Common Voice",
        r"common_voice_[\w-]+_\d+",
        "cv-corpus-17.0/de/clips/common_voice_de_17298952.mp3",
        tables=tuple(
            f"../{name}.tsv"
            for name in ("validated", "invalidated", "other", "train", "dev", "test")
        ),
    ),
    Layout(
        "AISHELL-1",
        r"(?P<speaker>S\d{4})/BAC009(?P=speaker)W\d{4}",
        "data_aishell/wav/train/S0002/BAC009S0002W0122.wav",
        _in_table("transcript/aishell_transcript_v0.8.txt", " "),
        gender=_listed_gender(("resource_aishell/speaker.info",), 1),
    ),
    Layout(
        "AISHELL-3",
        r"(?P<speaker>SSB\d{4})/(?P=speaker)\d{4}",
        "train/wav/SSB0005/SSB00050001.wav",
    ),
    Layout(
        "CMU ARCTIC",
        r"cmu_us_(?P<speaker>\w+)_arctic/wav/arctic_[ab]\d{4}",
        "cmu_us_bdl_arctic/wav/arctic_a0001.wav",
        _in_prompts,
        alignments=("../lab/*.lab",),
    ),
    Layout(
        "L2-ARCTIC",
        r"(?P<speaker>[A-Z]{3,5})/wav/arctic_[ab]\d{4}",
        "l2arctic_release_v5.0/ABA/wav/arctic_a0001.wav",
        _in_folder("transcript"),
        ("../textgrid/*.TextGrid",),
    ),
    Layout(
        "LJSpeech",
        r"(?P<speaker>LJ)0\d\d-\d{4}",
        "LJSpeech-1.1/wavs/LJ001-0001.wav",
        _in_table("metadata.csv", "|", 2),
    ),
    Layout(
        "TED-LIUM",
        r"(?P<speaker>[A-Z][A-Za-z]+)_(?:19|20)\d\d[A-Z]?(?:-\d+-\d+)?",
        "TEDLIUM_release-3/data/sph/AlGore_2009.sph",
    ),
    Layout("FSDD", r"\d_(?P<speaker>[a-z]+)_\d{1,2}", "recordings/7_jackson_32.wav"),
    Layout(
        "Speech Commands",
        r"(?P<speaker>[0-9a-f]{8})_nohash_\d+",
        "speech_commands_v0.02/bed/004ae714_nohash_0.wav",
    ),
    Layout(
        "JVS",
        r"(?P<speaker>jvs\d{3})/\w+/wav24kHz16bit/[\w-]+",
        "jvs_ver1/jvs001/parallel100/wav24kHz16bit/VOICEACTRESS100_001.wav",
    ),
    Layout(
        "RAVDESS",
        r"Actor_(?P<speaker>\d\d)/\d\d-\d\d-\d\d-\d\d-\d\d-\d\d-(?P=speaker)",
        "Actor_01/03-01-06-01-02-01-01.wav",
        gender=_parity,
    ),
    Layout(
        "CREMA-D",
        r"(?P<speaker>1\d{3})_[A-Z]{3}_[A-Z]{3}_[A-Z]{2}",
        "1001_DFA_ANG_XX.wav",
        gender=_listed_gender(("VideoDemographics.csv",), 2),
    ),
    Layout(
        "Buckeye",
        r"(?P<speaker>s[0-4]\d)\d\d[ab]",
        "s01/s0101a.wav",
        alignments=("*.phones", "*.words"),
    ),
    Layout("THCHS-30", r"(?P<speaker>[A-D]\d{1,2})_\d{1,3}", "data_thchs30/data/A11_0.wav"),
)
"""The corpora that are recognised, the first match counts."""
