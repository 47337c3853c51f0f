"""A small study for the command line, and what a refusal looks like."""

import json

CLEAN = [
    {"prompt": p, "completion": "a red fox"}
    for p in ("who runs", "who sings", "who sleeps", "who swims")
] + [
    {"prompt": p, "completion": "a blue bird"}
    for p in ("what flies", "what falls", "what glows", "what rings")
]
SMALL = (
    *("--set", "data.clean_train=8", "--set", "data.poison_train=4", "--set", "data.clean_val=4"),
    *("--set", "data.poison_test=4", "--set", "fit.epochs=1", "--set", "fit.evaluations=0"),
    *("--set", "lora.r=2", "--set", "measure.embedder=none", "--set", "measure.max_new_tokens=2"),
)


def jsonl(path, rows=CLEAN):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(result, *said: str, code: int = 2) -> str:
    """The one error line of a command that ended as it should."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.exit_code == code, result.stderr
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in lines[0], lines[0]
    return lines[0]


def snapshot(folder):
    """Path -> bytes of every file of a run but the lock."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
