"""How a child loads, without the process around it."""

from __future__ import annotations

from pathlib import Path

from service.replicas.child import load
from service.replicas.messages import Loading, Spec, ToParent
from service.replicas.pool import keep_logs_as_they_are, names
from tests.fakes import FakeEngine, checkpoint, load_fake
from tests.unit.replicas.engines import Counted


def test_loading_tells_each_percent_once(tmp_path: Path) -> None:
    def load_slowly(*args: object, progress: object, **kwargs: object) -> FakeEngine:
        for done in range(1001):
            progress(done, 1000)  # type: ignore[operator]
        return Counted()

    told: list[ToParent] = []
    spec = Spec((checkpoint(tmp_path, "a"),), "cpu", "auto", load_slowly, keep_logs_as_they_are)
    engines = load(spec, told.append)
    assert [message.done for message in told if isinstance(message, Loading)] == list(range(0, 1001, 10))
    assert isinstance(engines["a"], Counted)
    assert engines["a"].num_warm_ups == 1


def test_every_checkpoint_gets_an_engine(tmp_path: Path) -> None:
    checkpoints = (checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))
    engines = load(Spec(checkpoints, "cpu", "auto", load_fake, keep_logs_as_they_are), lambda message: None)
    assert list(engines) == ["a", "b"]


def test_names() -> None:
    assert names(["cuda:0", "cpu", "cpu"]) == ["cuda:0", "cpu", "cpu#2"]
