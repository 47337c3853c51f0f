"""Trackers hear of a fit, begin and end with it, and can do nothing to it."""

import os
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.training import tracking
from loratomy.training.tracking import Tracking, trackers_of
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from .. import tiny
from .test_fitting import NLL, Killed, apart, fitted, interrupted


@pytest.fixture
def on():
    return tiny.subject()


@pytest.fixture
def faked(monkeypatch):
    """Puts a class in the place of every tracker's callback."""

    def put(*kinds: type) -> None:
        monkeypatch.setattr(
            integration_utils, "get_reporting_integration_callbacks", lambda names: list(kinds)
        )

    return put


def scalars(folder):
    """Tag -> steps and values in the event files below a folder."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # TFRecord: length u64, its checksum u32, event, checksum u32
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_the_losses_of_the_log(on, tmp_path):
    pytest.importorskip("tensorboardX")
    heard = Tracking(("tensorboard",), folder=tmp_path / "t", stage="operations/x", name="run x")
    for label in ("one fit", "another"):
        _, log = fitted(on, tmp_path / label, tracking=heard, label=label)
        place = tmp_path / "t/operations/x/tensorboard" / f"run-x-{label.replace(' ', '-')}"
        seen = scalars(place)["train/loss"]
        assert [step for step, _ in seen] == log.steps.tolist()
        assert [value for _, value in seen] == pytest.approx(log.loss.tolist(), rel=1e-6)


def test_a_tracker_that_fails_is_left_out_and_changes_nothing(on, tmp_path, faked, monkeypatch):
    heard = []

    class Breaks(TrainerCallback):
        def on_log(self, args, state, control, **_):
            raise ConnectionError("no route to host")

    class Hears(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            heard.append(logs)

    alone, _ = fitted(on, tmp_path / "alone")
    monkeypatch.setenv("WANDB_MODE", "offline")
    faked(Breaks, Hears)
    with pytest.warns(UserWarning, match="tracker wandb failed and is left out: no route") as seen:
        beside, _ = fitted(on, tmp_path / "beside", tracking=Tracking(("wandb", "trackio")))
    assert sum("left out" in str(w.message) for w in seen) == 1
    assert apart(alone, beside) == 0
    assert len(heard) == 7  # six steps and the summary


def test_a_tracker_that_hangs_is_waited_for_only_so_long(on, tmp_path, faked, monkeypatch):
    class Hangs(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            time.sleep(60)

    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    faked(Hangs)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"trackio failed and is left out: no answer in 0\.2 s"):
        fitted(on, tmp_path, tracking=Tracking(("trackio",)))
    assert time.monotonic() - began < 30


def test_a_fit_that_fails_ends_its_run(on, tmp_path, faked):
    events = []

    class Hears(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            events.append("begin")

        def on_train_end(self, args, state, control, **_):
            events.append("end")

    faked(Hears)
    with pytest.raises(Killed):
        fitted(on, tmp_path, objective=interrupted(NLL, 3), tracking=Tracking(("tensorboard",)))
    assert events == ["begin", "end"]


def test_each_fit_has_a_wandb_run_of_its_own(on, tmp_path, faked, monkeypatch):
    """Its callback leaves the run open, and takes an open one for the next fit."""
    fake = SimpleNamespace(run=None, ended=[])

    def finish(exit_code):
        fake.ended.append((fake.run, exit_code))
        fake.run = None

    fake.finish = finish
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")

    class Wandb(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            fake.run = fake.run or args.run_name

    faked(Wandb)
    heard = Tracking(("wandb",), name="demo")
    fitted(on, tmp_path / "a", tracking=heard, label="one")
    with pytest.raises(Killed):
        fitted(on, tmp_path / "b", tracking=heard, label="two", objective=interrupted(NLL, 2))
    assert fake.ended == [("demo-one", 0), ("demo-two", 1)]
    fake.run = "the user's own"
    fitted(on, tmp_path / "c", tracking=heard, label="three")
    assert fake.run == "the user's own"


def test_without_a_key_wandb_goes_on_offline_with_one_line(tmp_path, faked, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    faked(TrainerCallback)
    tracking._warn_offline.cache_clear()  # said once in a process
    heard = Tracking(("wandb",), folder=tmp_path, stage="s")
    with pytest.warns(UserWarning, match="no W&B key") as seen, heard.session("x"):
        assert os.environ["WANDB_MODE"] == "offline"
        assert os.environ["WANDB_DIR"] == str(tmp_path / "s")
    assert len(seen) == 1
    assert "WANDB_MODE" not in os.environ
    with warnings.catch_warnings(), heard.session("another"):
        warnings.simplefilter("error")
    (tmp_path / "netrc").write_text("machine api.example.org login user password x")
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.example.org")
    with heard.session("x"):
        assert "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_DIR", "mine")
    with heard.session("x"):
        assert os.environ["WANDB_DIR"] == "mine"
    assert os.environ["WANDB_DIR"] == "mine"


def test_names_are_checked_before_any_work(monkeypatch, cli, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "tensorboardX" or None)
    assert trackers_of("tensorboard, tensorboard") == ("tensorboard",)
    assert trackers_of("") == trackers_of("none") == ()
    with pytest.raises(LoratomyError, match="wandb is not installed: pip install wandb, or leave"):
        trackers_of("tensorboard,wandb")
    with pytest.raises(LoratomyError, match="unknown tracker 'wandbb'; did you mean wandb"):
        trackers_of("wandbb")
    for command in (("operate", tmp_path / "none"), ("poison", "--out", tmp_path / "none")):
        result = cli(*command, "--report-to", "trackio")
        assert result.exit_code == 2
        assert "trackio is not installed: pip install trackio" in result.stderr
    assert not (tmp_path / "none").exists()
