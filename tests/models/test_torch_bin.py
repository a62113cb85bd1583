"""The reader of pytorch_model.bin: what torch writes comes out exactly, all else is refused."""

import base64
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechsim_jax.errors import UserError
from speechsim_jax.models import torch_bin
from speechsim_jax.models.torch_bin import read_torch_bin
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
        return read_torch_bin(path)

    return read_bytes


@pytest.fixture
def refusal(read):
    """The one line that refuses a file with this content."""

    def refuse(content: bytes) -> str:
        with pytest.raises(UserError) as caught:
            read(content)
        line = str(caught.value)
        assert "pytorch_model.bin" in line and "\n" not in line and len(line) < 500
        return line

    return refuse


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
    array = read(zip_file(members(pickled, {"0": raw.tobytes()}, order.encode())))["w"]
    assert array.dtype == values.dtype and array.dtype.isnative
    np.testing.assert_array_equal(array, values)


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
    array = read_torch_bin(path)["w"]
    expected = np.zeros(size, np.int32)
    for index in np.ndindex(*size):
        expected[index] = block[offset + np.dot(index, stride)] if size else block[offset]
    np.testing.assert_array_equal(array, expected)
    assert array.flags.c_contiguous and array.flags.aligned and not array.flags.writeable


def test_the_step_of_a_dimension_of_one_does_not_matter(read):
    array = read(file_of_tensor(tensor(FLOATS, (1, 6), (2**70, 1))))["w"]
    np.testing.assert_array_equal(array, SIX[None])


def test_tied_weights_and_metadata(read):
    pickled = state_dict(
        {"a": PLAIN, "b": tensor(FLOATS, (3, 2), (1, 3)), "c": tensor(FLOATS, (), (), 5)}, METADATA
    )
    tensors = read(file_of(pickled))
    assert list(tensors) == ["a", "b", "c"]
    np.testing.assert_array_equal(tensors["b"], tensors["a"].T)
    assert tensors["c"].shape == () and tensors["c"] == 5


def test_less_common_spellings(read):
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + row(PLAIN, b"\x88", ORDERED_DICT) + b"R"
    size = b"ctorch\nSize\n" + row(number(6)) + b"\x85R"
    sized = (
        REBUILD_V2 + row(FLOATS, b"M\x00\x00", size, b"K\x01\x85\x89", ORDERED_DICT, b"N") + b"R"
    )
    again = b"r\x00\x01\x00\x00" + text("memo") + b"j\x00\x01\x00\x00"
    values = {"parameter": parameter, "size": sized, "empty": tensor(FLOATS, (0, 3), (3, 1))}
    values["extra"] = tensor(FLOATS, (2, 3), (3, 1), more=b"}") + again
    tensors = read(file_of(state_dict(values)))
    np.testing.assert_array_equal(tensors["parameter"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(tensors["size"], SIX)
    np.testing.assert_array_equal(tensors["memo"], tensors["extra"])
    assert tensors["empty"].shape == (0, 3)


def untyped(kind: bytes, block: bytes = storage("torch.storage.UntypedStorage", "0", 24)) -> bytes:
    parts = (block, number(0), row(number(6)), row(number(1)), b"\x89", ORDERED_DICT, kind)
    return b"ctorch._utils\n_rebuild_tensor_v3\n" + row(*parts) + b"R"


def test_untyped_storage(read, refusal):
    block = np.arange(6).astype(ml_dtypes.float8_e4m3fn).tobytes()
    value = untyped(b"ctorch\nfloat8_e4m3fn\n", storage("torch.storage.UntypedStorage", "0", 6))
    array = read(file_of_tensor(value, block))["w"]
    assert array.dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(array.astype(np.float32), SIX)
    for wrong in (
        untyped(b"ctorch\nFloatStorage\n"),
        untyped(b"N"),
        tensor(storage("torch.storage.UntypedStorage", "0", 24), (6,), (1,)),
    ):
        assert "without a storage of known type" in refusal(file_of_tensor(wrong))
    assert "annotations" in refusal(file_of_tensor(untyped(b"ctorch\nuint32\n", FLOATS)))


def test_plain_dict(read):
    tensors = read(file_of(b"\x80\x02}" + text("w") + PLAIN + b"s."))
    np.testing.assert_array_equal(tensors["w"], SIX.reshape(2, 3))


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
    array = read(moved[:extra] + size.to_bytes(2, "little") + moved[extra + 2 :])["w"]
    np.testing.assert_array_equal(array, SIX.reshape(2, 3))
    assert array.flags.aligned


# --- refused --------------------------------------------------------------------------------------


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
    "entry past the end": (changed(size=2**31), "not where"),
    "entry header elsewhere": (changed(header=1), "not where"),
    "entry header past the end": (changed(header=2**31), "not where"),
    "entry header of another": (changed(header=0), "not where"),
    "local name differs": (changed(local_name="archive/data/1"), "not where"),
    "two of a name": (with_member("archive/data/0"), "two ZIP entries"),
    "absolute name": (with_member("/archive/x"), "unsafe name"),
    "parent name": (with_member("archive/../x"), "unsafe name"),
    "backslash": (with_member("archive/a\\b"), "unsafe name"),
    "directory entry": (with_member("archive/data/"), "unsafe name"),
    "control character": (with_member("archive/\n"), "unsafe name"),
    "no folder": (with_member("x"), "unsafe name"),
    "two folders": (with_member("other/x"), "unsafe name"),
    "two pickles": (with_member("other/data.pkl"), "no single data.pkl"),
    "no pickle": (zip_file([Member("archive/x", b"")]), "no single data.pkl"),
    "no entries": (b"PK\x03\x04" + zip_file([])[:-6] + b"\x00" * 6, "no single data.pkl"),
    "TorchScript": (with_member("archive/constants.pkl"), "TorchScript"),
    "middle-endian": (changed(1, data=b"middle"), "byteorder"),
    "long byteorder": (changed(1, data=b"little" * 9), "at most 6"),
    "too few entries": (file_of(b"", count=3), "number of entries"),
    "too many entries": (file_of(b"", count=5), "number of entries"),
    "name not UTF-8": (GOOD.replace(b"archive/version", b"archive/\xff\xfe\xfdsion"), "garbled"),
    "cut in the data": (GOOD[:200], "is cut off"),
    "cut at the end": (GOOD[:-1], "cut off"),
    "appended": (GOOD + b"x", "bytes after the end"),
    "directory cut": (GOOD.replace(b"PK\x01\x02", b"PK\x01\x03"), "garbled"),
    "ends in its ZIP64 locator": (
        file_of(b"", zip64=True).replace(b"PK\x06\x06", b"PK\x06\x05"),
        "ZIP directory is garbled",
    ),
    "zip64 value missing": (changed(size=0xFFFFFFFF), "not where"),
    "empty": (b"", "is empty"),
    "HTML": (b"<html>not found</html>", "wrong first bytes"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "legacy": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "save_pretrained"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "save_pretrained"),
}


RUN = text("touch executed")
REFUSED_VALUES = {
    "os.system": (b"cos\nsystem\n(" + RUN + b"tR", "'os.system'"),
    "posix.system": (b"cposix\nsystem\n(" + RUN + b"tR", "'posix.system'"),
    "eval": (b"c__builtin__\neval\n(" + text("1") + b"tR", "'__builtin__.eval'"),
    "exec": (b"cbuiltins\nexec\n(" + text("1") + b"tR", "'builtins.exec'"),
    "getattr": (b"cbuiltins\ngetattr\n(" + text("a") + b"NtR", "'builtins.getattr'"),
    "torch.load": (b"ctorch\nload\n(" + text("a") + b"tR", "'torch.load'"),
    "subprocess": (b"csubprocess\nPopen\n(" + RUN + b"tR", "'subprocess.Popen'"),
    "pickle in pickle": (b"cpickle\nloads\n(" + text("a") + b"tR", "'pickle.loads'"),
    "class that could be anything": (b"cargparse\nNamespace\n)R", "'argparse.Namespace'"),
    "quantized storage": (storage("QInt8Storage", "0", 24), "'torch.QInt8Storage'"),
    "escaped name": (b"co\\x73\nsystem\n(" + RUN + b"tR", ".system'"),
    "line break in a name": (b"ca\\nb\nc\n", "b.c'"),
    "INST": (b"(" + RUN + b"ios\nsystem\n", "INST"),
    "OBJ": (b"(ccollections\nOrderedDict\no", "OBJ"),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
    "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93", "STACK_GLOBAL"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "EXT2": (b"\x83\x01\x00", "EXT2"),
    "EXT4": (b"\x84\x01\x00\x00\x00", "EXT4"),
    "PERSID": (b"Pstorage\n", "PERSID"),
    "LONG4": (b"\x8b\x04\x00\x00\x00\xff\xff\xff\x7f", "LONG4"),
    "list": (b"]", "EMPTY_LIST"),
    "POP": (b"N0N", "POP"),
    "DUP": (b"N2", "DUP"),
    "protocol 4": (b"\x80\x04N", "protocol 4"),
    "REDUCE of a storage type": (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage"),
    "REDUCE of a string": (text("os.system") + b")R", "garbled"),
    "REDUCE without a tuple": (b"ccollections\nOrderedDict\n}R", "garbled"),
    "OrderedDict of something": (b"ccollections\nOrderedDict\n}\x85R", "garbled"),
    "tensor of one argument": (REBUILD_V2 + b"K\x00\x85R", "garbled"),
    "BUILD of a global": (b"ccollections\nOrderedDict\n}b", "(BUILD)"),
    "BUILD of a tensor": (PLAIN + b"}b", "(BUILD)"),
    "BUILD of a storage": (FLOATS + b"}b", "(BUILD)"),
    "BUILD of a plain dict": (b"}}b", "is a training checkpoint"),
    "BUILD with a tuple (slots)": (ORDERED_DICT + b"N}\x86b", "is a training checkpoint"),
    "nested BUILD __setstate__": (
        ORDERED_DICT + b"}" + text("__setstate__") + b"cos\nsystem\nsbN\x85b",
        "'os.system'",
    ),
    "a number": (number(3), "is a int, not a tensor"),
    "an unending number": (b"\x8a\x02\xff\xff", "is a int, not a tensor"),
    "None": (b"N", "is a NoneType, not a tensor"),
    "a global": (b"ctorch\nFloatStorage\n", "is a _Global, not a tensor"),
    "training checkpoint": (b"}" + text("w") + PLAIN + b"s", "is a training checkpoint"),
    "key of tuples nested 2^500 deep": (
        b"})" + b"q\x01h\x01h\x01\x87" * 500 + b"Ns",
        "key that is a tuple",
    ),
    "int key": (b"}K\x01K\x02s", "key that is a int"),
    "the same key twice": (b"}" + (text("a") + b"Ns") * 2, "repeated"),
    "SETITEM on None": (b"N" + text("a") + b"Ns", "garbled"),
    "an odd number of items": (b"}(" + text("a") + b"u", "garbled"),
    "SETITEMS without MARK": (b"}u", "garbled"),
    "unknown memo": (b"h\x09", "garbled"),
    "memo of 4 GiB": (b"Nr\xff\xff\xff\xff", "memo index"),
    "unknown opcode": (b"\xfe", "garbled"),
    "string longer than the file": (b"X\xff\xff\xff\xff", "garbled"),
    "frame longer than the file": (b"\x95" + b"\xff" * 8, "FRAME"),
    "number of 20 000 digits": (b"I" + b"9" * 20_000 + b"\n", "garbled"),
    "huge number": (b"\x8b\x00\x20\x00\x00" + b"\x7f" * 8192, "LONG4"),
    "unclosed MARK": (b"(" * 3000, "garbled"),
    "empty stack": (b"s" * 9, "garbled"),
    "tuples nested 2^500 deep": (b")" + b"q\x01h\x01h\x01\x87" * 500, "is a tuple, not a tensor"),
    "persistent id no tuple": (text("storage") + b"Q", "persistent id"),
    "persistent id of four": (row(text("storage"), b"NNN") + b"Q", "persistent id"),
    "persistent id of another kind": (FLOATS.replace(b"storage", b"modules"), "persistent id"),
    "persistent id with a number as key": (
        FLOATS.replace(text("0"), number(0)),
        "persistent id",
    ),
    "persistent id of numel True": (FLOATS.replace(number(6), b"\x88"), "persistent id"),
    "storage of no storage type": (storage("torch.Size", "0", 6), "storage of type torch.Size"),
    "storage that is not there": (storage("FloatStorage", "1", 6), "no ZIP entry 'data/1'"),
    "storage outside": (storage("FloatStorage", "../data.pkl", 6), "no ZIP entry"),
    "storage of 5": (storage("FloatStorage", "0", 5), "has 24 bytes"),
    "storage of 7": (storage("FloatStorage", "0", 7), "has 24 bytes"),
    "storage of -6": (storage("FloatStorage", "0", -6), "has 24 bytes"),
    "storage of 2^62": (storage("FloatStorage", "0", 2**62), "has 24 bytes"),
    "storage of 2^64 + 6": (storage("FloatStorage", "0", 2**64 + 6), "has 24 bytes"),
    "storage of 2^2000": (storage("FloatStorage", "0", 2**2000), "has 24 bytes"),
    "offset -1": (tensor(FLOATS, (1,), (1,), -1), "impossible"),
    "one element less": (tensor(FLOATS, (2, 3), (3, 1), offset=1), "past the end"),
    "offset 6": (tensor(FLOATS, (1,), (1,), 6), "past the end"),
    "offset 2^64": (tensor(FLOATS, (1,), (1,), 2**64), "past the end"),
    "size -1": (tensor(FLOATS, (-1,), (1,)), "impossible"),
    "size True": (PLAIN.replace(row(number(2), number(3)), b"(\x88K\x03t"), "impossible"),
    "size no tuple": (PLAIN.replace(row(number(2), number(3)), number(2)), "impossible"),
    "stride -1": (tensor(FLOATS, (2,), (-1,), 1), "impossible"),
    "stride 2^62": (tensor(FLOATS, (2,), (2**62,)), "past the end"),
    "stride no tuple": (PLAIN.replace(row(number(3), number(1)), b"N"), "impossible"),
    "more sizes than strides": (tensor(FLOATS, (2, 3), (3,)), "impossible"),
    "33 dimensions": (tensor(FLOATS, (1,) * 33, (1,) * 33), "impossible"),
    "sizes that overflow to 0": (tensor(FLOATS, (2**32, 2**32), (0, 0)), "expand to over 4"),
    "empty with an overflow": (tensor(FLOATS, (0, 2**62, 2**62), (0, 0, 0)), "expand to over 4"),
    "broadcast to 4 GiB": (tensor(FLOATS, (2**30,), (0,)), "expand to over 4"),
    "tensor of a tensor": (tensor(PLAIN, (1,), (1,)), "without a storage"),
    "parameter of not a tensor": (
        b"ctorch._utils\n_rebuild_parameter\n" + row(b"N", b"\x88", ORDERED_DICT) + b"R",
        "Parameter that is not a tensor",
    ),
    "hooks": (PLAIN.replace(b"\x89" + ORDERED_DICT, b"\x89)"), "with hooks"),
    "filled hooks": (
        PLAIN.replace(ORDERED_DICT, ORDERED_DICT + text("a") + b"Ns"),
        "with hooks",
    ),
    "requires_grad no bool": (PLAIN.replace(b"\x89", b"N"), "with hooks"),
    "conjugate": (
        tensor(FLOATS, (6,), (1,), more=b"}" + text("conj") + b"\x88s"),
        "conjugate",
    ),
}


REFUSED_PICKLES = {
    "a tensor alone": (b"\x80\x02" + PLAIN + b".", "contains a Tensor"),
    "two objects": (b"\x80\x02NN.", "contains a NoneType"),
    "no STOP": (b"\x80\x02N", "garbled"),
    "nothing": (b"", "garbled"),
    "not a pickle": (b"<html>", "garbled"),
    "cut off": (state_dict({"w": PLAIN})[:-40], "garbled"),
    "control characters in a name": (state_dict({"w\x1b[2J": PLAIN}), "unprintable name"),
    "lone surrogate in a name": (state_dict({"w\ud800": PLAIN}), "unprintable name"),
    "a name twice": (state_dict({"w": PLAIN}, text("w") + PLAIN + b"s"), "repeated"),
}


REFUSED = {
    "ZIP": REFUSED_FILES,
    "value": {case: (file_of_tensor(v), words) for case, (v, words) in REFUSED_VALUES.items()},
    "pickle": {case: (file_of(v), words) for case, (v, words) in REFUSED_PICKLES.items()},
}


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind, cases in REFUSED.items() for case in cases]
)
def test_refused(refusal, tmp_path, monkeypatch, kind, case):
    monkeypatch.chdir(tmp_path)
    content, words = REFUSED[kind][case]
    assert words in refusal(content)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("_MAX_PICKLE_OPS", 20, "more than 20 opcodes"),
        ("_MAX_PICKLE_BYTES", 20, "at most 20 are read"),
        ("_MAX_DIRECTORY_BYTES", 600, "ZIP directory has"),
    ],
)
def test_limits(refusal, monkeypatch, limit, value, words):
    monkeypatch.setattr(torch_bin, limit, value)
    blocks = {str(key): SIX.tobytes() for key in range(21)}
    assert words in refusal(zip_file(members(state_dict({"w": PLAIN}), blocks)))


def test_many_small_views_are_bounded(refusal):
    again = b"q\x00" + b"".join(text(f"k{i}") + b"h\x01h\x02R" for i in range(7000))
    arguments = row(FLOATS, number(0), row(), row(), b"\x89", ORDERED_DICT)
    pickled = b"\x80\x02" + REBUILD_V2 + b"q\x01" + arguments + b"q\x02R" + ORDERED_DICT
    assert "expand to over 4" in refusal(file_of(pickled + b"(" + again[2:] + b"u."))


def test_header_at_the_very_end(refusal):
    # The last four bytes before the directory look like a header with nothing behind it.
    tail = Member("archive/x", b"PK\x03\x04")
    parts = members(state_dict({"w": PLAIN}), {"0": SIX.tobytes()})
    end = zip_file([*parts, tail]).index(b"PK\x01\x02") - 4
    parts[3].header = end
    assert "not where" in refusal(zip_file([*parts, tail]))


def test_not_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.bin"):
        with pytest.raises(UserError, match="is not a file"):
            read_torch_bin(path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "w.bin"
    path.write_bytes(GOOD)
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(torch_bin.mmap, "mmap", lambda *a, **k: (_ for _ in ()).throw(denied))
    with pytest.raises(UserError, match=r"w\.bin: cannot be read: Permission denied"):
        read_torch_bin(path)
