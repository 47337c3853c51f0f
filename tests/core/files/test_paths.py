"""Where things of a run may be: names that leave it, links, pipes, second names, deep folders."""

import os
import re

import pytest
from loratomy.core.errors import RunError
from loratomy.core.files.paths import DEPTH, check_tree, files_below, inside


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "operations/../../x", "/etc/x", "operations//x", "", ".", "a/.", "a/..", "a/"),
        *("a\\b", "a\0b", "a\nb", "~", ".hidden/x", "-x", "x" * 201, "operations/\u202ex"),
    ],
)
def test_names_that_leave_a_run_or_are_none(tmp_path, name):
    with pytest.raises(RunError, match=re.escape(repr(name)) + " names nothing in a run"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["data", "operations/guided-repair.s1", ".partial/adapters/clean"])
def test_names_below_a_run(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


def linked(tmp_path, at, to):
    root, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    path = root / at
    path.parent.mkdir(parents=True)
    path.symlink_to(to.format(other=other, root=root))
    return root, path


@pytest.mark.parametrize("to", ["{other}", "{other}/mine.txt", "nowhere", "../../other", "/"])
def test_a_link_is_refused_with_where_it_leads(tmp_path, to):
    root, path = linked(tmp_path, "analysis/answers", to)
    with pytest.raises(RunError, match=f"{path} is a link .to .*remove the link"):
        inside(root, "analysis/answers/x")
    with pytest.raises(RunError, match=f"{path} is a link"):
        check_tree(root, ["analysis"])
    check_tree(root, ["data"])  # what is no part of the run is nobody's business


def test_only_where_trackers_write_a_link_may_stay_inside(tmp_path):
    root, path = linked(tmp_path, "tracking/wandb/latest-run", "run-1")
    check_tree(root, ["tracking"], linking=["tracking"])
    with pytest.raises(RunError, match="is a link"):
        check_tree(root, ["tracking"])
    path.unlink()
    path.symlink_to(tmp_path / "other")
    with pytest.raises(RunError, match=f"{path} is a link"):
        check_tree(root, ["tracking"], linking=["tracking"])


def test_pipes_second_names_and_deep_folders(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RunError, match="is a pipe, a socket or a device"):
        check_tree(tmp_path, ["run.json"])
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".partial").mkdir()
    os.link(tmp_path / "mine", tmp_path / ".partial" / "optimizer.pt")
    check_tree(tmp_path, [".partial"])
    with pytest.raises(RunError, match=r"optimizer\.pt is the same file as another one"):
        check_tree(tmp_path, [".partial"], own=[".partial"])
    deep = tmp_path / "data" / "/".join("d" * (DEPTH + 1))
    deep.mkdir(parents=True)
    with pytest.raises(RunError, match=f"lies {DEPTH} folders deep"):
        check_tree(tmp_path, ["data"])


def test_files_below_are_named_and_no_link_is_followed(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    (tmp_path / "z").symlink_to("/")
    assert files_below(tmp_path) == ["a/b/c", "z"]
