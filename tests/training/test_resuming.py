"""Checkpoints are files like others: damaged, half, foreign or pickled ones are left out."""

import json
import os
import pickle
import shutil
import signal
import warnings

import numpy as np
import pytest
from loratomy.core import stopping
from loratomy.core.files.atomic import checksums
from loratomy.core.stopping import Stopped
from loratomy.training.objective import Objective
from loratomy.training.resuming import MARK, last_whole

from .. import tiny
from .test_fitting import NLL, Killed, apart, fitted, interrupted, on  # noqa: F401


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a killed fit, and what the same fit gives when nothing kills it."""
    subject, place = tiny.subject(), tmp_path_factory.mktemp("fits")
    unbroken, log = fitted(subject, place / "unbroken")
    with pytest.raises(Killed):
        fitted(subject, place / "work", objective=interrupted(NLL, 4))
    return place / "work", unbroken, log


@pytest.fixture
def begun(killed, tmp_path):
    """Folder with checkpoints 3 and 2 (or so) of a killed fit, and the unbroken result."""
    source, unbroken, log = killed
    work = shutil.copytree(source, tmp_path / "work")
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(found) == 2
    return work, found, unbroken, log


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def sealed(folder):
    """The checkpoint with the checksums of what it now holds, as a careful stranger would."""
    recorded = json.loads((folder / MARK).read_text())
    files = checksums(folder)
    files.pop(MARK)
    (folder / MARK).write_text(json.dumps(recorded | {"files": files}))


DAMAGE = {
    "a bit of the adapter": lambda f: flip(f / "adapter_model.safetensors"),
    "a bit of the optimiser": lambda f: flip(f / "optimizer.pt"),
    "half of the optimiser": lambda f: os.truncate(f / "optimizer.pt", 100),
    "an empty mark": lambda f: (f / MARK).write_text(""),
    "a mark of text": lambda f: (f / MARK).write_text('{"files": {}, "fit": 3}'),
    "no scheduler": lambda f: (f / "scheduler.pt").unlink(),
    "one file more": lambda f: (f / "scaler.pt").write_bytes(b"x"),
    "a sealed pickle": lambda f: (
        (f / "optimizer.pt").write_bytes(pickle.dumps(Evil(f.parent / "ran"))),
        sealed(f),
    ),
    "a deep state": lambda f: ((f / "trainer_state.json").write_text("[" * 10**5), sealed(f)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_dropped_and_the_one_before_is_taken(on, begun, what):  # noqa: F811
    work, (older, newest), unbroken, _ = begun
    DAMAGE[what](newest)
    (work / "checkpoint-abc").mkdir()
    (work / "checkpoint-abc" / MARK).write_text("{}")
    with pytest.warns(UserWarning, match=f"{newest.name} is left out and removed: "):
        found = last_whole(work)
    assert found is not None and found.folder == older and not newest.exists()
    assert apart(unbroken, fitted(on, work)[0]) < 1e-6
    assert not (work / "ran").exists()


def test_a_file_under_the_name_of_a_checkpoint_is_removed_with_a_word(tmp_path):
    (tmp_path / "checkpoint-7").write_text("x")
    with pytest.warns(UserWarning, match=r"checkpoint-7 is removed: it is no folder"):
        assert last_whole(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_without_a_whole_one_a_fit_begins_anew(on, begun):  # noqa: F811
    work, both, unbroken, _ = begun
    for folder in both:
        flip(folder / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="is left out and removed"):
        again, log = fitted(on, work)
    assert apart(unbroken, again) == 0 and log.earlier_seconds == 0


def test_a_checkpoint_of_another_fit_is_not_taken_up(on, begun, tmp_path):  # noqa: F811
    work, (_, newest), unbroken, _ = begun
    other = tmp_path / "other"
    with pytest.raises(Killed):
        fitted(on, other, seed=5, objective=interrupted(NLL, 4))
    shutil.rmtree(newest)
    shutil.copytree(other / newest.name, newest)
    with pytest.warns(UserWarning, match="it is of another fit"):
        again, _ = fitted(on, work)
    assert apart(unbroken, again) < 1e-6


def asks(number, step):
    """The objective, in which a signal comes while a step is computed."""
    seen = []

    def sums(attached, batch):
        seen.append(1)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        return NLL.sums(attached, batch)

    return Objective(sums, NLL.counts, NLL.weights)


@pytest.fixture
def listening():
    kept = {n: signal.getsignal(n) for n in stopping.CODES}
    stopping.listen()
    yield
    for n, handler in kept.items():
        signal.signal(n, handler)


def test_a_signal_leaves_a_checkpoint_of_the_step_at_hand(on, killed, tmp_path, listening):  # noqa: F811
    _, unbroken, log = killed
    for step, number in ((1, signal.SIGTERM), (3, signal.SIGUSR1), (6, signal.SIGTERM)):
        work = tmp_path / str(step)
        with pytest.raises(Stopped) as stopped:
            fitted(on, work, objective=asks(number, step))
        assert stopped.value.code == {signal.SIGTERM: 143, signal.SIGUSR1: 75}[number]
        begun = last_whole(work)
        assert begun is not None and begun.folder.name == f"checkpoint-{step}"
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again, resumed = fitted(on, work)
        assert apart(unbroken, again) < 1e-6
        np.testing.assert_array_equal(resumed.steps, log.steps)
        np.testing.assert_allclose(resumed.loss, log.loss, rtol=1e-6)


def test_the_logged_losses_are_means_also_over_an_interruption(on, tmp_path, listening):  # noqa: F811
    """120 steps, logged every second one: after the 61st a stop, the 62nd logs both."""
    unbroken, log = fitted(on, tmp_path / "unbroken", epochs=60)
    assert log.steps[:2].tolist() == [2, 4]
    with pytest.raises(Stopped):
        fitted(on, tmp_path / "cut", epochs=60, objective=asks(signal.SIGUSR1, 61))
    begun = last_whole(tmp_path / "cut")
    assert begun is not None and (begun.folder.name, begun.logged) == ("checkpoint-61", 60)
    again, resumed = fitted(on, tmp_path / "cut", epochs=60)
    assert apart(unbroken, again) < 1e-6
    np.testing.assert_array_equal(resumed.steps, log.steps)
    np.testing.assert_allclose(resumed.loss, log.loss, rtol=1e-5)


def test_outside_a_fit_a_signal_ends_at_once(listening):
    with pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.code == 75
    with pytest.raises(Stopped), stopping.after_a_step():
        signal.raise_signal(signal.SIGTERM)
        assert stopping.wanted()
        signal.raise_signal(signal.SIGTERM)  # who asks twice means it
