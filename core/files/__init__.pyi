from .atomic import TEMPORARY as TEMPORARY
from .atomic import checksums as checksums
from .atomic import full_disk as full_disk
from .atomic import is_full as is_full
from .atomic import need_room as need_room
from .atomic import own_files as own_files
from .atomic import sha256 as sha256
from .atomic import sweep_temporaries as sweep_temporaries
from .atomic import whole_folder as whole_folder
from .atomic import write_atomic as write_atomic
from .cache import cache_folder as cache_folder
from .jsonfiles import MANIFEST as MANIFEST
from .jsonfiles import RECORD as RECORD
from .jsonfiles import Outside as Outside
from .jsonfiles import checked as checked
from .jsonfiles import json_or_text as json_or_text
from .jsonfiles import read_json as read_json
from .jsonfiles import why_not as why_not
from .outputs import check_apart as check_apart
from .outputs import check_file_out as check_file_out
from .outputs import check_folder_out as check_folder_out
from .outputs import out_path as out_path
from .outputs import run_path as run_path
from .paths import REPORT as REPORT
from .paths import check_plain as check_plain
from .paths import check_tree as check_tree
from .paths import check_utf8 as check_utf8
from .paths import files_below as files_below
from .paths import inside as inside
from .paths import inside_or_cached as inside_or_cached
from .paths import is_name as is_name
from .pickles import SUFFIXES as SUFFIXES
from .pickles import pickled_adapter as pickled_adapter
from .pickles import pickled_model as pickled_model
from .tomlfiles import check_values as check_values
from .tomlfiles import parsed_toml as parsed_toml
from .tomlfiles import read_toml as read_toml

__all__ = [
    "MANIFEST",
    "RECORD",
    "REPORT",
    "SUFFIXES",
    "TEMPORARY",
    "Outside",
    "cache_folder",
    "check_apart",
    "check_file_out",
    "check_folder_out",
    "check_plain",
    "check_tree",
    "check_utf8",
    "check_values",
    "checked",
    "checksums",
    "files_below",
    "full_disk",
    "inside",
    "inside_or_cached",
    "is_full",
    "is_name",
    "json_or_text",
    "need_room",
    "out_path",
    "own_files",
    "parsed_toml",
    "pickled_adapter",
    "pickled_model",
    "read_json",
    "read_toml",
    "run_path",
    "sha256",
    "sweep_temporaries",
    "whole_folder",
    "why_not",
    "write_atomic",
]
