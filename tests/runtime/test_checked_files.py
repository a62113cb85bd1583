"""Files that are checked when they are read back."""

import json
from pathlib import Path

import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.runtime.checked_files import (
    DamagedFileError,
    check_file,
    fingerprint,
    read_record,
    write_record,
)

CONTENT = {"models": ["a", "ü"], "seed": 1, "nested": {"x": None}}


def test_a_record_is_json_and_comes_back(tmp_path: Path) -> None:
    path = write_record(tmp_path / "deep" / "record.json", 7, CONTENT)
    record = read_record(path, 7)
    assert {name: record[name] for name in CONTENT} == CONTENT
    assert json.loads(path.read_text()) == record
    assert set(record) == {"checksum", "format", *CONTENT}


def test_every_flipped_bit_and_every_missing_end_of_a_record_is_noticed(tmp_path: Path) -> None:
    path = write_record(tmp_path / "record.json", 1, CONTENT)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"record\.json"):
            read_record(path, 1)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFileError, match=r"record\.json is damaged"):
            read_record(path, 1)
    path.unlink()
    with pytest.raises(DamagedFileError, match=r"record\.json cannot be read: No such file"):
        read_record(path, 1)


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": 2, "kinds": []}'])
def test_another_format_is_named_with_a_checksum_or_without(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is of format 2, this version reads 3"):
        read_record(path, 3)
    write_record(path, 2, {})
    with pytest.raises(UserError, match="is of format 2, this version reads 3"):
        read_record(path, 3)


def test_other_files_are_checked_by_size_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    path.write_bytes(bytes(range(256)) * 50)
    expected = fingerprint(path)
    check_file(path, expected)
    bad = bytearray(path.read_bytes())
    bad[5000] ^= 16
    path.write_bytes(bad)
    with pytest.raises(DamagedFileError, match=r"array\.npy is damaged: its checksum"):
        check_file(path, expected)
    path.write_bytes(bad[:-1])
    with pytest.raises(DamagedFileError, match=r"array\.npy is damaged: 12799 of 12800 bytes"):
        check_file(path, expected)
    with pytest.raises(DamagedFileError, match=r"^shown cannot be read"):
        check_file(tmp_path / "gone", expected, shown=Path("shown"))
