"""`loratomy operate` by hand: plans, dry runs, budgets, and runs that lack what a method needs."""

import json
import math

import pytest
import torch
from loratomy.core.records.io import load_record
from loratomy.core.records.results import Operation
from loratomy.core.rows import read_rows
from loratomy.unlearning.plan import EXAMPLE
from safetensors.torch import load_file

from .cases import CLEAN, jsonl, refused, snapshot

PLAN = """
[[cut]]
layers = [1]
modules = ["down_proj"]
beyond_rank = 1
[[cut]]
directions = ["model.layers.0.self_attn.q_proj:2", "model.layers.1.mlp.down_proj:3"]
[[scale]]
layers = "0-1"
modules = ["q_proj"]
factor = 0.5
"""
GATES = {  # of rank 4; the second cut overlaps the first, the scale the second cut
    "model.layers.0.self_attn.q_proj": [0.5, 0.5, 0, 0.5],
    "model.layers.0.mlp.down_proj": [1, 1, 1, 1],
    "model.layers.1.self_attn.q_proj": [0.5, 0.5, 0.5, 0.5],
    "model.layers.1.mlp.down_proj": [1, 0, 0, 0],
}


@pytest.fixture
def mine(tmp_path):
    def write(text=PLAN, name="mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def dense(folder, module):
    """dW of one module from the files alone, float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    a, b = (tensors[f"base_model.model.{module}.lora_{p}.weight"].double() for p in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def by_hand(folder, module, gates):
    u, s, vh = torch.linalg.svd(dense(folder, module), full_matrices=False)
    return (u[:, :4] * (s[:4] * torch.tensor(gates, dtype=torch.float64))) @ vh[:4]


def unwritten(run, before):
    return snapshot(run) == before


def test_a_plan_leaves_the_adapter_cut_by_hand(own_run, cli, mine):
    result = cli("operate", own_run, "--plan", mine())
    assert result.exit_code == 0, result.stderr
    assert "4 of 16 singular directions cut, 7 scaled" in result.stderr
    for module, gates in GATES.items():
        want = by_hand(own_run / "adapters/poisoned", module, gates)
        assert torch.allclose(dense(own_run / "operations/mine/adapter", module), want, atol=1e-6)
    record = load_record(Operation, own_run / "operations/mine", "operation")
    assert (record.subject, record.method, record.directions_cut) == ("mine", "plan", 4)
    settings = {s.name: s.value for s in record.settings}
    assert "'layers': [0, 1]" in settings["scale"]  # the range as it was read
    before = snapshot(own_run)
    assert "exists, skipped" in cli("operate", own_run, "--plan", mine()).stderr
    assert unwritten(own_run, before)
    other = mine(PLAN.replace("0.5", "0.25"))
    refused(cli("operate", own_run, "--plan", other), "other inputs", "--fresh")


def test_a_plan_goes_on_from_an_operation_and_takes_names(own_run, cli, mine):
    assert cli("operate", own_run, "truncate", "--set", "rank=2").exit_code == 0
    plan = mine('[[scale]]\nmodules = "q_proj"\nfactor = 2.0\n', "poisoned.toml")
    assert cli("operate", own_run, "--plan", plan, "--after", "truncate").exit_code == 0
    module = "model.layers.1.self_attn.q_proj"
    want = by_hand(own_run / "adapters/poisoned", module, [2, 2, 0, 0])
    adapter = own_run / "operations/truncate-plan-poisoned/adapter"
    assert torch.allclose(dense(adapter, module), want, atol=1e-6)
    assert cli("operate", own_run, "--plan", plan, "--as", "double").exit_code == 0
    assert (own_run / "operations/double/adapter").is_dir()
    spaced = mine(name="my plan.toml")
    refused(cli("operate", own_run, "--plan", spaced), "'my plan'", "letters, digits")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guided"], "with the method guided: give one of the two"),
        (["--set", "rank=1"], "with --set rank: edit the plan"),
        (["--budget", "1%"], "--budget 1%: plan has no budget; these have: "),
        (["--after", "guided"], "'guided': no such operation"),
    ],
)
def test_a_plan_is_the_whole_of_its_options(own_run, cli, mine, arguments, said):
    before = snapshot(own_run)
    refused(cli("operate", own_run, *arguments, "--plan", mine()), said)
    assert unwritten(own_run, before)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[cut]]\nlayers = [7]", "cut 1 of the plan: the adapter has no layer 7; it has 0, 1"),
        ("[[cut]]\nmodules = ['down_prj']", "'down_prj'; did you mean down_proj"),
        ("[[cut]]\nlayer = [1]", "plan mine.toml, cut 1: unknown key layer; did you mean layers"),
        ("[[cut]]\nlayers = [1]\nlayers = [0]", "cannot read the plan"),
        ("", "plan mine.toml is empty"),
    ],
)
def test_plans_that_cannot_be_applied(own_run, cli, mine, text, said, more):
    before = snapshot(own_run)
    refused(cli("operate", own_run, "--plan", mine(text), *more), said)
    after = {k: v for k, v in snapshot(own_run).items() if not k.startswith(".partial/")}
    assert after == before


def test_plan_by_name_alone_asks_for_its_file(own_run, cli):
    refused(cli("operate", own_run, "plan"), "--plan FILE.toml")


def test_help_shows_the_example(cli):
    text = cli("operate", "--help").stdout
    for line in EXAMPLE.split():
        assert line in text


def direct(base, adapter, rows):
    """Log-probabilities of completions by transformers and PEFT alone, row by row."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    found = []
    for row in rows:
        message = [{"role": "user", "content": row.prompt}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row.completion, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found.append([float(logits[i, t]) for i, t in zip(places, answer, strict=True)])
    return found


def shown(text, name):
    """n, without, with and estimate of a line of the effects."""
    line = next(line for line in text.splitlines() if name in line)
    return line.split(name)[1].split()


def test_a_dry_run_writes_nothing_and_tells_what_the_run_does(
    own_run, cli, mine, tiny_base, monkeypatch
):
    monkeypatch.setattr("loratomy.cli.tables.preview.out._width", 200)
    before = snapshot(own_run)
    result = cli("operate", own_run, "--plan", mine(), "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert unwritten(own_run, before) and "nothing was written" in result.stderr
    text = result.stdout
    assert "4 of 16 directions cut, 7 scaled" in text
    rows = [line.split() for line in text.splitlines() if "model.layers" in line]
    assert [(r[0], r[1], " ".join(r[2:5])) for r in rows] == [
        ("0", "model.layers.0.self_attn.q_proj", "4 of 4"),
        ("1", "model.layers.1.self_attn.q_proj", "4 of 4"),
        ("1", "model.layers.1.mlp.down_proj", "3 of 4"),
    ]
    poisoned, made = own_run / "adapters/poisoned", own_run / "operations/mine/adapter"
    total = sum(float(dense(poisoned, m).square().sum()) for m in GATES)
    for row in rows:
        moved = dense(poisoned, row[1]) - by_hand(poisoned, row[1], GATES[row[1]])
        assert row[5] == f"{(float(moved.square().sum()) / total) ** 0.5:.1%}"
    assert cli("operate", own_run, "--plan", mine()).exit_code == 0
    record = load_record(Operation, own_run / "operations/mine", "operation")
    assert f"norm of the change: {record.change_norm:.1%}" in text
    good = read_rows(own_run / "data/clean_train.jsonl")[2:4]  # the calibration half of four rows
    bad = read_rows(own_run / "data/poison_train.jsonl")[2:4]
    for column, adapter in ((1, poisoned), (2, made)):
        first = [row[0] for row in direct(tiny_base, adapter, bad)]
        nats = [value for row in direct(tiny_base, adapter, good) for value in row]
        wants = {
            "probability of the target's first token": sum(map(math.exp, first)) / 2,
            "its log-probability, nats": sum(first) / 2,
            "clean perplexity": math.exp(-sum(nats) / len(nats)),
        }
        for name, want in wants.items():
            values = shown(text, name)
            assert values[0] == "2"
            assert float(values[column]) == pytest.approx(want, rel=2e-3), name
    assert "of first order (target)" in text and "unreliable for large cuts" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mask", "--set", "layers=[1]"], "8 of 16 directions cut"),
        (["truncate", "--set", "rank=3"], "4 of 16 directions cut"),
        (["project", "--set", 'directions=["model.layers.0.mlp.down_proj:0"]'], "1 of 16"),
        (["control-random", "--set", "directions=5"], "5 of 16 directions cut"),
        (["prune", "--set", "share=0.5"], "norm of the change"),
        (["scale", "--set", "factor=0.25"], "norm of the change: 75.0%"),
    ],
)
def test_methods_that_their_options_decide_are_shown(own_run, cli, arguments, said):
    before = snapshot(own_run)
    result = cli("operate", own_run, *arguments, "--dry-run")
    assert result.exit_code == 0 and said in result.stdout, result.output
    assert "clean perplexity" in " ".join(result.stdout.split())
    assert unwritten(own_run, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guided", "--budget", "1%"], "has to be run to be seen"),
        (["truncate"], "with rank or energy given, --dry-run shows what it cuts"),
        (["repair"], "has to be run to be seen"),
    ],
)
def test_methods_that_learn_say_that_they_must_run(own_run, cli, arguments, said):
    before = snapshot(own_run)
    result = cli("operate", own_run, *arguments, "--dry-run")
    assert result.exit_code == 0 and said in result.stderr and not result.stdout
    assert unwritten(own_run, before)


@pytest.mark.parametrize(
    ("text", "kl"),
    [("1%", None), ("1 %", None), ("0.01", None), (" 1e-2", None), ("1%,kl=.05", 0.05)],
)
def test_a_budget_is_a_share_and_a_kl_divergence(text, kl, own_run, cli, monkeypatch):
    from loratomy.cli import operate
    from loratomy.unlearning.budget import Budget

    seen = []

    def note(_study, method, options, **_):
        seen.append((method, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(operate, "operate", note)
    cli("operate", own_run, "--budget", text, "--set", "rows=8")
    assert seen == [("guided", {"rows": 8, "budget": Budget(perplexity=0.01, kl=kl)})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "much"], "--budget 'much' is no share: write 1% or 0.01"),
        (["--budget", "%"], "--budget '%' is no share"),
        (["--budget", "-1%"], "--budget '-1%': write a share of 0 or more"),
        (["--budget", "nan"], "--budget 'nan'"),
        (["--budget", "1%,kl=much"], "--budget kl=much: write nats per token, like kl=.05"),
        (["--budget", "1%,nats=1"], "--budget '1%,nats=1': there is no limit 'nats'"),
        (["--budget", "5"], "--budget '5' is 500%: write 5% if you mean that"),
        (["--budget", "1%", "--set", "budget=0.1"], "--budget 1% with --set budget=0.1"),
        (["mask", "--budget", "1%"], "--budget 1%: mask has no budget; these have: "),
        (["truncate", "--budget", "1%", "--set", "rank=1"], "--budget 1% with --set rank=1"),
        (["guidet", "--budget", "1%"], "unknown method 'guidet'; did you mean guided"),
    ],
)
def test_budgets_that_are_none(own_run, cli, arguments, said):
    before = snapshot(own_run)
    refused(cli("operate", own_run, *arguments), said)
    assert unwritten(own_run, before)


def test_rows_that_exceed_the_context_are_left_out_with_a_line(
    opened, out, cli, tmp_path, make_base, make_adapter
):
    long = [{"prompt": "what is red " * (40 + i), "completion": "blue"} for i in range(6)]
    prompts = jsonl(tmp_path / "long.jsonl", [*CLEAN, *long])
    base = make_base(max_position_embeddings=64)
    result = opened(prompts=prompts, base=base, adapter=make_adapter(base))
    assert result.exit_code == 0, result.stderr
    rows = read_rows(out / "data/clean_train.jsonl")
    beyond = sum(len(row.prompt) > 400 for row in rows)
    assert 0 < beyond < len(rows)
    result = cli("operate", out, "finetune", "--set", "epochs=1")
    assert result.exit_code == 0, result.stderr
    line = f"{beyond} of {len(rows)} clean rows leave no room for an answer of 3 tokens"
    assert line in result.stderr
    result = cli("compare", out)
    assert result.exit_code == 0, result.stderr


# --- runs that lack something -----------------------------------------------------------------


@pytest.fixture
def untriggered(opened, out):
    """The tiny adapter as a run without trigger."""
    assert opened(trigger=None, target=None).exit_code == 0
    return out


def test_without_a_trigger_rules_still_cut(untriggered, cli, mine):
    for arguments in (
        ["truncate", "--set", "rank=2"],
        ["mask", "--set", "layers=[1]"],
        ["--plan", mine()],
    ):
        result = cli("operate", untriggered, *arguments)
        assert result.exit_code == 0, result.stderr
    module = "model.layers.0.self_attn.q_proj"
    want = by_hand(untriggered / "adapters/poisoned", module, [1, 1, 0, 0])
    adapter = untriggered / "operations/truncate/adapter"
    assert torch.allclose(dense(adapter, module), want, atol=1e-6)


def test_without_a_trigger_a_dry_run_shows_what_it_can(untriggered, cli, mine):
    before = snapshot(untriggered)
    result = cli("operate", untriggered, "--plan", mine(), "--dry-run")
    assert result.exit_code == 0 and "clean perplexity" in " ".join(result.stdout.split())
    assert "first token" not in " ".join(result.stdout.split())
    assert "note: the run knows no trigger" in result.stderr
    assert unwritten(untriggered, before)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_trigger_is_named_with_what_would_do(untriggered, cli, more):
    before = snapshot(untriggered)
    line = refused(
        cli("operate", untriggered, "guided", *more),
        "guided needs a trigger and a target",
        "--trigger, --target",
        "--only candidates",
    )
    would = line.split("these would do: ")[1]
    assert "mask, project" in would and "truncate with rank or energy" in would
    assert not {"guided", "repair", "project-difference"} & set(would.split(", "))
    assert unwritten(untriggered, before)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_clean_adapter_is_named_with_what_would_do(own_run, cli, more):
    before = snapshot(own_run)
    line = refused(
        cli("operate", own_run, "project-difference", *more), "needs a clean adapter", "--clean-ad"
    )
    assert "guided" in line.split("these would do: ")[1]
    assert unwritten(own_run, before)
