"""The Python API: the lines of docs/api.md, one after the other, and sessions."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import DataContext

import raysound
from raysound import metrics
from raysound.features import parquet


def page(root: Path) -> str:
    return (root / "docs/api.md").read_text()


@pytest.mark.timeout(300)
def test_documented_code_runs(
    root: Path, tones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = re.findall(r"```yaml\n(.*?)```", page(root), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(config)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/real").symlink_to(tones["real"])
    (tmp_path / "sounds/gan").symlink_to(tones["good"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page(root), re.DOTALL)
    assert len(blocks) >= 9

    for block in blocks:
        exec(block, names)

    assert ray.is_initialized(), "an open session is left open"
    out = tmp_path / "runs/mine"
    assert {*names["folders"]} == {"real", "gan"}
    assert names["folders"]["gan"] == parquet.folder(str(out), "gan", names["config"].features)
    assert names["metrics"] == json.loads((out / "evaluation/metrics.json").read_text())
    assert names["accuracy"]["of"] == 24
    assert Path(names["report"]).exists()
    assert Path(names["best"]).name == "best.yaml"
    assert Path(names["run"], "checkpoint.json").exists()
    assert names["message"] in page(root)
    assert names["first"].path == "sounds/gan/low/000.wav"
    halved, plain = (names[name].take_all() for name in ("quieter", "log_mels"))
    assert sum(row["log_mel"].mean() for row in halved) < sum(
        row["log_mel"].mean() for row in plain
    )
    assert names["means"].count() == len(plain) == 66
    assert names["batch"]["log_mel"].shape[:2] == (16, 32)


def test_metric_examples_give_the_documented_output(root: Path) -> None:
    text = "".join(re.findall(r"```pycon\n(.*?)```", page(root), re.DOTALL))
    examples = doctest.DocTestParser().get_doctest(text, {}, "docs/api.md", None, None)

    result = doctest.DocTestRunner().run(examples)

    assert result.attempted > 40
    assert result.failed == 0


def test_documentation_lists_every_public_name(root: Path) -> None:
    text = page(root)

    assert len(raysound.__all__) <= 12
    assert [name for name in raysound.__all__ if f"`raysound.{name}" not in text] == []
    assert [name for name in metrics.__all__ if f"metrics.{name}(" not in text] == []
    assert {*raysound.__all__, "__version__"} <= {*dir(raysound)}
    assert {*metrics.__all__} <= {*dir(metrics)}
    assert re.fullmatch(r"\d+\.\d+\.\d+", raysound.__version__)
    for module in (raysound, metrics):
        with pytest.raises(AttributeError, match="has no attribute 'odd'"):
            _ = module.odd


def test_ray_data_options_of_the_user_are_unchanged(trained: dict[str, Any]) -> None:
    """A step changes the options only for its own datasets."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = False
    try:
        raysound.evaluate(trained["config"])
        assert DataContext.get_current() is context
        assert not context.execution_options.preserve_order
    finally:
        context.execution_options.preserve_order = True


# Without a session: a step opens one and closes it, a dataset keeps its own.
ALONE = """
import sys
import raysound
assert not {"ray", "torch"} & {*sys.modules}
config = raysound.load_config(sys.argv[1])
assert not {"ray", "torch"} & {*sys.modules}
folders = raysound.extract(config)
import ray
assert not ray.is_initialized()
rows = raysound.read_features(folders["real"])
assert ray.is_initialized()
print(rows.count())
"""


def test_a_session_is_opened_if_none_is_open(
    root: Path, tmp_path: Path, tone_config: dict[str, Any]
) -> None:
    (tmp_path / "one.yaml").write_text(json.dumps(tone_config))

    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "one.yaml")],
        cwd=root, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout == "66\n"
