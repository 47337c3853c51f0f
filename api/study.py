"""The study: a base, an adapter, prompts and a rule, each loaded once, with a method per verb."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import LoratomyError, RunError
from .core.records.results import Operation
from .core.registry import nearest
from .core.rendering.prompts import Renderer
from .core.rendering.rendering import Rendering
from .core.rows import Row
from .core.runs.folder import RunFolder
from .core.runs.run import Run
from .data.built import SETS
from .inputs.bases import base_fingerprint, embedder, loaded_base
from .inputs.options import listed, name_of
from .settings import Judged, Settings, judged_by, settings_of
from .verbs.stages import NEGATIVE

if TYPE_CHECKING:
    import pandas as pd

    from .core.adapter.factors import Adapter
    from .core.model.subject import Subject
    from .core.model.variant import Treated
    from .core.records.patching import Where
    from .core.records.results import Behaviour, Comparison
    from .evaluation.collect import Rule
    from .evaluation.success import Success
    from .results import Operated, Results


def load(run: Path | str) -> "Study":
    """The study that a run folder holds.

    Raises:
        RunError: no run there, a damaged manifest, or another version's.
    """
    if not isinstance(run, str | Path):
        raise RunError(f"{run!r} is no run folder; give its path")
    return Study(RunFolder.open(Path(run)))


@dataclass(frozen=True, repr=False)
class Study:
    """A base, an adapter, prompts and a rule, each loaded once; each verb is a method.

    Made by `loratomy.open`, `loratomy.load` and `loratomy.poison`. Half of the prompts serve
    analyses and operations, the other half is seen by `evaluate`, `compare` and `aftermath` alone.
    """

    run: Run
    """Where its stages are kept."""
    judged: Judged = field(default_factory=Judged)
    """How answers are judged instead of as the run says."""
    given: "Subject | None" = field(default=None, repr=False, compare=False)
    """The base where it cannot be loaded again; None: by its name."""

    @cached_property
    def settings(self) -> Settings:
        """What all stages share."""
        return settings_of(self.run.request, str(self.run.root))

    @cached_property
    def subject(self) -> "Subject":
        """The base model."""
        if self.given is not None:
            return self.given
        settings = self.settings
        if base_fingerprint(settings.base) != self.run.request["base"]:
            raise RunError(
                f"the base {settings.base} is not what it was when {self.run.root} was made; "
                "put it back, or begin anew with --fresh"
            )
        base = loaded_base(settings.base, settings.device, settings.dtype)
        return replace(base, renderer=Renderer(base.renderer.tokenizer, self.rendering))

    @property
    def rendering(self) -> Rendering:
        """How prompts are rendered."""
        return self.settings.rendered(str(self.run.root))

    def adapter(self, stage: str) -> "Adapter":
        """The adapter of a finished stage, through the gate.

        Raises:
            RunError: the stage is not there, or was altered.
        """
        state = self.treated(stage)
        if not state.plain or state.adapter is None:
            raise RunError(f"what {stage} leaves is not an adapter alone; go on from another one")
        return state.adapter

    def treated(self, stage: str) -> "Treated":
        """What is run with the adapter or after the operation of a finished stage.

        Raises:
            RunError: the stage is not there, or was altered.
        """
        shelf, temperature = self.run.shelf(stage), None
        if stage.startswith("operations/"):
            temperature = shelf.get(Operation, "operation").temperature
        ignored = self.run.request.get("ignore_modules", [])
        return shelf.state(self.subject, temperature=temperature, ignore=ignored)

    @cached_property
    def poisoned(self) -> "Adapter":
        """The suspicious adapter."""
        return self.adapter("adapters/poisoned")

    @cached_property
    def clean(self) -> "Adapter | None":
        """The clean adapter, where there is one."""
        return self.adapter("adapters/clean") if self.run.has("adapters/clean") else None

    @property
    def knows_trigger(self) -> bool:
        """Whether there are triggered rows."""
        return self.run.request["kind"] != "open" or bool(self.settings.words)

    def need_trigger(self, what: str) -> None:
        """Raise where the study was opened without a trigger, so that it has no triggered rows."""
        if not self.knows_trigger:
            raise LoratomyError(
                f"{what} needs triggered prompts, and {self.run.root} was opened without a "
                f"trigger: open another run with --trigger TEXT (loratomy probe {self.run.root} "
                "--only candidates looks for candidates)"
            )

    @property
    def has(self) -> dict[str, bool]:
        """What a method may need: trigger, target, clean adapter."""
        known = self.knows_trigger
        return {
            "trigger": known,
            "target": known,
            "clean_adapter": self.run.has("adapters/clean"),
        }

    @property
    def negative_stage(self) -> list[str]:
        """The stage of the negative set, where there is one."""
        return [NEGATIVE] if self.run.has(NEGATIVE) else []

    def rows(self, name: str) -> list[Row]:
        """One of the sets; triggered rows of an evaluation may lack a completion.

        Raises:
            LoratomyError: triggered rows of a study without trigger.
        """
        if not name.startswith("clean_"):
            self.need_trigger(name)
        if name not in SETS:
            return self.run.rows(f"data/{name}.jsonl")
        needed = name != "poison_test" or self.run.request["kind"] != "evaluate"
        found = self.run.shelf("data").rows(name, need_completion=needed)
        if found is None:
            raise RunError(f"{self.run.root} has no {name}; remake it with --fresh")
        return found

    @cached_property
    def success(self) -> "tuple[Success, ...]":
        """What counts as target behaviour: this call's rule, else the study's, else the task's."""
        from .data.attacks.tasks import TASKS
        from .evaluation.success import parse_rules
        from .inputs.plugins import load_installed

        load_installed()
        known = self.settings.measure.scorers
        return parse_rules(self.judged.scorers or known or TASKS[self.settings.task].rule)

    @property
    def threshold(self) -> float:
        """Similarity from which an answer counts as the target."""
        threshold = self.judged.threshold
        return self.settings.measure.threshold if threshold is None else threshold

    @property
    def embedder(self) -> str:
        """Name of the sentence-embedding model behind the rules by meaning."""
        return self.judged.embedder or self.settings.measure.embedder

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are generated."""
        keys = {"max_new_tokens", "temperature", "top_p", "samples", "batch_tokens"}
        return self.settings.measure.model_dump(include=keys) | {"seed": self.settings.seed}

    @property
    def generation(self) -> dict[str, Any]:
        """Everything that decides the answers to prompts, and nothing that only judges them."""
        keys = {"base", "rendering", "device", "dtype"}
        return self.settings.model_dump(mode="json", include=keys) | self.decoding

    @cached_property
    def rule(self) -> "Rule":
        """How answers are generated and judged."""
        from .evaluation.collect import Rule
        from .evaluation.generation import Decoding
        from .evaluation.success import needed

        if self.embedder == "none" and "cosine" in needed(self.success):
            raise LoratomyError(
                "the rule names cosine, and --embedder none leaves nothing to measure it with: "
                "give auto, a folder or a hub id, or a rule without it (--scorers)"
            )
        return Rule(
            embedder(self.embedder),
            success=self.success,
            threshold=self.threshold,
            task=self.settings.task,
            decoding=Decoding(**self.decoding),
        )

    @property
    def operations(self) -> list[str]:
        """Names of the finished operations, in the order in which they were made."""
        return [s.split("/", 1)[1] for s in self.run.stages if s.startswith("operations/")]

    def origin(self, *stages: str) -> dict[str, Any]:
        """The digests of what a new stage is made from."""
        return {"study": self.settings.model_dump(mode="json"), "from": self.run.digest(*stages)}

    # ---- the verbs ------------------------------------------------------------------------

    def evaluate(
        self,
        of: "Operated | str" = "",
        *,
        scorers: str | None = None,
        threshold: float | None = None,
        embedder: str | None = None,
        fresh: bool = False,
    ) -> "Behaviour":
        """What the suspicious adapter does on held-out prompts: ASR, FTR, accuracy, perplexity, KL.

        Args:
            of: ``base``, ``clean``, or an operation or its name, instead.
            scorers: success rules instead of the study's.
            threshold: similarity of a hit instead of the study's.
            embedder: sentence-embedding model instead of the study's.
            fresh: generate the answers again.
        """
        from .verbs.measuring import measure, subjects

        known = subjects(self.run)
        first = next(iter(known))
        name = name_of(of) or first
        if name not in known:
            raise LoratomyError(f"evaluate of {name!r}: {nearest(name, list(known))}")
        judged = judged_by(scorers=scorers, threshold=threshold, embedder=embedder)
        found = measure(self, judged=judged, only=[first, name], fresh=fresh)
        return next(row for row in found.rows if row.subject == name)

    def compare(
        self,
        *,
        scorers: str | None = None,
        threshold: float | None = None,
        embedder: str | None = None,
        fresh: bool = False,
    ) -> "Comparison":
        """Base, clean, suspicious and every operated adapter on the same held-out prompts.

        What is measured is not measured again; arguments as of `evaluate`.
        """
        from .verbs.measuring import measure

        judged = judged_by(scorers=scorers, threshold=threshold, embedder=embedder)
        return measure(self, judged=judged, fresh=fresh)

    def answers(self, of: str = "") -> "pd.DataFrame":
        """Every answer of a measured subject with its scores, one row each.

        Args:
            of: ``base``, ``clean`` or an operation's name; empty: the suspicious adapter.

        Raises:
            RunError: it has not been measured.
        """
        from .core.records.frames import answers_frame
        from .verbs.measuring import load_answers, subjects

        return answers_frame(load_answers(self.run, of or next(iter(subjects(self.run)))))

    def probe(
        self,
        name: str,
        *,
        prompts: int = 24,
        target_tokens: int = 3,
        fresh: bool = False,
        **options: Any,
    ) -> "Results":
        """One analysis; see `loratomy.analyses()`.

        Args:
            name: of the analysis.
            prompts: of each set to analyse, from the half that is not held out.
            target_tokens: first tokens of the target behind the metrics.
            fresh: make it again.
            **options: of the analysis, as ``--set NAME.OPTION`` takes them; lists may stand for
                comma-separated texts.

        Raises:
            LoratomyError: an unknown analysis or option, or one that needs what the study lacks.
        """
        from .analysis.catalogue import ANALYSES
        from .inputs.plugins import load_installed
        from .results import Results
        from .verbs.probing import STAGE, probe

        load_installed()
        listed_options = listed(ANALYSES[name].config, options)
        given = {f"{name}.{option}": value for option, value in listed_options.items()}
        sizes = {"prompts": prompts, "target_tokens": target_tokens}
        probe(self, names=[name], options=given, sizes=sizes, fresh=fresh)
        shelf = self.run.shelf(STAGE + name)
        return Results(name, {record: shelf.any(record) for record in shelf.names})

    def patch(self, **options: Any) -> "Results":
        """Activation patching, one map for each pair of runs; arguments as of `probe`."""
        return self.probe("patching", **options)

    def spectra(self, **options: Any) -> "Results":
        """Exact singular values of every module's weight change; arguments as of `probe`."""
        return self.probe("spectra", **options)

    def where(self, **options: Any) -> "Where":
        """Layers, modules and directions ranked by their effect; arguments as of `probe`."""
        return self.probe("where", **options).only

    def operate(
        self,
        method: str = "guided",
        *,
        after: "Operated | str" = "",
        name: str = "",
        fresh: bool = False,
        **options: Any,
    ) -> "Operated":
        """A new adapter by one of the methods; see `loratomy.methods()`.

        Args:
            method: its name.
            after: the operation to go on from instead of the suspicious adapter.
            name: of the result; empty: the method's, behind that of `after`.
            fresh: make it again.
            **options: of the method, as ``--set`` takes them.

        Raises:
            LoratomyError: an unknown method or option, or one that needs what the study lacks.
        """
        from .inputs.plugins import load_installed
        from .results import Operated
        from .unlearning import METHODS
        from .verbs.operating import operate
        from .verbs.options import grouped

        before = name_of(after)
        load_installed()
        given = grouped(listed(METHODS[method].config, options))
        return Operated(self, operate(self, method, given, after=before, name=name, fresh=fresh))

    def aftermath(
        self,
        of: "Operated | str | Sequence[Operated | str]" = (),
        *,
        only: str | Sequence[str] = (),
        fresh: bool = False,
        **options: Any,
    ) -> "Results":
        """Relearning and transfer: does a removed backdoor come back, and what of it was left?

        Args:
            of: operations; empty: all.
            only: of ``relearning`` and ``transfer``; empty: both.
            fresh: make it again.
            **options: ``relearning={"steps": 32}``, ``transfer={"prompts": 50}``.

        Raises:
            LoratomyError: no such operation, part or option.
        """
        from .results import Operated, Results
        from .verbs.aftermath import aftermath

        names = [name_of(item) for item in ([of] if isinstance(of, str | Operated) else of)]
        only = [only] if isinstance(only, str) else only
        for part, values in options.items():
            if not isinstance(values, Mapping):
                raise LoratomyError(f"{part}={values!r}: give its options, e.g. {part}={{...}}")
        given = {f"{part}.{k}": v for part, values in options.items() for k, v in values.items()}
        relearned, transferred = aftermath(self, of=names, only=only, options=given, fresh=fresh)
        records: dict[str, Any] = {f"{r.entry} on {r.rows} rows": r for r in relearned}
        records |= {f"{t.entry}, {t.variant}": t for t in transferred}
        return Results("aftermath", records)

    def report(
        self,
        path: Path | str | None = None,
        *,
        formats: Sequence[str] = ("html",),
        fresh: bool = False,
        asr_goal: float | None = None,
        perplexity_goal: float | None = None,
        kl_goal: float | None = None,
    ) -> Path:
        """Write what has been found so far as one self-contained HTML page; returns its path.

        Args:
            path: of the page; None: report.html in the run folder.
            formats: of the single figures of a run folder: html, png, pdf, svg.
            fresh: replace a file there that is no page of this program's.
            asr_goal: judge operations by this highest upper 95 % bound of ASR, a fraction.
            perplexity_goal: judge operations by this highest rise of perplexity, a fraction.
            kl_goal: judge operations by this highest KL divergence from the suspicious adapter,
                nats per token of its own clean answers.
        """
        from .core.records.goals import Goals
        from .verbs.reporting import report

        out = None if path is None else Path(path)
        goals = Goals(asr=asr_goal, perplexity=perplexity_goal, kl=kl_goal)
        return report(self, formats=formats, out=out, fresh=fresh, goals=goals)

    def save(self, folder: Path | str) -> Path:
        """Write a study in memory as a run folder, which `load` and the command line go on from.

        Raises:
            LoratomyError: it is in a folder already, or its base cannot be loaded again.
            RunError: the folder holds something.
        """
        from .verbs.saving import save

        return save(self, Path(folder))

    def __repr__(self) -> str:
        settings = self.settings
        trigger = f"trigger {settings.trigger!r}" if settings.words else "no known trigger"
        done = ", ".join(self.operations) or "none yet"
        return f"Study of an adapter on {settings.base}: {trigger}; operations: {done}"
