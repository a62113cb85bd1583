"""Pickles that are refused, by opcode, name, layout or size; none of them ever runs."""

from functools import partial

import pytest

from speechsim_jax.models import torch_archive, torch_pickle, torch_zip
from tests.models.test_torch_zip import refused
from tests.support.torch_writer import (
    FLOATS,
    ORDERED_DICT,
    PLAIN,
    REBUILD_V2,
    SIX,
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


@pytest.fixture
def refusal(tmp_path):
    return partial(refused, tmp_path)


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
    "class that could be anything": (b"cargparse\nNamespace\n)\x81", "'argparse.Namespace'"),
    "quantized storage": (storage("QInt8Storage", "0", 24), "'torch.QInt8Storage'"),
    "escaped name": (b"co\\x73\nsystem\n(" + RUN + b"tR", "'os.system'"),
    "line break in a name": (b"ca\\nb\nc\n", "'a\\nb.c'"),
    "INST": (b"(" + RUN + b"ios\nsystem\n", "INST 'os system'"),
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
    "REDUCE of a storage type": (b"ctorch\nFloatStorage\n)R", "calls 'torch.FloatStorage'"),
    "REDUCE of a string": (text("os.system") + b")R", "calls 'str'"),
    "REDUCE without a tuple": (b"ccollections\nOrderedDict\n}R", "calls 'collections.OrderedDict'"),
    "OrderedDict of something": (b"ccollections\nOrderedDict\n}\x85R", "with 1 arguments"),
    "tensor of one argument": (REBUILD_V2 + b"K\x00\x85R", "with 1 arguments"),
    "BUILD of a global": (b"ccollections\nOrderedDict\n}b", "(BUILD)"),
    "BUILD of a tensor": (PLAIN + b"}b", "(BUILD)"),
    "BUILD of a plain dict": (b"}}b", "(BUILD)"),
    "BUILD with a tuple (slots)": (ORDERED_DICT + b"N}\x86b", "(BUILD)"),
    "nested BUILD __setstate__": (
        ORDERED_DICT + b"}" + text("__setstate__") + b"cos\nsystem\nsbN\x85b",
        "'os.system'",
    ),
    "a number": (number(3), "is a int, no tensor"),
    "an unending number": (b"\x8a\x02\xff\xff", "is a int, no tensor"),
    "None": (b"N", "is a NoneType, no tensor"),
    "a global": (b"ctorch\nFloatStorage\n", "is a _Global, no tensor"),
    "training checkpoint": (b"}" + text("w") + PLAIN + b"s", "is a training checkpoint"),
    "int key": (b"}K\x01K\x02s", "key of type int"),
    "the same key twice": (b"}" + (text("a") + b"Ns") * 2, "key 'a' twice"),
    "SETITEM on None": (b"N" + text("a") + b"Ns", "SETITEMS"),
    "an odd number of items": (b"}(" + text("a") + b"u", "SETITEMS"),
    "SETITEMS without MARK": (b"}u", "garbled"),
    "unknown memo": (b"h\x09", "garbled"),
    "unknown opcode": (b"\xfe", "garbled"),
    "string longer than the file": (b"X\xff\xff\xff\xff", "garbled"),
    "frame longer than the file": (b"\x95" + b"\xff" * 8, "FRAME"),
    "number of 20 000 digits": (b"I" + b"9" * 20_000 + b"\n", "garbled"),
    "huge number": (b"\x8b\x00\x20\x00\x00" + b"\x7f" * 8192, "LONG4"),
    "unclosed MARK": (b"(" * 3000, "garbled"),
    "empty stack": (b"s" * 9, "garbled"),
    "tuples nested 2^500 deep": (b")" + b"q\x01h\x01h\x01\x87" * 500, "is a tuple, no tensor"),
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
    "parameter of no tensor": (
        b"ctorch._utils\n_rebuild_parameter\n" + row(b"N", b"\x88", ORDERED_DICT) + b"R",
        "Parameter that is no tensor",
    ),
    "hooks": (PLAIN.replace(b"\x89" + ORDERED_DICT, b"\x89}"), "with hooks"),
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


@pytest.mark.parametrize("what", REFUSED_VALUES)
def test_refused_value(refusal, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    value, words = REFUSED_VALUES[what]
    assert words in refusal(file_of_tensor(value))
    assert not (tmp_path / "executed").exists()


REFUSED_PICKLES = {
    "a tensor alone": (b"\x80\x02" + PLAIN + b".", "holds a ndarray"),
    "two objects": (b"\x80\x02NN.", "left over"),
    "no STOP": (b"\x80\x02N", "garbled"),
    "nothing": (b"", "garbled"),
    "not a pickle": (b"<html>", "garbled"),
    "cut off": (state_dict({"w": PLAIN})[:-40], "garbled"),
    "control characters in a name": (state_dict({"w\x1b[2J": PLAIN}), "unprintable name"),
    "lone surrogate in a name": (state_dict({"w\ud800": PLAIN}), "unprintable name"),
    "a name twice": (state_dict({"w": PLAIN}, text("w") + PLAIN + b"s"), "'w' twice"),
}


@pytest.mark.parametrize("what", REFUSED_PICKLES)
def test_refused_pickle(refusal, what):
    pickled, words = REFUSED_PICKLES[what]
    assert words in refusal(file_of(pickled))


@pytest.mark.parametrize(
    ("module", "limit", "words"),
    [
        (torch_pickle, "_MAX_PICKLE_OPS", "more than 20 opcodes"),
        (torch_zip, "_MAX_PICKLE_BYTES", "at most 20 are read"),
        (torch_archive, "_MAX_ENTRIES", "impossible (24 entries)"),
    ],
)
def test_limits(refusal, monkeypatch, module, limit, words):
    monkeypatch.setattr(module, limit, 20)
    blocks = {str(key): SIX.tobytes() for key in range(21)}
    assert words in refusal(zip_file(members(state_dict({"w": PLAIN}), blocks)))


def test_many_small_views_are_bounded(refusal):
    again = b"q\x00" + b"".join(text(f"k{i}") + b"h\x01h\x02R" for i in range(7000))
    arguments = row(FLOATS, number(0), row(), row(), b"\x89", ORDERED_DICT)
    pickled = b"\x80\x02" + REBUILD_V2 + b"q\x01" + arguments + b"q\x02R" + ORDERED_DICT
    assert "expand to over 4" in refusal(file_of(pickled + b"(" + again[2:] + b"u."))
