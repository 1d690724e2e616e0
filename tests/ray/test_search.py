"""Searches over the tones: every scheduler, mistakes, kills, nested trainings that are stopped."""

import csv
import html
import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import yaml

from raysound import storage
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.search.tune import tune
from raysound.distributed.training.trainer import train_classifier
from raysound.errors import UserError
from raysound.settings.loading import from_tree, load
from raysound.settings.schema import Config
from raysound.training.history import read_history
from tests.processes import console_output, job, poll, processes_below, run_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def tree(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config tree that trains the tones in epochs of half a second; its features are there."""
    tree = {
        "name": "search",
        "output": str(tmp_path_factory.mktemp("search")),
        "corpora": {"real": {"path": str(tones["real"])}},
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 4, "batch_size": 8, "optimizer": {"name": "Adam"}},
        "compute": {"shard_clips": 16, "use_gpu": False},
    }  # fmt: skip
    extract_corpus("real", from_tree(tree, "test"))
    return tree


RATE = {"training.optimizer.lr": {"loguniform": [1e-4, 1e-2]}}


def searching(tree: dict[str, Any], search: dict[str, Any], **sections: Any) -> Config:
    """The tree with a search, and with some sections changed."""
    merged = {key: {**tree[key], **sections.get(key, {})} if isinstance(tree[key], dict)
              else sections.get(key, tree[key]) for key in tree}  # fmt: skip
    return from_tree({**merged, "search": search}, "test")


def searched(config: Config) -> tuple[Path, list[dict[str, str]]]:
    """The folder of a search, run by now, and the rows of its trials.csv."""
    best = Path(tune(config))
    assert best.name == "best.yaml"
    folder = best.parent
    return folder, rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))


def histories(folder: Path) -> dict[str, list[int]]:
    """The epochs that each trial's history tells, by trial."""
    return {
        path.parent.name: [row["epoch"] for row in read_history(str(path))]
        for path in sorted(folder.glob("trials/*/history.jsonl"))
    }


def test_best_yaml_trains_the_same_classifier_as_its_trial(
    tree: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = searching(tree, {"space": {**RATE, "training.batch_size": {"choice": [8, 16]}},
                              "trials": 3, "seed": 1}, training={"epochs": 3})  # fmt: skip

    folder, rows = searched(config)

    assert {path.name for path in folder.iterdir()} == {
        "best.yaml", "trials.csv", "report.html", "trials",
    }  # fmt: skip
    assert [row["state"] for row in rows] == ["finished"] * 3
    assert list(histories(folder).values()) == [[1, 2, 3]] * 3
    assert len({row["training.optimizer.lr"] for row in rows}) == 3
    best = max(rows, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
    chosen = load(folder / "best.yaml")
    assert json.dumps(chosen.training.optimizer.lr) == best["training.optimizer.lr"]
    assert json.dumps(chosen.training.batch_size) == best["training.batch_size"]
    # The same split, seed and order: the trial was this very training, but for how sums round.
    history = read_history(f"{train_classifier(chosen)}/history.jsonl")
    again = history[int(best["selected_epoch"]) - 1]
    assert again["validation_accuracy"] == float(best["accuracy"])
    assert again["validation_loss"] == pytest.approx(float(best["loss"]), rel=0.1)

    # Done is done.
    written = (folder / "best.yaml").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        searched(config)
    assert f"{folder} exists already" in caplog.text
    assert (folder / "best.yaml").stat().st_mtime_ns == written


def test_asha_stops_the_worst_trials_early(tree: dict[str, Any]) -> None:
    """Only one of four learning rates learns; ASHA stops the other three after an epoch."""
    scheduler = {"name": "ASHAScheduler", "grace_period": 1, "reduction_factor": 2}
    rates = {"training.optimizer.lr": {"choice": [1e-3, 1e-9, 1e-10, 1e-11]}}
    config = searching(tree, {"space": rates, "algorithm": "grid", "scheduler": scheduler},
                       training={"epochs": 8})  # fmt: skip

    folder, rows = searched(config)

    states = {json.loads(row["training.optimizer.lr"]): row["state"] for row in rows}
    assert len(rows) == 4
    assert states[1e-3] == "finished"
    assert "stopped" in states.values()
    assert sum(int(row["epochs"]) for row in rows) < 32
    for row, epochs in zip(rows, histories(folder).values(), strict=True):
        assert epochs == list(range(1, int(row["epochs"]) + 1))
    assert load(folder / "best.yaml").training.optimizer.lr == 1e-3


@pytest.mark.parametrize(
    "search",
    [
        {"scheduler": {"name": "HyperBandScheduler", "reduction_factor": 2}},
        {"scheduler": {"name": "MedianStoppingRule", "min_samples_required": 2}},
        {"algorithm": "tpe"},
    ],
    ids=["hyperband", "median", "tpe"],
)
def test_every_search_algorithm_and_scheduler_finishes(
    tree: dict[str, Any], search: dict[str, Any]
) -> None:
    folder, rows = searched(searching(tree, {"space": RATE, "trials": 4, **search}))

    assert len(rows) == 4
    assert {row["state"] for row in rows} <= {"finished", "stopped"}
    for row, epochs in zip(rows, histories(folder).values(), strict=True):
        assert epochs == list(range(1, int(row["epochs"]) + 1))
        assert 1 <= len(epochs) <= 4
    assert load(folder / "best.yaml").training.optimizer.lr in {
        json.loads(row["training.optimizer.lr"]) for row in rows
    }


def test_the_time_limit_ends_a_search_with_the_best_so_far(tree: dict[str, Any]) -> None:
    search = {"space": RATE, "trials": 4, "time_budget_hours": 0.01}
    folder, rows = searched(searching(tree, search, training={"epochs": 100_000}))

    assert {row["state"] for row in rows} <= {"stopped", "not begun"}
    assert any(row["state"] == "stopped" for row in rows)
    assert (folder / "best.yaml").exists()


def test_population_based_training_copies_the_weights_of_better_trials(
    tree: dict[str, Any],
) -> None:
    """Only one of four learning rates learns; the other trials copy its weights."""
    population = {"name": "PopulationBasedTraining", "perturbation_interval": 2}
    rates = {"training.optimizer.lr": {"choice": [1e-3, 1e-9]}}
    config = searching(tree, {"space": rates, "trials": 4, "scheduler": population, "seed": 3},
                       training={"epochs": 8})  # fmt: skip

    folder, rows = searched(config)

    drawn = {json.loads(row["training.optimizer.lr"]) for row in rows}
    assert drawn <= {1e-3, 1e-9}
    assert [row["state"] for row in rows] == ["finished"] * 4
    for epochs in histories(folder).values():
        assert epochs == list(range(1, 9))


def test_invalid_values_fail_their_trial_but_not_the_search(tree: dict[str, Any]) -> None:
    """One value makes the loss infinite, another needs a scheduler that is not set."""
    space = {
        "training.optimizer.lr": {"choice": [1e-2, 1e30]},
        "training.scheduler": {"choice": [None, {"name": "StepLR", "step_size": 2}]},
        "training.scheduler.gamma": {"choice": [0.5]},
    }
    config = searching(tree, {"space": space, "algorithm": "grid"},
                       training={"optimizer": {"name": "SGD"}})  # fmt: skip

    folder, rows = searched(config)

    by_values = {
        (json.loads(row["training.optimizer.lr"]), row["training.scheduler"] != "null"): row
        for row in rows
    }
    good, wild = by_values[1e-2, True], by_values[1e30, True]
    assert (good["state"], good["error"]) == ("finished", "")
    assert wild["state"] == "failed"
    assert re.match(r"the training loss is (nan|inf) in epoch 1, at the batch of", wild["error"])
    assert "try a smaller training.optimizer.lr than 1e+30" in wild["error"]
    for rate in (1e-2, 1e30):
        assert by_values[rate, False]["state"] == "failed"
        assert by_values[rate, False]["error"].endswith("'training.scheduler.name' is missing")
    page = html.unescape((folder / "report.html").read_text())
    assert all(row["error"] in page for row in rows)
    assert load(folder / "best.yaml").training.scheduler.gamma == 0.5


def test_a_search_writes_its_results_to_an_object_store(
    tree: dict[str, Any], object_store: str
) -> None:
    config = searching({**tree, "output": f"{object_store}/search"}, {"space": RATE, "trials": 2},
                       training={"epochs": 2})  # fmt: skip

    best = tune(config)

    assert best.startswith(f"{object_store}/search/search/random-")
    assert b"lr:" in storage.read_bytes(best)
    table = storage.read_bytes(storage.join(best.removesuffix("/best.yaml"), "trials.csv"))
    assert table.decode().count("finished") == 2
    # Done is done, there as here.
    assert tune(config) == best


def test_a_search_without_a_successful_trial_reports_the_reasons(tree: dict[str, Any]) -> None:
    config = searching(tree, {"space": {"training.optimizer.lr": {"choice": [1e30]}}, "trials": 1},
                       training={"optimizer": {"name": "SGD"}})  # fmt: skip

    for _ in range(2):
        with pytest.raises(UserError, match="no trial of 1 succeeded: the training loss is"):
            tune(config)


def test_each_choice_of_features_is_extracted_once(tree: dict[str, Any], tmp_path: Path) -> None:
    space = {"features.n_mels": {"choice": [24, 32]},
             "training.optimizer.lr": {"choice": [1e-3, 2e-3]}}  # fmt: skip
    config = searching({**tree, "output": str(tmp_path / "out")},
                       {"space": space, "algorithm": "grid"}, training={"epochs": 1})  # fmt: skip

    _, rows = searched(config)

    assert [row["state"] for row in rows] == ["finished"] * 4
    features = [path.name for path in Path(config.output, "features").iterdir()]
    assert len(features) == 2


def written(tree: dict[str, Any], folder: Path, **sections: Any) -> Path:
    """A YAML of the tree with some sections changed, in a folder of its own."""
    merged = {**tree, "output": str(folder / "out")}
    for key, section in sections.items():
        merged[key] = {**merged.get(key, {}), **section}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(merged))
    return path


def trial_process(job: int) -> int | None:
    """Process id of a trial of a job that trains now."""
    titles = processes_below(job).items()
    return next((pid for pid, title in titles if title.startswith("ray::ImplicitFunc")), None)


def test_a_killed_search_resumes(root: Path, tree: dict[str, Any], tmp_path: Path) -> None:
    """A trial's process is killed, then the driver, then the command runs again."""
    config = written(tree, tmp_path, search={"space": RATE, "trials": 6}, compute={"num_cpus": 2},
                     training={"epochs": 5})  # fmt: skip
    with job(root, "tune", config) as process:

        def over(least: int) -> bool:
            assert process.poll() is None, console_output(config)
            return len(re.findall("^trial", console_output(config), re.MULTILINE)) >= least

        poll(partial(over, 1), 150, "a trial")
        os.kill(poll(partial(trial_process, process.pid), 60, "a trial's process"), SIGKILL)
        poll(partial(over, 3), 150, "three trials")
        process.send_signal(SIGKILL)
        process.wait(10)
    (folder,) = (path for path in (tmp_path / "out/search").iterdir() if path.is_dir())
    whole = {
        path: losses(path)
        for path in folder.glob("trials/*/history.jsonl")
        if len(losses(path)) == 5
    }
    assert 2 <= len(whole) < 6
    assert not (folder / "best.yaml").exists()

    with job(root, "tune", config, terminal=True) as process:
        assert process.wait(200) == 0, console_output(config)

    assert f"resuming the search in {folder}" in console_output(config)
    assert_one_table_drawn_anew(console_output(config))
    # Ray Tune saves its state every few seconds: the last epochs before may be trained again.
    assert {path: losses(path) for path in whole} == whole
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["finished"] * 6
    assert list(histories(folder).values()) == [[1, 2, 3, 4, 5]] * 6
    assert "Traceback" not in console_output(config)


def unsaved(state: Path) -> None:
    """As where the search was interrupted before its trial began."""
    content = json.loads(state.read_text())
    (row,) = content["trial_data"]
    row[0] = json.dumps(json.loads(row[0]) | {"relative_logdir": None, "status": "PENDING"})
    state.write_text(json.dumps(content))


def cut(file: Path) -> None:
    """As where the disk was full."""
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "file"),
    [(unsaved, "experiment_state"), (cut, "experiment_state"), (cut, "basic-variant-state"),
     (cut, "tuner.pkl")],
)  # fmt: skip
def test_a_search_resumes_with_truncated_files_of_ray_tune(
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    file: str,
) -> None:
    search = {"trials": 1, "space": {"training.optimizer.lr": {"choice": [2e-3]}}}
    config = searching(tree, search, training={"epochs": 1}, output=str(tmp_path))
    (tmp_path / "features").symlink_to(Path(tree["output"], "features"))
    with monkeypatch.context() as patch:
        patch.setattr("raysound.distributed.search.tune.write_results", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(config)
    (path,) = tmp_path.glob(f"search/*/tune/{file}*")
    change(path)

    folder, (row,) = searched(config)

    assert (row["state"], row["training.optimizer.lr"]) == ("finished", "0.002")
    assert [1] in histories(folder).values()
    assert load(str(folder / "best.yaml")).training.optimizer.lr == 2e-3


def interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def losses(history: Path) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["validation_loss"]) for row in read_history(str(history))]


def assert_one_table_drawn_anew(text: str) -> None:
    """Each drawing goes back over the one before; the last has a row for each of six trials."""
    first, *others = re.split(r"\x1b\[\d+F\x1b\[J", text)
    drawn = [first.partition("trial  state")[2], *others]
    lengths = [len(table.splitlines()) for table in drawn[:-1]]
    assert [int(lines) for lines in re.findall(r"\x1b\[(\d+)F", text)] == lengths
    rows = re.findall(r"^(\d) +finished +5 ", drawn[-1], re.MULTILINE)
    assert rows == ["1", "2", "3", "4", "5", "6"]
    assert "6 of 6 trials over" in drawn[-1]


# A search in a cluster of its own, and what is left of it while that cluster still runs.
NESTED = """
import sys
from pathlib import Path
from ray.util import placement_group_table
from raysound.settings.loading import load
from raysound.distributed.cluster.session import open_session
from raysound.distributed.search.tune import (tune)
from tests.processes import poll_until_empty
config = load(sys.argv[1])
open_session(config.compute, dashboard=True)
print(tune(config))
poll_until_empty(
    lambda: [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
)
"""


def test_stopped_trials_of_several_workers_free_their_resources(
    root: Path, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Four CPUs: two trials of two workers at a time, some of them stopped early.

    With workers that outlive their trial, the next ones would wait for ever.
    """
    scheduler = {"name": "ASHAScheduler", "grace_period": 1, "reduction_factor": 2}
    rates = [1e-3, 1e-9, 1e-10, 2e-3, 1e-11, 1e-12, 3e-3, 1e-13]
    config = written(
        tree, tmp_path,
        search={"space": {"training.optimizer.lr": {"choice": rates}},
                "algorithm": "grid", "scheduler": scheduler},
        compute={"num_cpus": 4, "workers": 2, "cpus_per_worker": 1},
        training={"epochs": 4},
    )  # fmt: skip

    run_script(root, NESTED, config, 380)

    (table,) = (tmp_path / "out/search").glob("*/trials.csv")
    rows = rows_of(table.parent)
    assert len(rows) == 8
    assert {row["state"] for row in rows} == {"finished", "stopped"}
    assert {path.name for path in table.parent.glob("trials/*/*")} == {"history.jsonl"}


def test_a_typo_in_a_path_is_refused_before_anything_starts(
    root: Path, tree: dict[str, Any], tmp_path: Path
) -> None:
    config = written(tree, tmp_path, search={"space": {"training.optimiser.lr": {"choice": [1]}}})

    with job(root, "tune", config) as process:
        assert process.wait(60) == 2

    assert console_output(config) == (
        f"error: {config}: search.space: there is no setting 'training.optimiser.lr'; "
        "did you mean 'training.optimizer.lr'?\n"
    )
    assert not (tmp_path / "out").exists()
