"""Calls on the cluster that fail while others run."""

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from raysound.distributed.cluster.session import run_remote_all
from raysound.errors import UserError


def run(folder: str, fails: bool) -> None:
    """Fails when the other call runs; that one ends when it is cancelled."""
    if not fails:
        Path(folder, "runs").touch()
    while not (fails and Path(folder, "runs").exists()):
        time.sleep(0.05)
    raise UserError("wrong")


def test_only_running_calls_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray aborts the driver if it cancels a call that has just failed."""
    cancelled: list[Any] = []
    cancel = ray.cancel

    def noted(call: Any) -> None:
        cancelled.append(call)
        cancel(call)

    monkeypatch.setattr(ray, "cancel", noted)
    with pytest.raises(UserError, match="wrong"):
        run_remote_all(run, [(str(tmp_path), True), (str(tmp_path), False)])
    assert len(cancelled) == 1
    with pytest.raises(ray.exceptions.RayError):
        ray.get(cancelled[0], timeout=60)

    with pytest.raises(UserError, match="wrong"):
        run_remote_all(run, [(str(tmp_path), True)])
    assert len(cancelled) == 1
