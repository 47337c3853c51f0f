"""Files are whole or not there: after exceptions, full disks, read-only folders and kills."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from loratomy.core.files import (
    TEMPORARY,
    checksums,
    sha256,
    sweep_temporaries,
    whole_folder,
    write_atomic,
)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system for the test; skips where that is not permitted."""
    points = []

    def mount(*options: str):
        point = tmp_path / "mounted"
        point.mkdir(exist_ok=True)
        if (
            shutil.which("mount") is None
            or subprocess.run(["mount", *options, str(point)], capture_output=True).returncode
        ):
            pytest.skip("mounting is not permitted here")
        points.append(point)
        return point

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", str(point)], check=True)


def test_checksums_are_sha256_of_every_file_below(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"abc")
    # the SHA-256 of "abc" from FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "deep" / "a") == known
    assert checksums(tmp_path) == {"deep/a": known}


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    write_atomic(path, "é\u2028")
    assert path.read_bytes() == "é\u2028".encode() and names(tmp_path) == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "x.json"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_the_old_file_and_folder(mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    write_atomic(disk / "x.json", "old")
    with whole_folder(disk / "stage") as work:
        (work / "a").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_atomic(disk / "x.json", "n" * 100_000)
    with pytest.raises(OSError, match="No space left"), whole_folder(disk / "stage") as work:
        (work / "a").write_text("n" * 100_000)
    assert (disk / "x.json").read_text() == "old"
    assert (disk / "stage" / "a").read_text() == "old"
    assert names(disk) == ["stage", "x.json"]


def test_a_read_only_folder_is_left_as_it_was(mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    write_atomic(disk / "x.json", "old")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        write_atomic(disk / "x.json", "new")
    with pytest.raises(OSError, match="Read-only"), whole_folder(disk / "stage"):
        pass
    assert names(disk) == ["x.json"] and (disk / "x.json").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_left_by_an_exception_stands_as_it_was(tmp_path, error):
    for _ in range(2):  # with and without one that stood before
        before = checksums(tmp_path)
        with pytest.raises(error), whole_folder(tmp_path / "deep" / "stage") as work:
            (work / "half").write_text("half")
            raise error
        assert checksums(tmp_path) == before
        with whole_folder(tmp_path / "deep" / "stage") as work:
            (work / "whole").write_text("whole")
    assert names(tmp_path / "deep") == ["stage"] and names(tmp_path / "deep" / "stage") == ["whole"]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    for name in ("old", "new"):
        with whole_folder(tmp_path / "stage") as work:
            (work / name).write_text(name)
    assert names(tmp_path) == ["stage"] and names(tmp_path / "stage") == ["new"]


KILLED = """
import os, signal
from pathlib import Path
from loratomy.core import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

files.os.{call} = die
with files.whole_folder(Path({target!r})) as work:
    (work / "a").write_text("new")
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_killed_writer_leaves_the_old_folder_and_what_is_swept(tmp_path, call):
    target = tmp_path / "stage"
    with whole_folder(target) as work:
        (work / "a").write_text("old")
    code = textwrap.dedent(KILLED).format(call=call, target=str(target))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checksums(target) == {"a": sha256(target / "a")}
    assert (target / "a").read_text() == "old"
    left = [n for n in names(tmp_path) if n != "stage"]
    assert left and all(n.startswith(TEMPORARY) for n in left)
    sweep_temporaries(tmp_path)
    assert names(tmp_path) == ["stage"]
