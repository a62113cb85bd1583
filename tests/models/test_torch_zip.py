"""The reader of pytorch_model.bin: what torch writes comes out exactly, all else is refused."""

import base64
import zlib
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechsim_jax.errors import UserError
from speechsim_jax.models import torch_archive
from speechsim_jax.models.torch_zip import read_torch_zip
from tests.support.torch_writer import (
    FLOATS,
    METADATA,
    ORDERED_DICT,
    PLAIN,
    REBUILD_V2,
    SIX,
    Member,
    file_of,
    file_of_tensor,
    members,
    number,
    row,
    state_dict,
    storage,
    tensor,
    text,
    zip_file,
)

# Written by torch 2.13: Linear(3, 2) with weight 0..5 and bias [0.5, -1]; half_t = (0..5 as
# [2, 3]).T in float16; p = Parameter([1.5]) in bfloat16. Then zlib and base 85.
REAL_FILE = (
    "c-ozny>HV%7{)Jl>!hZ9_lu80fl^Xv)7VLqhOZ(E43Y;*5K@GYEH`m$3%AK@U#UPss)SlVVgQL5G4MYy!o-F|84v"
    ">-128dyn7Ff}$ab8jtrh#?^S!_4Ip6!9XB4&rp+o{T9et=9)$Ze}T{hH(YDKpuDjL>OwY!!qCD85qvBH$gRm;-L*"
    "sLx({B^sc+j`})S;jn|(IUi>C62(Bb#vapz?5BHN?pRH<?yPl&n}r(MaBA}Q?=E5A`fgbS&EYghm6$bb?ERyc-g9"
    "I_@>v%LuV;Q#-xEOv7{~6mLRTh7!o%Wq%aD*23-oP#MXd+YETzDFmxATXNgP|&6=76y9}aZbQm5-fZax1VKD4*<5"
    "yv?5?h6RUhIAhJw@nsr(tN;oQk2(i>^DnMmihD`dy$11BPqp00puNvjzv181;3?gC52(ScD_);2Iol@mgw{tu5$S"
    "w|N)}NJ{S85ONLKV=gHJ$BAqV!wD)&rZ7w|Cq2m#45x~aeB$1WK8DjpIJ5K+#!6izQYA7PU0)b?pQlPR1z_SKq}|"
    "oHr`rx$U=Wm;<2bXa86}>;y72N3k)`KM%QPB97ei^3nycCi8dmE}SvuRurmY_Wb@KN2w?}mT^la^92nk^)^(0d@%"
    "bZ_a&=;{Rjc?6NE=vteFT*c}NH7~3=tqT+f!X_5uhNo{rOEBR1k1$O(y52l3*QgW9OX9j(1WHTs(K<VOWAE1@Te="
    "(<Z_Ap$hkt!*O#cH{^vhl43Gx{Z5)k6ITB>)INFpx(O!8+^^6a@MyNodjb1KFPn0DQZEODL$;>5m8C{_s{vG=Grk"
    "iwjxA7oGdC168YKtD;PgB)rKd+o`pMSmRTu8N1g8A*1V1}pq>#yc-wbvg;W8ngHr|syrNh<JxM!zAdS&^mWrtJvn"
    "e10k?=EXw3P?(y`3OR8yoi1dj$iGZFmrWN6qDZ=^%TLS0JxSst>AH+jvkjmA&8)A<dGvQM%<ykRgMs*~4BB`T45R"
    "!T%1{8c-i&J6#lkfI*3ciI6<O43OA15$)!Y++d|^@Ko)RYb>oZ6&IwA=|nBcFjAmM8?K@1c8l@cV}>5L>~!UTV=_"
    "XY@`n+Ppd*Pn>P!S&$Krb=W+;kdDS%n^3H5zmL(cZ}Em<-C@}#obix^6tGaW+&&x@a}kT?0;grRnP"
)

KINDS = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        return read_torch_zip(path)

    return read_bytes


def refused(folder: Path, content: bytes) -> str:
    """The one line that refuses a file with this content."""
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_torch_zip(path)
    line = str(caught.value)
    assert "pytorch_model.bin" in line and "\n" not in line and len(line) < 500
    return line


@pytest.fixture
def refusal(tmp_path):
    return partial(refused, tmp_path)


def test_file_written_by_torch(read):
    tensors = read(zlib.decompress(base64.b85decode(REAL_FILE)))
    assert list(tensors) == ["weight", "bias", "half_t", "p"]
    np.testing.assert_array_equal(tensors["weight"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(tensors["bias"], np.array([0.5, -1], np.float32))
    np.testing.assert_array_equal(tensors["half_t"], SIX.reshape(2, 3).T.astype(np.float16))
    assert tensors["p"].dtype == ml_dtypes.bfloat16 and tensors["p"].astype(float) == [1.5]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", KINDS)
def test_element_types(read, kind, order):
    values = np.array([[0, 1, 2], [3, 4, 250]]).astype(KINDS[kind])
    part = values.view(values.real.dtype)
    raw = part.view(f"u{part.itemsize}").astype(f"{'<>'[order == 'big']}u{part.itemsize}")
    pickled = state_dict({"w": tensor(storage(kind, "0", 6), (2, 3), (3, 1))})
    found = read(zip_file(members(pickled, {"0": raw.tobytes()}, order.encode())))["w"]
    assert found.dtype == values.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, values)


@st.composite
def layouts(draw):
    size = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    stride = tuple(draw(st.integers(0, 5)) for _ in size)
    return size, stride, draw(st.integers(0, 5))


@given(layout=layouts())
def test_any_layout_picks_the_right_elements(tmp_path_factory, layout):
    size, stride, offset = layout
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    block = np.arange(1 if 0 in size else last + 1, dtype="<i4")
    path = tmp_path_factory.mktemp("layout") / "w.bin"
    value = tensor(storage("IntStorage", "0", len(block)), size, stride, offset)
    path.write_bytes(file_of_tensor(value, block.tobytes()))
    found = read_torch_zip(path)["w"]
    expected = np.zeros(size, np.int32)
    for index in np.ndindex(*size):
        expected[index] = block[offset + np.dot(index, stride)] if size else block[offset]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and found.flags.aligned and not found.flags.writeable


def test_one_element_less_is_refused(refusal):
    assert "past the end of its storage '0'" in refusal(
        file_of_tensor(tensor(FLOATS, (2, 3), (3, 1), offset=1))
    )


def test_the_step_of_a_dimension_of_one_does_not_matter(read):
    found = read(file_of_tensor(tensor(FLOATS, (1, 6), (2**70, 1))))["w"]
    np.testing.assert_array_equal(found, SIX[None])


def test_tied_weights_and_metadata(read):
    pickled = state_dict(
        {"a": PLAIN, "b": tensor(FLOATS, (3, 2), (1, 3)), "c": tensor(FLOATS, (), (), 5)}, METADATA
    )
    found = read(file_of(pickled))
    assert list(found) == ["a", "b", "c"]
    np.testing.assert_array_equal(found["b"], found["a"].T)
    assert found["c"].shape == () and found["c"] == 5


def test_less_common_spellings(read):
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + row(PLAIN, b"\x88", ORDERED_DICT) + b"R"
    size = b"ctorch\nSize\n" + row(number(6)) + b"\x85R"
    sized = (
        REBUILD_V2 + row(FLOATS, b"M\x00\x00", size, b"K\x01\x85\x89", ORDERED_DICT, b"N") + b"R"
    )
    again = b"r\x00\x01\x00\x00" + text("memo") + b"j\x00\x01\x00\x00"
    values = {"parameter": parameter, "size": sized, "empty": tensor(FLOATS, (0, 3), (3, 1))}
    values["extra"] = tensor(FLOATS, (2, 3), (3, 1), more=b"}") + again
    found = read(file_of(state_dict(values)))
    np.testing.assert_array_equal(found["parameter"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["size"], SIX)
    np.testing.assert_array_equal(found["memo"], found["extra"])
    assert found["empty"].shape == (0, 3)


def untyped(kind: bytes, block: bytes = storage("torch.storage.UntypedStorage", "0", 24)) -> bytes:
    parts = (block, number(0), row(number(6)), row(number(1)), b"\x89", ORDERED_DICT, kind)
    return b"ctorch._utils\n_rebuild_tensor_v3\n" + row(*parts) + b"R"


def test_untyped_storage(read, refusal):
    block = np.arange(6).astype(ml_dtypes.float8_e4m3fn).tobytes()
    value = untyped(b"ctorch\nfloat8_e4m3fn\n", storage("torch.storage.UntypedStorage", "0", 6))
    found = read(file_of_tensor(value, block))["w"]
    assert found.dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(found.astype(np.float32), SIX)
    for wrong in (
        untyped(b"ctorch\nFloatStorage\n"),
        untyped(b"N"),
        untyped(b"ctorch\nuint32\n", FLOATS),
        tensor(storage("torch.storage.UntypedStorage", "0", 24), (6,), (1,)),
    ):
        assert "without a storage of known type" in refusal(file_of_tensor(wrong))


def test_a_dict_that_is_no_ordered_dict(read):
    found = read(file_of(b"\x80\x02}" + text("w") + PLAIN + b"s."))
    np.testing.assert_array_equal(found["w"], SIX.reshape(2, 3))


def test_zip64_and_odd_alignment(read):
    parts = members(state_dict({"w": PLAIN}), {"0": SIX.tobytes()})
    for part in parts:
        part.zip64 = True
    np.testing.assert_array_equal(read(zip_file(parts, zip64=True))["w"], SIX.reshape(2, 3))
    del parts[1:3]  # without byteorder and version, as torch 1.6 wrote it
    parts[0].data += b"x"
    for part in parts:
        part.local_name = part.name
    shifted = zip_file([Member("archive/a", b"y" * 61), *parts])
    np.testing.assert_array_equal(read(shifted)["w"], SIX.reshape(2, 3))


def test_a_misaligned_storage_is_copied(read):
    content = file_of_tensor(PLAIN)
    at = content.index(SIX.tobytes())
    pad = content.rindex(b"FB", 0, at)
    # Move the storage three bytes forward: shorter padding, and three bytes of junk behind it.
    length = int.from_bytes(content[pad + 2 : pad + 4], "little")
    moved = content[: pad + 2] + (length - 3).to_bytes(2, "little") + content[pad + 4 : at - 3]
    moved += SIX.tobytes() + b"zzz" + content[at + 24 :]
    extra = content.rindex(b"PK\x03\x04", 0, at) + 28
    size = int.from_bytes(moved[extra : extra + 2], "little") - 3
    found = read(moved[:extra] + size.to_bytes(2, "little") + moved[extra + 2 :])["w"]
    np.testing.assert_array_equal(found, SIX.reshape(2, 3))
    assert found.flags.aligned


# --- refused: ZIPs and other files ----------------------------------------------------------------


def changed(index: int = 3, **fields) -> bytes:
    parts = members(state_dict({"w": PLAIN}), {"0": SIX.tobytes()})
    for name, value in fields.items():
        setattr(parts[index], name, value)
    return zip_file(parts)


def with_member(name: str) -> bytes:
    parts = members(state_dict({"w": PLAIN}), {"0": SIX.tobytes()})
    return zip_file([*parts, Member(name, b"")])


GOOD = file_of_tensor(PLAIN)
REFUSED_FILES = {
    "deflated storage": (changed(method=8), "compressed or encrypted"),
    "stored with two sizes": (changed(packed=12), "compressed or encrypted"),
    "encrypted": (changed(flags=0x0809), "compressed or encrypted"),
    "deflated pickle": (changed(0, method=8), "compressed or encrypted"),
    "entry shorter than the storage": (changed(size=20), "has 20 bytes"),
    "entry past the end": (changed(size=2**31), "past the data"),
    "entry header elsewhere": (changed(header=1), "has no header"),
    "entry header past the end": (changed(header=2**31), "has no header"),
    "entry header of another": (changed(header=0), "two different names"),
    "local name differs": (changed(local_name="archive/data/1"), "two different names"),
    "two of a name": (with_member("archive/data/0"), "two ZIP entries named"),
    "absolute name": (with_member("/archive/x"), "unsafe name"),
    "parent name": (with_member("archive/../x"), "unsafe name"),
    "backslash": (with_member("archive/a\\b"), "unsafe name"),
    "directory entry": (with_member("archive/data/"), "unsafe name"),
    "control character": (with_member("archive/\n"), "unsafe name"),
    "no folder": (with_member("x"), "unsafe name"),
    "two folders": (with_member("other/x"), "not all in one folder"),
    "two pickles": (with_member("other/data.pkl"), "no single data.pkl"),
    "no pickle": (zip_file([Member("archive/x", b"")]), "no single data.pkl"),
    "no entries": (b"PK\x03\x04" + zip_file([])[:-6] + b"\x00" * 6, "no single data.pkl"),
    "TorchScript": (with_member("archive/constants.pkl"), "TorchScript"),
    "middle-endian": (changed(1, data=b"middle"), "byteorder"),
    "long byteorder": (changed(1, data=b"little" * 9), "at most 6"),
    "too few entries": (file_of(b"", count=3), "wrong size"),
    "too many entries": (file_of(b"", count=5), "garbled"),
    "name not UTF-8": (GOOD.replace(b"archive/version", b"archive/\xff\xfe\xfdsion"), "not UTF-8"),
    "cut in the data": (GOOD[:200], "is cut off"),
    "cut at the end": (GOOD[:-1], "cut off"),
    "appended": (GOOD + b"x", "bytes after the end"),
    "directory cut": (GOOD.replace(b"PK\x01\x02", b"PK\x01\x03"), "garbled"),
    "ends in its ZIP64 locator": (
        file_of(b"", zip64=True).replace(b"PK\x06\x06", b"PK\x06\x05"),
        "ZIP64 directory",
    ),
    "zip64 value missing": (changed(size=0xFFFFFFFF), "cut off"),
    "empty": (b"", "is empty"),
    "HTML": (b"<html>not found</html>", "wrong first bytes"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "legacy": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "save_pretrained"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "save_pretrained"),
}


@pytest.mark.parametrize("what", REFUSED_FILES)
def test_refused_file(refusal, what):
    content, words = REFUSED_FILES[what]
    assert words in refusal(content)


def test_header_at_the_very_end(refusal):
    # The last four bytes before the directory look like a header with nothing behind it.
    tail = Member("archive/x", b"PK\x03\x04")
    parts = members(state_dict({"w": PLAIN}), {"0": SIX.tobytes()})
    end = zip_file([*parts, tail]).index(b"PK\x01\x02") - 4
    parts[3].header = end
    assert "has no header" in refusal(zip_file([*parts, tail]))


def test_not_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.bin"):
        with pytest.raises(UserError, match="is not a file"):
            read_torch_zip(path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "w.bin"
    path.write_bytes(GOOD)
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch_archive.mmap, "mmap", lambda *a, **k: (_ for _ in ()).throw(denied))
    with pytest.raises(UserError, match=r"w\.bin: cannot be read: Permission denied"):
        read_torch_zip(path)
