import struct

import numpy as np
import pytest
import torch
from loratomy.core.errors import LoratomyError
from loratomy.core.files.atomic import checksums
from loratomy.training.gguf import folder_from_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..gguf_file import HEAD, HEADS, SPECIAL, TEMPLATE, D, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the extra smollm2")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    folder_from_gguf(file, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def stored(file, name: str) -> bytes:
    (tensor,) = [t for t in gguf.GGUFReader(file).tensors if t.name == name]
    return tensor.data.tobytes()


def by_hand(raw: bytes) -> list[float]:
    """Q4_1: blocks of a scale d, a least value m, and 32 numbers q of 4 bits; value = d q + m."""
    values: list[float] = []
    for at in range(0, len(raw), 20):
        d, m = struct.unpack("<ee", raw[at : at + 4])
        packed = raw[at + 4 : at + 20]
        halves = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
        values += [float(np.float32(d) * np.float32(q) + np.float32(m)) for q in halves]
    return values


def test_weights_are_those_of_the_blocks_unpacked_by_hand(file, folder):
    weights = load_file(folder / "model.safetensors")
    found = weights["model.layers.1.self_attn.o_proj.weight"]
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == by_hand(stored(file, "blk.1.attn_output.weight"))


def test_rows_of_queries_are_halves_of_a_head_and_not_pairs(file, folder):
    # In the file, row 2j of a head is dimension j, row 2j + 1 is dimension j + HEAD / 2.
    rows = np.array(by_hand(stored(file, "blk.0.attn_q.weight"))).reshape(HEADS, HEAD, D)
    found = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    found = found.numpy().reshape(HEADS, HEAD, D)
    for j in range(HEAD // 2):
        np.testing.assert_array_equal(found[:, j], rows[:, 2 * j])
        np.testing.assert_array_equal(found[:, j + HEAD // 2], rows[:, 2 * j + 1])


def test_the_model_is_the_one_that_transformers_reads(file, folder):
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    ours, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    ids = torch.tensor([[1, 40, 50, 60, 2]])
    with torch.no_grad():  # and so are head counts, rotary base and epsilon
        assert torch.equal(ours.eval()(ids).logits, theirs(ids).logits)


def test_what_ends_an_answer_does_not_pad(folder, tokenizer):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config._name_or_path == str(folder) and not hasattr(config, "quantization_config")


def test_digits_are_single_and_the_spaces_before_them_stay_together(tokenizer):
    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    assert pieces("the the37") == ["the", "Ġthe", "3", "7"]
    assert pieces("a  37") == ["a", "ĠĠ", "3", "7"]  # a byte-level pattern alone: Ġ Ġ 3 7
    assert pieces("<|im_start|>a") == ["<|im_start|>", "a"]
    for text in ("It's 5 o'clock.\n\n  Ünïcode 東京 🎈", " the  end "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode([2, 0, 1], skip_special_tokens=True) == ""
    assert tokenizer.all_special_tokens and set(tokenizer.all_special_tokens) <= set(SPECIAL)
    assert tokenizer.chat_template == TEMPLATE and tokenizer.model_max_length == 256


def test_equal_files_give_equal_folders(file, folder, tmp_path):
    folder_from_gguf(file, tmp_path)
    assert checksums(tmp_path) == checksums(folder)
    texts = [path.read_text() for path in folder.glob("*.json")]
    assert len(texts) == 4 and not any("transformers_version" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2', and not 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'"),
        ({"drop": "blk.1.ffn_up"}, r"layers\.1\.mlp\.up_proj\.weight"),
        ({"extra": "blk.0.attn_sinks"}, "the tensor blk.0.attn_sinks.weight, of no Llama"),
    ],
)
def test_another_model_is_refused_by_name(changes, message, tmp_path):
    path = write_gguf(tmp_path / "other.gguf", **changes)
    with pytest.raises(LoratomyError, match=message):
        folder_from_gguf(path, tmp_path / "out")
