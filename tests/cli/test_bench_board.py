"""What a bench says: boards of 80 columns, lines for what is missing, where it comes from."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from loratomy.bench.entries import Failure
from loratomy.bench.failures import in_words, note_whole, read_notes, write_notes
from loratomy.bench.provenance import commit_of, note_piece, provenance, read_pieces
from loratomy.bench.table import held_out
from loratomy.cli.tables import bench as bench_board
from loratomy.cli.tables.bench import short
from loratomy.core.errors import RunError

from ..figures import bench_factory as make
from .test_bench_jobs import cell


@pytest.fixture
def shown(capsys, monkeypatch):
    """Lines on stdout of a table on a terminal of 80 columns."""

    def call(table):
        monkeypatch.setattr(bench_board.stdout, "_width", 80)
        bench_board.show(table)
        return capsys.readouterr().out.splitlines()

    return call


def test_boards_fit_80_columns_with_every_name_and_number_whole(shown):
    table = make.full()
    lines = shown(table)
    first = next(i for i, line in enumerate(lines) if line.startswith("held out"))
    boards = lines[:first]
    assert max(map(len, boards)) <= 80 and not any("…" in line or "nan" in line for line in boards)
    words = "\n".join(boards).split()
    for item in table.standings:
        name = item.entry.removeprefix(f"{item.control_for}-") if item.control_for else item.entry
        assert name in words, name
    group = [s for s in table.standings if s.comparison == 2 and s.entry == "guided"]
    at = next(i for i, line in enumerate(boards) if "comparison 2: 19 entries on 18" in line)
    lines_of = [i for i in range(at, first) if boards[i].split()[1:2] == ["guided"]]
    line, (item,) = lines_of[0], group
    # As many columns beside the names as fit, the others in a table below.
    assert [word for i in lines_of for word in boards[i].split()[2 * (i != line) :]] == [
        str(item.rank),
        "guided",
        f"{100 * item.asr[0]:.1f}",
        f"{100 * item.perplexity_change[0]:+.1f}",
        f"{item.kl[0]:.3f}",
        f"{100 * item.accuracy_change[0]:+.1f}",
        f"{item.seconds[0]:.1f}",
    ]
    assert boards[line + 1].split()[-4:-2] == [f"[{item.kl[1]:.3f}", f"{item.kl[2]:.3f}]"]
    ends = " ".join(f"[{100 * v[1]:.1f} {100 * v[2]:.1f}]" for v in [item.asr])
    assert boards[line + 1].strip().startswith(ends)
    assert {boards[line + k].split()[2] for k in (2, 4)} == {"random", "top"}


def test_what_has_no_interval_or_no_number_has_none_here(shown):
    rows = [make.row("a"), make.row("a", entry="lost", perplexity=np.nan, kind="trained")]
    rows += [make.row("a", entry="x" * 60, kind="cut")]
    rows[0] = replace(rows[0], reached=False)
    lines = shown(make.table(rows))
    assert "3 entries on 1 subject that all were run on" in lines[0]
    text = " ".join(" ".join(lines).split())
    assert "nan" not in text and "guided" in text
    assert "its goal met: 0 of 1" in text
    lost = next(line.split() for line in lines if "lost" in line)
    assert lost[3] == "–"
    assert "".join(line.strip() for line in lines if set(line.strip()) & {"x"}).count("x") >= 60


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.04, "", "0.0"),
        (-3.25, "+", "-3.2"),
        (999.94, "+", "+999.9"),
        (12345.6, "+", "+12346"),
        (4.2e9, "+", "+4e+09"),
        (np.nan, "+", "–"),
        (np.inf, "+", "+inf"),
    ],
)
def test_numbers_are_short(value, sign, text):
    assert short(value, sign=sign) == text


def test_equal_reasons_share_a_line():
    missing = [(f"c{i} s0", "crow", "not made yet") for i in range(8)]
    missing += [("c1 s0", "merge", "needs a clean adapter"), ("c9 s0", "", "not made yet")]
    assert in_words(missing, cells=10) == [
        "crow: not made yet in 8 of 10 cells: c0 s0, c1 s0, c2 s0, c3 s0, c4 s0, c5 s0 and 2 more",
        "merge: needs a clean adapter in 1 of 10 cells: c1 s0",
        "not made yet in 1 of 10 cells: c9 s0",
    ]
    assert in_words(missing[8:9], cells=1) == ["merge: needs a clean adapter: c1 s0"]


def test_notes_are_of_the_last_try_of_each_entry(tmp_path):
    here, lost = cell("runs/a"), Failure("it gave up", True)
    write_notes(tmp_path, here, {"npo": {"npo": lost}, "crow": {}})
    write_notes(tmp_path, here, {"crow": {"crow-plain": lost}})
    note_whole(tmp_path, here, "in use")
    other = Failure("in use", False)
    assert read_notes(tmp_path, here) == {
        "npo": {"npo": lost},
        "crow": {"crow-plain": lost},
        "": {"": other},
    }
    assert read_notes(tmp_path, cell("runs/a", 1)) == {}  # another seed has its own
    write_notes(tmp_path, here, {"npo": {}, "crow": {}, "": {}})
    assert not list((tmp_path / "left-out").iterdir())
    (tmp_path / "left-out/a-s0.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*a-s0\.json: .*; remove it and run"):
        read_notes(tmp_path, here)


def test_prompts_behind_a_row():
    assert (
        held_out([make.row()]) == "100 triggered, 200 untriggered and 100 clean prompts a subject"
    )
    some = [make.row(), make.row("b", n=40)]
    assert held_out(some) == (
        "40 to 100 triggered, 80 to 200 untriggered and 40 to 100 clean prompts a subject"
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_code_itself(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        command = ["git", "-C", tmp_path, *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    code, installed = tmp_path / "code.py", tmp_path / "venv.py"
    assert commit_of(code) == "none"
    git("init", "-q")
    code.write_text("1")
    installed.write_text("1")
    git("add", "code.py")
    git("commit", "-q", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert commit_of(code) == head
    assert commit_of(installed) == "none"  # in a checkout of something else
    code.write_text("2")
    assert commit_of(code) == f"{head} with changes"


def test_pieces_add_up_and_the_page_names_them(tmp_path):
    note_piece(tmp_path, "loratomy bench --jobs 1", {"seeds": 1})
    first = json.loads((tmp_path / "bench.json").read_text())
    note_piece(tmp_path, "loratomy bench --jobs 1", {"seeds": 1})
    assert json.loads((tmp_path / "bench.json").read_text()) == first
    note_piece(tmp_path, "loratomy bench --jobs 2", {"seeds": 3})
    pieces = read_pieces(tmp_path)
    assert [piece["seeds"] for piece in pieces] == [1, 3]
    rows = [make.row("b", 2), make.row("a", 0), make.row("a", 0, "c", control_for="guided")]
    made_by = [("machine", "one"), ("version of torch", "2"), ("machine", "two")]
    facts = {fact.name: fact.value for fact in provenance(pieces, rows, made_by)}
    assert facts["command"] == "loratomy bench --jobs 1 · loratomy bench --jobs 2"
    assert (facts["machine"], facts["version of torch"]) == ("one, two", "2")
    assert (facts["cells"], facts["seeds"], facts["entries"]) == ("b, a", "0, 2", "guided")
    assert facts["commit"] == pieces[0]["commit"] and facts["code"] == pieces[0]["code"]
    nothing = {fact.name: fact.value for fact in provenance([], rows, [])}
    assert nothing["command"] == nothing["commit"] == "not recorded"
    (tmp_path / "bench.json").write_text("[]")
    with pytest.raises(RunError, match=r"bench\.json: the file: .*; remove it and run the bench"):
        read_pieces(tmp_path)
