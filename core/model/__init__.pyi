from .batches import IGNORED as IGNORED
from .batches import Encoded as Encoded
from .batches import batch_rows as batch_rows
from .batches import collate as collate
from .batches import completion_log_probs as completion_log_probs
from .batches import completion_logits as completion_logits
from .batches import encode as encode
from .batches import encode_target as encode_target
from .batches import length_parts as length_parts
from .batches import log_probs_of as log_probs_of
from .batches import token_log_probs as token_log_probs
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import open_checkpoint as open_checkpoint
from .families import FAMILIES as FAMILIES
from .families import Family as Family
from .families import capped as capped
from .families import linear_shape as linear_shape
from .families import logits_of as logits_of
from .families import mid_of as mid_of
from .families import optional as optional
from .families import stored_turned as stored_turned
from .families import submodule as submodule
from .folder_check import check_base as check_base
from .folder_check import check_files as check_files
from .given import adapter_given as adapter_given
from .given import subject_given as subject_given
from .hooks import first_of as first_of
from .hooks import hooks as hooks
from .loading import load_subject as load_subject
from .precision import fast_dtype as fast_dtype
from .precision import fast_format as fast_format
from .precision import number_format as number_format
from .subject import Attached as Attached
from .subject import Subject as Subject
from .subject import packed as packed
from .tokenizer import load_error as load_error
from .tokenizer import load_tokenizer as load_tokenizer
from .variant import ADAPTER as ADAPTER
from .variant import Treated as Treated
from .variant import base_weight as base_weight
from .variant import merged_weights as merged_weights
from .variant import read_treated as read_treated
from .variant import replaced as replaced
from .variant import treated as treated
from .variant import write_treated as write_treated

__all__ = [
    "ADAPTER",
    "FAMILIES",
    "IGNORED",
    "Attached",
    "Checkpoint",
    "Encoded",
    "Family",
    "Subject",
    "Treated",
    "adapter_given",
    "base_weight",
    "batch_rows",
    "capped",
    "check_base",
    "check_files",
    "collate",
    "completion_log_probs",
    "completion_logits",
    "encode",
    "encode_target",
    "fast_dtype",
    "fast_format",
    "first_of",
    "hooks",
    "length_parts",
    "linear_shape",
    "load_error",
    "load_subject",
    "load_tokenizer",
    "log_probs_of",
    "logits_of",
    "merged_weights",
    "mid_of",
    "number_format",
    "open_checkpoint",
    "optional",
    "packed",
    "read_treated",
    "replaced",
    "stored_turned",
    "subject_given",
    "submodule",
    "token_log_probs",
    "treated",
    "write_treated",
]
