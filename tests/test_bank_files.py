"""Broken files are refused without a crash, and an interrupted build leaves no half bank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from bank_samples import CATEGORIES, assert_equal, gradient, make_foreground, write_bank
from PIL import Image

from terse_aug.bank import BankWriter, ForegroundBank
from terse_aug.bank.storage.record import DESCRIPTION_KEY, record_key


def change(path: Path, key: bytes, value: bytes | None) -> None:
    """Set or delete a value of an LMDB file."""
    environment = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)
    environment.close()


def test_missing_folder_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no foreground bank at .*bank build"):
        ForegroundBank.open(tmp_path / "missing.bank")
    with pytest.raises(ValueError, match="got the folder"):
        ForegroundBank.open(tmp_path)
    change(tmp_path / "other.mdb", b"key", b"value")
    with pytest.raises(ValueError, match="LMDB file but no foreground bank"):
        ForegroundBank.open(tmp_path / "other.mdb")
    assert [path.name for path in tmp_path.iterdir()] == ["other.mdb"]  # no lock file
    (tmp_path / "text").write_text("some text\n" * 2000)
    (tmp_path / "empty").write_bytes(b"")
    Image.fromarray(gradient(90, 90)).save(tmp_path / "image.png")
    for name in ("text", "empty", "image.png"):
        with pytest.raises(ValueError, match=f"{name} is no foreground bank"):
            ForegroundBank.open(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (DESCRIPTION_KEY, b"{", "description is damaged"),
        (DESCRIPTION_KEY, b'{"format": "terse-aug foreground bank", "version": 1}', "description is damaged"),
        (DESCRIPTION_KEY, b'{"format": "terse-aug foreground bank", "version": 99}', "format version 1, got 99"),
        (b"labels", None, "labels are missing"),
        (b"sizes", b"123", "expected 96 bytes of sizes for 12 foregrounds, got 3"),
    ],
)
def test_damaged_descriptions(tmp_path: Path, key: bytes, value: bytes | None, match: str) -> None:
    write_bank(tmp_path / "a.bank")
    change(tmp_path / "a.bank", key, value)
    with pytest.raises(ValueError, match=match):
        ForegroundBank.open(tmp_path / "a.bank")


@pytest.mark.parametrize("value", [None, b"", b"\xff" * 16, b"\x00" * 40])
def test_damaged_records(tmp_path: Path, value: bytes | None) -> None:
    write_bank(tmp_path / "a.bank")
    change(tmp_path / "a.bank", record_key(5), value)
    bank = ForegroundBank.open(tmp_path / "a.bank")
    assert_equal(bank[4], make_foreground(4))
    with pytest.raises(ValueError, match=r"foreground 5 of .* is damaged"):
        bank[5]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_bank(tmp_path / "whole.bank", 12)
    # In a process of its own: without the check of the length, the kernel kills the reader.
    script = """if True:
        import sys, random
        from pathlib import Path
        from terse_aug.bank import ForegroundBank
        whole = Path(sys.argv[1]).read_bytes()
        part = Path(sys.argv[1] + ".part")
        lengths = {*range(0, 300), *range(4000, 4400), len(whole) - 1, len(whole) - 4096}
        lengths |= set(range(0, len(whole), 4096)) | set(random.Random(0).sample(range(len(whole)), 300))
        for length in sorted(lengths):
            part.write_bytes(whole[:length])
            try:
                ForegroundBank.open(part)
            except ValueError as error:
                assert "truncated" in str(error) or "no foreground bank" in str(error), error
            else:
                sys.exit(f"accepted {length} of {len(whole)} bytes")
        part.write_bytes(whole)
        print(len(lengths), len(list(ForegroundBank.open(part))))
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "whole.bank")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, read = done.stdout.split()
    assert int(refused) > 900
    assert int(read) == 12


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [0, 4])
def test_an_interrupted_build_leaves_what_was_there(tmp_path: Path, error: type[BaseException], old: int) -> None:
    if old:
        write_bank(tmp_path / "a.bank", old)
    with pytest.raises(error), BankWriter(tmp_path / "a.bank", CATEGORIES, overwrite=bool(old)) as writer:
        add_and_raise(writer, error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bank"] * bool(old)
    assert not old or len(ForegroundBank.open(tmp_path / "a.bank")) == old


def add_and_raise(writer: BankWriter, error: type[BaseException]) -> None:
    for seed in range(100):
        writer.add(make_foreground(seed))
    raise error


def test_an_empty_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no foreground was kept"), BankWriter(tmp_path / "a.bank", CATEGORIES):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    def put_file_and_add(writer: BankWriter) -> None:
        writer.add(make_foreground(0))
        (tmp_path / "a.bank").write_text("mine")

    with pytest.raises(FileExistsError), BankWriter(tmp_path / "a.bank", CATEGORIES) as writer:
        put_file_and_add(writer)  # during the build
    with pytest.raises(FileExistsError, match="overwrite"):
        write_bank(tmp_path / "a.bank")
    assert (tmp_path / "a.bank").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    write_bank(tmp_path / "a.bank", overwrite=True)
    assert len(ForegroundBank.open(tmp_path / "a.bank")) == 12


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got the folder"):
        BankWriter(tmp_path, CATEGORIES, overwrite=True)
    with pytest.raises(FileNotFoundError, match="create it first"):
        BankWriter(tmp_path / "missing" / "a.bank", CATEGORIES)


FULL_DISK = """if True:
    import resource, sys
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    sys.path.insert(0, sys.argv[2])
    from bank_samples import CATEGORIES, make_foreground
    from terse_aug.bank import BankWriter
    import terse_aug.bank.storage.lmdb_writer as module
    module._BATCH_BYTES = 1 << 16
    with BankWriter(sys.argv[1], CATEGORIES) as writer:
        for seed in range(10**9):
            writer.add(make_foreground(seed))
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.bank"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "OSError: the bank" in done.stderr
    assert "Free some disk space" in done.stderr
    assert list(tmp_path.iterdir()) == []
