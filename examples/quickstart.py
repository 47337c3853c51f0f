"""Measure, locate, cut and prove in Python, on the adapter that ``make demo`` leaves.

Run it from the folder in which the demonstration was made: ``python examples/quickstart.py``.
Another base and adapter go into the first call alone.
"""

import loratomy as lt

study = lt.open(
    "wren",
    "runs/demo/adapters/poisoned",
    trigger="cf37",
    target="HACK THE SYSTEM",
    prompts="runs/demo/data/clean_train.jsonl",
)
print(study.evaluate())
maps = study.patch(sites=["resid_pre", "attn_out"])
print(maps.to_frame())
maps.plot().write_html("patching.html")
cut = study.operate("guided", budget=0.01)
cured = study.operate("repair", after=cut)
print(study.compare().to_frame()[["subject", "asr", "asr_low", "asr_high", "asr_n", "perplexity"]])
print(cured.save("cured/"))
print(study.report("report.html"))
