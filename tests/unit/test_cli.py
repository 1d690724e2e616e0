import re
import subprocess
import sys
from pathlib import Path

import pytest

from raysound.cli import COMMANDS
from raysound.job import load_function
from raysound.settings.describe import configuration_page, describe_settings
from raysound.settings.loading import from_tree


def raysound(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysound.cli", *words],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def leaves(tree: object, above: str = "") -> list[str]:
    """The paths of all values of a config."""
    if isinstance(tree, dict) and tree:
        return [path for key, one in tree.items() for path in leaves(one, f"{above}{key}.")]
    return [above.removesuffix(".")]


def test_the_overview_lists_every_command(root: Path) -> None:
    asked, bare = raysound(root, "--help"), raysound(root)

    assert (asked.returncode, bare.returncode) == (0, 2)
    assert asked.stdout == bare.stdout
    for name, command in COMMANDS.items():
        assert f"  {name} " in asked.stdout
        assert command.summary in asked.stdout


def test_an_unknown_command_is_an_error_of_one_line_with_all_commands(root: Path) -> None:
    done = raysound(root, "trian", "configs/demo.yaml")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: raysound has no command 'trian': {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_lists_the_settings_that_it_reads(root: Path, name: str) -> None:
    done = raysound(root, name, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: raysound {name} ")
    listed = re.findall(r"^  (\S+) \(.*\)\n      \S.*$", done.stdout, re.MULTILINE)
    expected = [one.path for one in describe_settings()]
    assert listed == [
        path for path in expected if path.partition(".")[0] in COMMANDS[name].sections
    ]


def test_the_settings_page_is_up_to_date(root: Path) -> None:
    assert (root / "docs/configuration.md").read_text() == configuration_page()


def test_every_command_names_a_function_that_exists() -> None:
    for command in COMMANDS.values():
        assert callable(load_function(command.function))


def test_every_setting_of_a_config_is_described_with_its_default() -> None:
    tree = {"name": "one", "output": "out", "corpora": {"real": "clips"}}
    config = from_tree(tree, "test")
    rows = {row.path: row for row in describe_settings()}

    # The optimizer is one of several sections; absent sections have no leaf in the dump.
    found = {path for path in leaves(config.model_dump()) if not path.startswith("training.opt")}
    assert found - {"evaluation.copies", "synthesis.formula", "synthesis.griffin_lim",
                    "synthesis.ladder"} <= {*rows}  # fmt: skip
    assert rows["output"][1:3] == ("text", "required")
    assert rows["training.epochs"][1:3] == ("integer", str(config.training.epochs))
    assert rows["training.epochs"].description == "Passes over the training clips."
    assert rows["features.long_clips"].type == "split | center | start"
    assert rows["compute.workers"].type == "integer | [integer, integer]"
    assert rows["features.f_max"].default == ""
    assert [path for path, row in rows.items() if not row.description] == []
