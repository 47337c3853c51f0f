from .across import Across as Across
from .across import AcrossRun as AcrossRun
from .across import Agreement as Agreement
from .across import Landmark as Landmark
from .across import Profile as Profile
from .activations import Consistency as Consistency
from .activations import Probes as Probes
from .activations import TriggerAttention as TriggerAttention
from .answers import read_answers as read_answers
from .answers import write_answers as write_answers
from .base import Record as Record
from .base import draw_with as draw_with
from .bench import BenchRow as BenchRow
from .bench import BenchTable as BenchTable
from .bench import Goal as Goal
from .bench import Relearning as Relearning
from .bench import Standing as Standing
from .bench import Transfer as Transfer
from .bench_table import read_bench_table as read_bench_table
from .bench_table import write_bench_table as write_bench_table
from .effectiveness import Effectiveness as Effectiveness
from .effectiveness import Intervention as Intervention
from .frames import rows as rows
from .io import SCHEMA as SCHEMA
from .io import dumps as dumps
from .io import jsonable as jsonable
from .io import load_any as load_any
from .io import load_record as load_record
from .io import save_record as save_record
from .lens import Lens as Lens
from .lens import LogitLens as LogitLens
from .lens import Preference as Preference
from .neurons import Association as Association
from .neurons import NeuronActivity as NeuronActivity
from .neurons import NeuronChange as NeuronChange
from .neurons import Unlearning as Unlearning
from .patching import PatchingMap as PatchingMap
from .patching import Screening as Screening
from .patching import ScreeningAgreement as ScreeningAgreement
from .patching import Verdict as Verdict
from .patching import Vote as Vote
from .patching import Where as Where
from .planted import Planted as Planted
from .planted import Shortcoming as Shortcoming
from .rendering import RenderingChoice as RenderingChoice
from .rendering import Tried as Tried
from .results import Answer as Answer
from .results import Behaviour as Behaviour
from .results import Comparison as Comparison
from .results import Curves as Curves
from .results import CutPath as CutPath
from .results import FitUsed as FitUsed
from .results import Operation as Operation
from .results import OwnAnswers as OwnAnswers
from .results import Paired as Paired
from .results import Protocol as Protocol
from .results import Provenance as Provenance
from .results import Rate as Rate
from .results import RuleRates as RuleRates
from .results import RunRecords as RunRecords
from .results import Setting as Setting
from .results import Stability as Stability
from .spectra import Difference as Difference
from .spectra import Intruders as Intruders
from .spectra import LayerSpectra as LayerSpectra
from .spectra import Matching as Matching
from .spectra import Spectra as Spectra
from .triggers import Candidate as Candidate
from .triggers import Candidates as Candidates
from .vector import HeadVector as HeadVector
from .vector import Steered as Steered

__all__ = [
    "SCHEMA",
    "Across",
    "AcrossRun",
    "Agreement",
    "Answer",
    "Association",
    "Behaviour",
    "BenchRow",
    "BenchTable",
    "Candidate",
    "Candidates",
    "Comparison",
    "Consistency",
    "Curves",
    "CutPath",
    "Difference",
    "Effectiveness",
    "FitUsed",
    "Goal",
    "HeadVector",
    "Intervention",
    "Intruders",
    "Landmark",
    "LayerSpectra",
    "Lens",
    "LogitLens",
    "Matching",
    "NeuronActivity",
    "NeuronChange",
    "Operation",
    "OwnAnswers",
    "Paired",
    "PatchingMap",
    "Planted",
    "Preference",
    "Probes",
    "Profile",
    "Protocol",
    "Provenance",
    "Rate",
    "Record",
    "Relearning",
    "RenderingChoice",
    "RuleRates",
    "RunRecords",
    "Screening",
    "ScreeningAgreement",
    "Setting",
    "Shortcoming",
    "Spectra",
    "Stability",
    "Standing",
    "Steered",
    "Transfer",
    "Tried",
    "TriggerAttention",
    "Unlearning",
    "Verdict",
    "Vote",
    "Where",
    "draw_with",
    "dumps",
    "jsonable",
    "load_any",
    "load_record",
    "read_answers",
    "read_bench_table",
    "rows",
    "save_record",
    "write_answers",
    "write_bench_table",
]
