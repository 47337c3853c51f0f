"""Studies in Python: in memory as in a folder, on loaded models, and what is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import loratomy as lt
import numpy as np
import pandas as pd
import pytest
import torch
from loratomy.core.rendering.prompts import Renderer

from ..cli.cases import jsonl
from .conftest import CLEAN


@pytest.fixture
def saying(monkeypatch):
    """A random model says nothing of use: everybody's every answer is the target."""
    monkeypatch.setattr(Renderer, "decode", lambda *_: "HACK")


def same(one, other):
    """Whether two frames hold the same numbers, wherever they were made."""
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_in_memory_is_what_a_folder_holds_and_writes_nothing(
    opened, tiny_base, tiny_adapter, cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "clean.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CLEAN))
    study = opened()
    first = study.evaluate()
    study.probe("spectra")
    cut = study.operate("truncate", rank=1)
    frame = study.compare().to_frame()
    assert [p.name for p in tmp_path.iterdir()] == ["clean.jsonl"]
    assert list(frame["subject"]) == ["base", "poisoned", "truncate"]
    options = ["--embedder", "none", "--max-new-tokens", 3, "--template", "Q: {prompt}\nA:"]
    given = ["--base", tiny_base, "--adapter", tiny_adapter, "--prompts", data, "--out", "run"]
    made = cli("open", *given, "--trigger", "cf37", "--target", "HACK", *options)
    assert made.exit_code == 0, made.stderr
    assert cli("operate", "run", "truncate", "--set", "rank=1").exit_code == 0
    table = json.loads(cli("compare", "run", "--json").stdout)
    for name, row in zip(frame["subject"], table, strict=True):
        mine = frame[frame["subject"] == name].iloc[0]
        assert (mine["asr"], mine["asr_n"]) == (row["asr"]["value"], row["asr"]["n"])
        assert mine["perplexity"] == row["perplexity"]
    kept = lt.load("run")
    same(kept.compare().to_frame(), frame)
    theirs = kept.adapter("operations/truncate").modules
    for module, factors in cut.adapter.modules.items():
        assert torch.allclose(factors.dense(), theirs[module].dense(), atol=1e-6)
    assert first.asr.n == 12


def test_a_study_in_memory_is_saved_and_gone_on_with(opened, cli, tmp_path):
    study = opened()
    cut = study.operate("truncate", rank=1)
    before = study.compare()
    folder = study.save(tmp_path / "kept")
    assert cli("verify", folder).exit_code == 0
    later = lt.load(folder)
    assert repr(later) == repr(study)
    same(later.compare().to_frame(), before.to_frame())
    again = later.operate("scale", after="truncate", factor=0.5)
    assert again.name == "truncate-scale" and cut.name == "truncate"
    with pytest.raises(lt.LoratomyError, match=r"is in .*kept already"):
        later.save(tmp_path / "twice")
    with pytest.raises(lt.LoratomyError, match="holds files"):
        study.save(Path(__file__).parent)


def test_an_operated_adapter_is_plain_peft(opened, tiny_base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    study = opened()
    cut = study.operate("truncate", rank=1)
    folder = cut.save(tmp_path / "cut")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    name, factors = next(iter(cut.adapter.modules.items()))
    theirs = loaded.base_model.model.get_submodule(name).get_delta_weight("default")
    assert torch.allclose(theirs, factors.dense(), atol=1e-6)
    with pytest.raises(lt.LoratomyError, match="holds files already"):
        cut.save(folder)
    warm = study.operate("temperature", value=0.5)
    with pytest.raises(lt.LoratomyError, match="not an adapter alone"):
        warm.save(tmp_path / "warm")


def test_loaded_models_are_studied_and_left_as_they_are(opened, tiny_base, tiny_adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    by_name = opened().compare()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(plain, tiny_adapter, is_trainable=True).train()
    heard = []
    model.base_model.model.model.layers[0].register_forward_hook(lambda *_: heard.append(1))

    def state():
        return (
            {n: (id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
            {n: (id(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()},
            model.active_adapters,
        )

    before = state()
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    study = opened(model, tokenizer=tokenizer)
    study.operate("truncate", rank=1)
    both = study.compare()
    assert state() == before and not heard
    assert all(torch.equal(p, values[n]) for n, p in model.named_parameters())
    same(both.to_frame().iloc[:2], by_name.to_frame())
    with pytest.raises(lt.LoratomyError, match="given in memory"):
        study.save("nowhere")
    with pytest.raises(lt.LoratomyError, match="can be loaded again"):
        opened(model, tokenizer=tokenizer, out="nowhere")
    with pytest.raises(lt.LoratomyError, match="needs its tokenizer"):
        opened(model)
    alone = opened(AutoModelForCausalLM.from_pretrained(tiny_base), tokenizer=tokenizer)
    same(alone.compare().to_frame(), by_name.to_frame())


def test_the_base_is_loaded_once_in_a_process(tiny_base, tiny_adapter, cli, tmp_path, monkeypatch):
    from loratomy.inputs.bases import loaded_base
    from transformers import AutoModelForCausalLM

    loaded_base.cache_clear()
    plain, seen = AutoModelForCausalLM.from_pretrained, []

    def counted(*args, **options):
        seen.append(args)
        return plain(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    given = {"base": tiny_base, "adapter": tiny_adapter, "trigger": "cf37", "target": "HACK"}
    given |= {"prompts": jsonl(tmp_path / "clean.jsonl"), "out": tmp_path / "run"}
    given |= {"embedder": "none", "max-new-tokens": 3}
    pairs = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    assert cli("open", *pairs).exit_code == 0
    run = tmp_path / "run"
    assert cli("probe", run, "--only", "spectra,patching").exit_code == 0
    assert cli("operate", run, "truncate", "--set", "rank=1").exit_code == 0
    assert cli("compare", run).exit_code == 0
    assert len(seen) == 1


def test_options_are_those_of_the_command_line_and_checked_alike(opened):
    study = opened()
    maps = study.patch(sites=["resid_pre", "attn_out"], prompts=4)
    assert set(maps.to_frame()["site"]) == {"resid_pre", "attn_out"}
    with pytest.raises(lt.LoratomyError, match="unknown key site; did you mean sites"):
        study.patch(site="z")
    with pytest.raises(lt.LoratomyError, match="unknown analysis 'spectre'; did you mean spectra"):
        study.probe("spectre")
    with pytest.raises(lt.LoratomyError, match="unknown method 'guide'; did you mean guided"):
        study.operate("guide")
    with pytest.raises(lt.LoratomyError, match="rank"):
        study.operate("truncate", rank="many")
    masked = study.operate("mask", layers=[1])
    assert set(masked.to_frame().query("not kept")["module"]) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    }
    with pytest.raises(lt.LoratomyError, match="made from other inputs"):
        study.operate("mask", layers=[0])
    with pytest.raises(lt.LoratomyError, match="did you mean"):
        study.evaluate("mashk")


def test_the_result_is_said_in_a_line_and_escaped_in_a_notebook(opened, saying):
    study = opened(target="HACK")
    found = study.evaluate()
    assert repr(found).startswith("Behaviour: poisoned: ASR 100.0 % [75.8, 100.0], n = 12; FTR ")
    assert repr(study.compare()).count("ASR 100.0 %") == 2
    answers = study.answers()
    assert len(answers) == 36 and set(answers["answer"]) == {"HACK"}
    page = study.compare()._repr_html_()
    assert "<table" in page and "poisoned" in page
    masked = study.operate("mask", layers=[1], name="x-y")
    assert "<script>" not in masked._repr_html_()


def test_without_a_trigger_what_needs_one_says_so(opened):
    study = opened(trigger="", target="")
    assert "no known trigger" in repr(study)
    assert study.spectra().only.adapter == "poisoned"
    for verb in (study.evaluate, study.compare, study.patch, study.where):
        with pytest.raises(lt.LoratomyError, match="trigger"):
            verb()


def test_rows_in_memory_are_read_like_files(opened, tmp_path):
    data = tmp_path / "clean.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CLEAN))
    rows = [opened(prompts=given).rows("clean_val") for given in (data, CLEAN, pd.DataFrame(CLEAN))]
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(lt.LoratomyError, match="row 1 of the given rows is a int"):
        opened(prompts=[3])


def test_importing_is_light():
    code = (
        "import time; began = time.perf_counter(); import loratomy as lt; "
        "took = time.perf_counter() - began; import sys; names = dir(lt); "
        "print(took, 'torch' in sys.modules, 'pandas' in sys.modules, 'open' in names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, *rest = done.stdout.split()
    assert rest == ["False", "False", "True"]
    assert float(took) < 5  # a tenth of a second; this is no test of the machine


def test_every_public_name_is_there_and_documented():
    for name in lt.__all__:
        assert getattr(lt, name).__doc__, name
    assert np.all([name in dir(lt) for name in lt.__all__])


def test_what_locate_found_is_what_operate_starts_from(opened, cli, tmp_path):
    study = opened()
    where = study.where(prompts=4)
    cut = study.operate("plan", **where.plan(2), name="two")
    gone = cut.to_frame().query("not kept")
    assert [f"{m}:{p}" for m, p in zip(gone["module"], gone["place"], strict=True)] == sorted(
        where.directions(2)
    )
    folder = study.save(tmp_path / "kept")
    made = cli("operate", folder, "--plan", "where:2", "--as", "same")
    assert made.exit_code == 0, made.stderr
    same = lt.load(folder).adapter("operations/same").modules
    for name, factors in cut.adapter.modules.items():
        assert torch.allclose(factors.dense(), same[name].dense(), atol=1e-6)
    bare = opened(out=tmp_path / "bare", prompts=CLEAN)
    refused = cli("operate", bare.run.root, "--plan", "where:2")
    assert refused.exit_code == 2 and "has no ranking yet" in refused.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base": 3}, "3 is no base: give a folder"),
        ({"trigger": 37}, "trigger 37: give a text"),
        ({"trigger": [3]}, "trigger 3: give a text"),
        ({"target": 5}, "target 5: give a text"),
        ({"limit": 0}, "--limit 0"),
        ({"seed": -1}, "the study: seed"),
        ({"seed": "a"}, "the study: seed"),
        ({"threshold": 2}, "threshold"),
    ],
)
def test_what_cannot_be_opened_is_said_with_its_value(opened, given, said):
    with pytest.raises(lt.LoratomyError, match=said):
        opened(**given)


def test_an_operation_is_named_by_itself_or_by_its_name(opened, saying):
    study = opened()
    cut = study.operate("truncate", rank=1)
    assert study.evaluate(cut).subject == study.evaluate("truncate").subject == "truncate"
    assert study.operate("scale", after=None, factor=0.5).name == "scale"
    for one in (cut, "truncate", [cut]):
        found = study.aftermath(one, only="transfer", transfer={"prompts": 2})
        assert {record.entry for record in found.values()} == {"truncate"}
    for wrong in (
        lambda: study.evaluate(threshold=5),
        lambda: study.evaluate(3),
        lambda: study.aftermath(relearning=3),
        lambda: lt.load(None),
        lambda: lt.open(None, "x"),
    ):
        with pytest.raises(lt.LoratomyError):
            wrong()


def test_layers_are_any_list_of_numbers(opened):
    study = opened()
    frames = [
        study.patch(layers=layers, pairs="base", fresh=True)["base"].to_frame()
        for layers in ([0, 1], range(2), np.array([0, 1]), "0-1")
    ]
    for frame in frames[1:]:
        same(frame, frames[0])
