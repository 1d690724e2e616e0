"""The project keeps its own rules: small jobs, YAMLs that load, quiet imports."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from raysound.cli import COMMANDS
from raysound.settings.loading import from_tree, load


def test_every_job_calls_the_command_of_its_name(root: Path) -> None:
    jobs = sorted((root / "jobs").glob("*.py"))

    assert len(jobs) == 10
    for job in jobs:
        text = job.read_text()
        assert len(text.splitlines()) < 20, job
        imported = {
            node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
        }
        assert imported == {"raysound.cli"}, job
        assert f'main("{job.stem}")' in text, job
    # `raysound init` writes a file beside its user, not on a cluster.
    assert {job.stem for job in jobs} == {*COMMANDS} - {"init"}


def test_every_shipped_yaml_loads_and_says_how_to_run_it(root: Path) -> None:
    configs = sorted((root / "configs").rglob("*.yaml"))

    assert {path.name for path in configs} >= {"demo.yaml", "esc10.yaml", "seed.yaml"}
    for path in configs:
        assert load(path).name == path.stem
        job = "tune" if load(path).search.space else "pipeline"
        assert f"python jobs/{job}.py configs/{path.name}" in path.read_text()


def test_the_overrides_that_yamls_show_are_taken(root: Path) -> None:
    shown = 0
    for path in sorted((root / "configs").rglob("*.yaml")):
        for line in re.findall(rf"configs/{path.name} (.+)$", path.read_text(), re.MULTILINE):
            load(path, [a or b for a, b in re.findall(r"'([^']+)'|(\S+)", line)])
            shown += 1
    assert shown >= 4


def test_the_readme_shows_what_is_there(root: Path) -> None:
    """On at most 200 lines: a valid config, Python that docs/api.md has, too, every command."""
    readme = (root / "README.md").read_text()

    (example,) = re.findall(r"```yaml\n(.+?)```", readme, re.DOTALL)
    (code,) = re.findall(r"```python\n(.+?)```", readme, re.DOTALL)

    assert len(readme.splitlines()) <= 200
    config = from_tree(yaml.safe_load(example), "README.md")
    assert list(config.corpora.generated) == ["gan", "diffusion"]
    assert code in (root / "docs/api.md").read_text()
    assert {*re.findall(r"^### (\w+)$", readme, re.MULTILINE)} == {*COMMANDS}


def test_every_yaml_of_the_pages_is_a_config(root: Path) -> None:
    for page in sorted((root / "docs").glob("*.md")):
        for text in re.findall(r"```yaml\n(.+?)```", page.read_text(), re.DOTALL):
            least = {"name": "mine", "output": "out", "corpora": {"real": "/sounds"}}
            assert from_tree(least | yaml.safe_load(text), page.name).name == "mine"


def test_links_of_the_pages_lead_somewhere(root: Path) -> None:
    """To files and headings that exist."""
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    assert len(pages) > 12
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                anchors = {
                    re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings
                }
                assert anchor in anchors, f"{page.name}: {link}"


def test_importing_a_module_does_nothing(root: Path, tmp_path: Path) -> None:
    """No file, no output, no Ray session; but for Ray's and torch's own imports."""
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((root / "raysound").rglob("*.py"))
    ]
    assert len(modules) > 25
    code = "; ".join(f"import {module}" for module in modules)

    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import ray; assert not ray.is_initialized()"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_every_package_that_is_imported_is_declared(root: Path) -> None:
    """By raysound and its jobs as a dependency, by the tests in their group."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))

    def names(requirements: list[str]) -> set[str]:
        bare = {re.split(r"[^\w-]", text)[0].lower() for text in requirements}
        return {{"pyyaml": "yaml", "scikit-learn": "sklearn"}.get(x, x) for x in bare}

    def imported(*folders: str) -> set[str]:
        found = set()
        for path in (path for name in folders for path in (root / name).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
        return {name.replace("_", "-").lower() for name in found - sys.stdlib_module_names}

    declared = (
        project["project"]["dependencies"] + project["project"]["optional-dependencies"]["onnx"]
    )
    dependencies = {name.replace("_", "-") for name in names(declared)}
    in_tests = {name.replace("_", "-") for name in names(project["dependency-groups"]["test"])}
    # Modules of the tests' own folders.
    own = {
        "raysound",
        "benchmarks",
        "tests",
        *(path.stem for path in (root / "tests").rglob("*.py")),
    }

    assert imported("raysound", "jobs") - own - dependencies == set()
    assert imported("tests") - own - dependencies - in_tests == set()
