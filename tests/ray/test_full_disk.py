"""The disk of the output is full: one line, nothing lost, and with more room the job continues."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.synthesize import synthesize
from raysound.distributed.search.tune import tune
from raysound.distributed.training.train import train
from raysound.errors import UserError
from raysound.settings.loading import from_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
JOBS = {
    "features": extract, "training": train, "search": tune, "evaluation": evaluate,
    "made": synthesize,
}  # fmt: skip
SEARCH = {"trials": 1, "space": {"training.optimizer.lr": {"choice": [1e-3]}}}
FORMULA = {"clips_per_class": 2, "generated_clips_per_class": 1}


def mount(folder: Path, *options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", folder], check=True, timeout=30
    )


# A few MB hold all of Ray Tune's own files, and nothing of a training.
@pytest.fixture(params=[*((name, "64k") for name in JOBS), ("search", "4m")], ids="-".join)
def small_disk(
    request: pytest.FixtureRequest, trained: dict[str, Any], tmp_path: Path
) -> Iterator[Path]:
    """A full disk in the place of one of an output's folders; the others are there already."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    output = tmp_path / "out"
    shutil.copytree(trained["tree"]["output"], output)
    name, size = request.param
    folder = output / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mount(folder, f"size={size}")
    # As small files still fit when larger ones don't, half of it is left.
    (folder / "other.bin").write_bytes(b"0" * (32 << 10))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True, timeout=30)


def test_a_full_disk_is_a_user_error_and_the_job_continues_later(
    small_disk: Path, trained: dict[str, Any]
) -> None:
    job = JOBS[small_disk.name]
    tree = {
        **trained["tree"],
        "output": str(small_disk.parent),
        "search": SEARCH,
        "synthesis": {"formula": {"output": str(small_disk), **FORMULA}},
    }
    if job is not evaluate:
        # A search needs no weights of a trial whose last epoch is in its history.
        tree["training"] = {"epochs": 2, "batch_size": 8}
    config = from_tree(tree, "test")

    with pytest.raises(UserError) as full:
        job(config)

    assert str(full.value).startswith(f"{small_disk}/")
    assert str(full.value).endswith(
        " can't be written: No space left on device; the same command continues"
    )
    (small_disk / "other.bin").unlink()
    mount(small_disk, "remount", "size=512m")
    result = job(config)
    if job is evaluate:
        # It returns the metrics, the other functions return paths.
        assert (small_disk / "report.html").exists()
    else:
        assert str(small_disk) in str(result)
