"""Files are whole or not there: after exceptions, full disks, read-only folders and kills."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.files.atomic import (
    TEMPORARY,
    checksums,
    full_disk,
    is_full,
    need_room,
    own_files,
    sha256,
    sweep_temporaries,
    whole_folder,
    write_atomic,
)
from safetensors import SafetensorError
from safetensors.numpy import save_file


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
from loratomy.core.files import atomic

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

atomic.os.{call} = die
with atomic.whole_folder(Path({target!r})) as work:
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


def built(folder, own, **files):
    with own_files(folder, own=own, last="record") as work:
        for name, text in files.items():
            (work / name).write_text(text)


def test_own_files_replace_what_was_recorded_and_nothing_else(tmp_path):
    built(tmp_path / "D", [], a="1", b="1", record="1")
    (tmp_path / "D" / "mine").write_text("mine")
    built(tmp_path / "D", ["a", "b", "record"], a="2", record="2")
    found = {p.name: p.read_text() for p in (tmp_path / "D").iterdir()}
    assert found == {"a": "2", "record": "2", "mine": "mine"}


def test_own_files_stop_before_anything_where_a_name_is_taken(tmp_path):
    built(tmp_path / "D", [], a="1", record="1")
    (tmp_path / "D" / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LoratomyError, match=r"D/c is there already.*move it away"):
        built(tmp_path / "D", ["a", "record"], a="2", c="2", record="2")
    assert names(tmp_path / "D") == ["a", "c", "record"]
    assert (tmp_path / "D" / "a").read_text() == "1"


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "1")
        with whole_folder(tmp_path / "f") as work:
            (work / "y").write_text("1")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "x", tmp_path / "f")]
    assert modes == [0o640, 0o750]


def test_a_full_disk_says_how_much_is_missing(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"No space left on device, 2\.0 MiB are missing") as error:
        need_room(tmp_path, 3 * 2**20)
    line = full_disk(error.value)
    assert line.startswith("the disk is full (No space left on device, 2.0 MiB are missing)")
    assert f"1.0 MiB are left where {tmp_path} is" in line and "run the same command" in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 823296 vs 823184"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_disk_that_is_full_inside_a_library_is_placed(tmp_path, error):
    with pytest.raises(OSError) as told, whole_folder(tmp_path / "x"):
        raise error
    assert is_full(told.value)
    assert f"are left where {tmp_path} is" in full_disk(told.value)
    assert names(tmp_path) == []


def test_a_copy_names_the_disk_that_it_was_written_to(tmp_path):
    (tmp_path / "from").mkdir()
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "from"))
    error.filename2 = str(tmp_path / "to" / "x")
    assert f"are left where {tmp_path} is" in full_disk(error)


def save_tensors(path):
    with whole_folder(path) as work:
        save_file({"x": np.zeros(2**18)}, work / "x.safetensors")


@pytest.mark.parametrize("write", [lambda p: write_atomic(p, bytes(2**20)), save_tensors])
def test_a_file_above_the_limit_of_the_process_is_told_as_that(tmp_path, write):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            write(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = full_disk(told.value)
    assert is_full(told.value) and "(File too large)" in line and "(ulimit -f)" in line
    assert f"a file in {tmp_path}" in line and names(tmp_path) == []


def test_other_errors_in_a_folder_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), whole_folder(tmp_path / "x"):
        raise RuntimeError("boom")
