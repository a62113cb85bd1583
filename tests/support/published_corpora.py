"""Small trees of public corpora, as they are published, with the files that lie beside the audio.

Every audio file is half a second of noise. Of each corpus: what its files are, and which of them
are to be listed, by whom they are spoken and what is said in them.
"""

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

Spoken = tuple[str, str]


@dataclass(frozen=True)
class Published:
    """A corpus as it is published.

    Attributes:
        layout: Name of its layout; "unknown" if there is none.
        audio: Speaker and transcript by path.
        others: Contents of the other files by path, none of which is to be listed.
    """

    layout: str
    audio: dict[str, Spoken]
    others: dict[str, str]

    def write(self, folder: Path) -> Path:
        """Write it into a folder."""
        for name, content in self.others.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        for number, name in enumerate(self.audio):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # The published files of TIMIT are NIST SPHERE, whatever their suffix.
            suffix = ".sph" if name.endswith(".WAV") else path.suffix
            path.write_bytes(_sound(suffix, number))
        return folder


@functools.cache
def _sound(suffix: str, seed: int) -> bytes:
    formats = {".sph": "NIST", ".opus": "OGG"}
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(seed).standard_normal(8000)
    options = {"subtype": "OPUS"} if suffix == ".opus" else {}
    kind = formats.get(suffix, suffix[1:].upper())
    soundfile.write(file, samples, 16_000, format=kind, **options)
    return file.getvalue()


def _texts(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "text\n")


_GRID = """File type = "ooTextFile"
Object class = "TextGrid"
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
0.2
"sil"
0.2
0.5
"AO1"
"""

LIBRISPEECH = Published(
    "LibriSpeech",
    {
        "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac": ("84", "GO DO YOU HEAR"),
        "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac": ("84", "BUT IN LESS THAN"),
        "LibriSpeech/dev-clean/84/121550/84-121550-0000.flac": ("84", "BUT WITH FULL RAVISHMENT"),
        "LibriSpeech/test-other/1688/142285/1688-142285-0000.flac": ("1688", "THERE'S IRON"),
    },
    {
        "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt": "84-121123-0000 GO DO YOU HEAR\n"
        "84-121123-0001 BUT IN LESS THAN\n",
        "LibriSpeech/dev-clean/84/121550/84-121550.trans.txt": "84-121550-0000 BUT WITH FULL "
        "RAVISHMENT\n",
        "LibriSpeech/test-other/1688/142285/1688-142285.trans.txt": "1688-142285-0000 THERE'S "
        "IRON\n",
        "LibriSpeech/SPEAKERS.TXT": ";ID  |SEX| SUBSET |MINUTES| NAME\n84 | F | dev-clean | 8\n",
    }
    | _texts(*(f"LibriSpeech/{n}.TXT" for n in ("LICENSE", "README", "CHAPTERS", "BOOKS"))),
)

_84 = "LibriTTS/dev-clean/84/121123/84_121123"
LIBRITTS = Published(
    "LibriTTS",
    {
        f"{_84}_000007_000001.wav": ("84", "Maximilian."),
        f"{_84}_000008_000000.wav": ("84", "Villefort rose."),
        "LibriTTS/train-clean-100/103/1240/103_1240_000000_000001.wav": ("103", "Matthew!"),
    },
    {
        f"{_84}_000007_000001.normalized.txt": "Maximilian.",
        f"{_84}_000007_000001.original.txt": "MAXIMILIAN.",
        f"{_84}_000008_000000.normalized.txt": "Villefort rose.",
        f"{_84}_000008_000000.original.txt": "Villefort rose.",
        f"{_84}.trans.tsv": "84_121123_000007_000001\tMAXIMILIAN.\tMaximilian.\n",
        f"{_84}.book.tsv": "84_121123_000007_000001\tMAXIMILIAN.\n",
        "LibriTTS/train-clean-100/103/1240/103_1240_000000_000001.normalized.txt": "Matthew!\n",
        "LibriTTS/speakers.tsv": "READER\tGENDER\tSUBSET\tNAME\n84\tF\tdev-clean\tC\n",
    }
    | _texts(*(f"LibriTTS/{n}.txt" for n in ("LICENSE", "NOTE", "SPEAKERS", "BOOKS", "CHAPTERS")))
    | _texts("LibriTTS/reader_book.tsv", "LibriTTS/eval_sentences10.tsv"),
)

TIMIT = Published(
    "TIMIT",
    {
        "TIMIT/TRAIN/DR1/FCJF0/SA1.WAV": ("FCJF0", "She had your dark suit."),
        "TIMIT/TRAIN/DR1/FCJF0/SX127.WAV": ("FCJF0", "The emperor had a mean temper."),
        "TIMIT/TEST/DR8/MSLB0/SI1193.WAV": ("MSLB0", "The taxicab broke down."),
    },
    {
        "TIMIT/TRAIN/DR1/FCJF0/SA1.TXT": "0 8000 She had your dark suit.\n",
        "TIMIT/TRAIN/DR1/FCJF0/SA1.PHN": "0 3050 h#\n3050 4559 sh\n4559 8000 ix\n",
        "TIMIT/TRAIN/DR1/FCJF0/SA1.WRD": "3050 5723 she\n5723 8000 had\n",
        "TIMIT/TRAIN/DR1/FCJF0/SX127.TXT": "0 8000 The emperor had a mean temper.\n",
        "TIMIT/TRAIN/DR1/FCJF0/SX127.PHN": "0 2000 h#\n2000 8000 dh\n",
        "TIMIT/TRAIN/DR1/FCJF0/SX127.WRD": "2000 8000 the\n",
        "TIMIT/TEST/DR8/MSLB0/SI1193.TXT": "0 8000 The taxicab broke down.\n",
        "TIMIT/TEST/DR8/MSLB0/SI1193.PHN": "0 2000 h#\n2000 8000 dh\n",
        "TIMIT/TEST/DR8/MSLB0/SI1193.WRD": "2000 8000 the\n",
    }
    | _texts(*(f"TIMIT/DOC/{n}" for n in ("PROMPTS.TXT", "SPKRINFO.TXT", "TIMITDIC.TXT")))
    | _texts("TIMIT/README.DOC"),
)

_VCTK = "VCTK-Corpus-0.92"
VCTK = Published(
    "VCTK",
    {
        f"{_VCTK}/wav48_silence_trimmed/p225/p225_001_mic1.flac": ("p225", "Please call Stella."),
        f"{_VCTK}/wav48_silence_trimmed/p225/p225_001_mic2.flac": ("p225", "Please call Stella."),
        f"{_VCTK}/wav48_silence_trimmed/p280/p280_002_mic1.flac": ("p280", "Ask her."),
        f"{_VCTK}/wav48_silence_trimmed/p315/p315_001_mic1.flac": (
            "p315",
            "",
        ),  # its texts are lost
        f"{_VCTK}/wav48_silence_trimmed/s5/s5_001_mic2.flac": ("s5", "Please call Stella."),
    },
    {
        f"{_VCTK}/txt/p225/p225_001.txt": "Please call Stella.\n",
        f"{_VCTK}/txt/p280/p280_002.txt": "Ask her.\n",
        f"{_VCTK}/txt/s5/s5_001.txt": "Please call Stella.\n",
        f"{_VCTK}/speaker-info.txt": "ID  AGE  GENDER  ACCENTS\np225  23  F  English\n",
    }
    | _texts(f"{_VCTK}/README.txt", f"{_VCTK}/license_text", f"{_VCTK}/update.txt")
    | _texts(f"{_VCTK}/wav48_silence_trimmed/log.txt"),
)

VOXCELEB = Published(
    "VoxCeleb",
    {
        "vox1/wav/id10001/1zcIwhmdeo4/00001.wav": ("id10001", ""),
        "vox1/wav/id10001/-jx-_8mQpTA/00002.wav": ("id10001", ""),
        "vox1/wav/id10270/5r0dWxy17C8/00001.wav": ("id10270", ""),
    },
    {"vox1/vox1_meta.csv": "VoxCeleb1 ID\tVGGFace1 ID\tGender\nid10001\tA.J._Buckley\tm\n"}
    | _texts("vox1/veri_test.txt", "vox1/iden_split.txt"),
)

_CV = "cv-corpus-17.0-2024-03-15/de"
_ROWS = "client_id\tpath\tsentence_id\tsentence\tup_votes\n"
COMMON_VOICE = Published(
    "Common Voice",
    {
        f"{_CV}/clips/common_voice_de_17298952.mp3": ("c1", 'Er sagte "ja".'),
        f"{_CV}/clips/common_voice_de_17298953.mp3": ("c2", "Nein"),
        f"{_CV}/clips/common_voice_de_17298954.mp3": ("c3", "Ungültig"),
        f"{_CV}/clips/common_voice_de_17298955.mp3": ("c1", "Noch offen"),
        f"{_CV}/clips/common_voice_de_17298956.mp3": ("", ""),  # in no table
    },
    {
        f"{_CV}/validated.tsv": _ROWS
        + 'c1\tcommon_voice_de_17298952.mp3\ts1\tEr sagte "ja".\t2\n'
        + "c2\tcommon_voice_de_17298953.mp3\ts2\tNein\t2\n",
        f"{_CV}/invalidated.tsv": _ROWS + "c3\tcommon_voice_de_17298954.mp3\ts3\tUngültig\t0\n",
        f"{_CV}/other.tsv": _ROWS + "c1\tcommon_voice_de_17298955.mp3\ts4\tNoch offen\t0\n",
        f"{_CV}/train.tsv": _ROWS + 'c1\tcommon_voice_de_17298952.mp3\ts1\tEr sagte "ja".\t2\n',
        f"{_CV}/dev.tsv": _ROWS,
        f"{_CV}/test.tsv": _ROWS + "c2\tcommon_voice_de_17298953.mp3\ts2\tNein\t2\n",
        f"{_CV}/reported.tsv": "sentence_id\tsentence\tlocale\treason\n",
        f"{_CV}/clip_durations.tsv": "clip\tduration[ms]\ncommon_voice_de_17298952.mp3\t500\n",
    },
)

MLS = Published(
    "MLS",
    {
        "mls_german/dev/audio/1054/1599/1054_1599_000000.opus": ("1054", "es war einmal"),
        "mls_german/dev/audio/1054/1599/1054_1599_000007.opus": ("1054", "ein mann"),
        "mls_german/train/audio/2037/1599/2037_1599_000001.opus": ("2037", "der zug"),
    },
    {
        "mls_german/dev/transcripts.txt": "1054_1599_000000\tes war einmal\n"
        "1054_1599_000007\tein mann\n",
        "mls_german/train/transcripts.txt": "2037_1599_000001\tder zug\n",
        "mls_german/dev/segments.txt": "1054_1599_000000\thttp://example.org/a.mp3\t0\t15\n",
        "mls_german/train/limited_supervision/1hr/0/handles.txt": "2037_1599_000001\n",
        "mls_german/metainfo.txt": "SPEAKER | GENDER | PARTITION\n1054 | M | dev\n",
    },
)

AISHELL_1 = Published(
    "AISHELL-1",
    {
        "data_aishell/wav/train/S0002/BAC009S0002W0122.wav": ("S0002", "而 对 楼市"),
        "data_aishell/wav/dev/S0724/BAC009S0724W0121.wav": ("S0724", "广州 市"),
        "data_aishell/wav/test/S0764/BAC009S0764W0179.wav": ("S0764", ""),  # as some are
    },
    {
        "data_aishell/transcript/aishell_transcript_v0.8.txt": "BAC009S0002W0122 而 对 楼市\n"
        "BAC009S0724W0121 广州 市\n",
        "resource_aishell/speaker.info": "0002 F\n",
        "resource_aishell/lexicon.txt": "SIL sil\n",
    },
)

_L2 = "l2arctic_release_v5.0"
L2_ARCTIC = Published(
    "L2-ARCTIC",
    {
        f"{_L2}/ABA/wav/arctic_a0001.wav": ("ABA", "Author of the danger trail"),
        f"{_L2}/ABA/wav/arctic_b0539.wav": ("ABA", "Without them he could not"),
        f"{_L2}/YKWK/wav/arctic_a0001.wav": ("YKWK", "Author of the danger trail"),
    },
    {
        f"{_L2}/{speaker}/{folder}/{name}.{suffix}": content
        for speaker, names in (
            ("ABA", ("arctic_a0001", "arctic_b0539")),
            ("YKWK", ("arctic_a0001",)),
        )
        for name in names
        for folder, suffix, content in (
            (
                "transcript",
                "txt",
                {"arctic_a0001": "Author of the danger trail"}.get(
                    name, "Without them he could not"
                ),
            ),
            ("textgrid", "TextGrid", _GRID),
            ("annotation", "TextGrid", _GRID),
        )
    }
    | _texts(f"{_L2}/README.md", f"{_L2}/LICENSE", f"{_L2}/PROMPTS"),
)

_BDL, _SLT = "cmu_us_bdl_arctic", "cmu_us_slt_arctic"
_LAB = "#\n0.1 125 pau\n0.3 125 ao\n0.5 125 pau\n"
CMU_ARCTIC = Published(
    "CMU ARCTIC",
    {
        f"{_BDL}/wav/arctic_a0001.wav": ("bdl", "Author of the danger trail, etc."),
        f"{_BDL}/wav/arctic_b0539.wav": ("bdl", 'He said "so".'),
        f"{_SLT}/wav/arctic_a0001.wav": ("slt", "Author of the danger trail, etc."),
    },
    {
        f"{_BDL}/etc/txt.done.data": '( arctic_a0001 "Author of the danger trail, etc." )\n'
        '( arctic_b0539 "He said \\"so\\"." )\n',
        f"{_SLT}/etc/txt.done.data": '( arctic_a0001 "Author of the danger trail, etc." )\n',
        f"{_BDL}/lab/arctic_a0001.lab": _LAB,
        f"{_BDL}/lab/arctic_b0539.lab": _LAB,
        f"{_SLT}/lab/arctic_a0001.lab": _LAB,
    }
    | _texts(f"{_BDL}/COPYING", f"{_BDL}/README", f"{_SLT}/COPYING", f"{_SLT}/README"),
)

LJSPEECH = Published(
    "LJSpeech",
    {
        "LJSpeech-1.1/wavs/LJ001-0001.wav": ("LJ", "Printing, in the only sense"),
        "LJSpeech-1.1/wavs/LJ050-0278.wav": ("LJ", 'the "Secret" Service, nineteen'),
    },
    {
        "LJSpeech-1.1/metadata.csv": "LJ001-0001|Printing, in the only sense|Printing, in the only "
        'sense\nLJ050-0278|the "Secret" Service, 19|the "Secret" Service, nineteen\n',
        "LJSpeech-1.1/README": "text\n",
    },
)

TED_LIUM = Published(
    "TED-LIUM",
    {
        "TEDLIUM_release-3/data/sph/AlGore_2009.sph": ("AlGore", ""),
        "TEDLIUM_release-3/data/sph/911MothersTED.sph": ("", ""),
        "TEDLIUM_release-3/legacy/test/sph/AimeeMullins_2009P.sph": ("AimeeMullins", ""),
    },
    {
        "TEDLIUM_release-3/data/stm/AlGore_2009.stm": "AlGore_2009 1 AlGore 0 1 <NA> thank you\n",
        "TEDLIUM_release-3/legacy/test/stm/AimeeMullins_2009P.stm": "text\n",
        "TEDLIUM_release-3/LM/europarl.gz": "text\n",
    }
    | _texts("TEDLIUM_release-3/README", "TEDLIUM_release-3/TEDLIUM.152k.dic"),
)

FSDD = Published(
    "FSDD",
    {
        "free-spoken-digit-dataset/recordings/0_george_0.wav": ("george", ""),
        "free-spoken-digit-dataset/recordings/7_jackson_32.wav": ("jackson", ""),
        "free-spoken-digit-dataset/recordings/9_yweweler_49.wav": ("yweweler", ""),
    },
    _texts(
        "free-spoken-digit-dataset/README.md", "free-spoken-digit-dataset/metadata.py",
        "free-spoken-digit-dataset/utils/spectogramer.py",
    ),
)  # fmt: skip

UNLISTED = Published(
    "unknown",
    {
        "corpus/train/speaker01/session1/0001.wav": ("", ""),
        "corpus/train/speaker01/session1/0002.wav": ("", ""),
        "corpus/test/speaker02/session1/0001.wav": ("", ""),
    },
    _texts("corpus/README", "corpus/train/speaker01/session1/0001.txt"),
)

ALL = (
    LIBRISPEECH, LIBRITTS, TIMIT, VCTK, VOXCELEB, COMMON_VOICE, MLS, AISHELL_1, L2_ARCTIC,
    CMU_ARCTIC, LJSPEECH, TED_LIUM, FSDD, UNLISTED,
)  # fmt: skip
