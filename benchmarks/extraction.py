"""How fast each way goes from wav to stored log-mels: raysound, what others write, and the floor.

taskset -c 0,1 python benchmarks/extraction.py --corpus data/esc10

Runs every way as a process of its own on a small and a large corpus, made of links to the clips of
CORPUS (a folder a class). What the further clips cost is the way's speed; the rest of the small
run's time is its start-up. Prints a markdown table; with the defaults it takes about 20 minutes on
two cores and 2 GB below the temporary folder.
"""

import argparse
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["raysound", "ray", "torch", "torchaudio", "pyarrow", "soundfile", "numpy", "lhotse"]
PROBE_CLIPS = 64
# The last commit that extracted with plain Ray tasks.
PLAIN_TASKS = "4a3c357"
HEAD = (
    "| way | clips/s | ms a clip | start-up, s | raysound is × faster | kB a clip | clips |\n"
    "|---|---|---|---|---|---|---|"
)


class Way(NamedTuple):
    """One row of the table: what it is called, and which share of the sizes it is run with."""

    label: str
    share: float


# Ways below some 250 clips/s on two cores get a quarter of the clips, so that a round stays short.
WAYS = {
    "raysound": Way("**raysound**: `jobs/extract.py`", 1),
    "plain_tasks": Way(f"raysound at {PLAIN_TASKS}: plain Ray tasks, own scheduler", 1),
    "ray_kernel": Way("Ray Data, `map_batches` over raysound's kernel, a task a shard", 1),
    "process_pool": Way("process pool, torchaudio, a `.npy` a clip", 1),
    "one_process": Way("one process, torchaudio, a `.npy` a clip", 1 / 4),
    "lhotse_store": Way("lhotse, `compute_and_store_features`", 1 / 4),
    "ray_obvious": Way("Ray Data, `read_audio` + `map` + `write_parquet`", 1 / 4),
    "floor": Way("the floor: read, Fourier transform, write", 1),
}


class Run(NamedTuple):
    """One way, one round.

    Attributes:
        cost: seconds that one further clip takes.
        start_up: seconds that no clip explains.
        stored: bytes a clip.
    """

    cost: float
    start_up: float
    stored: float


def make_corpus(originals: list[Path], count: int, folder: Path) -> Path:
    """Fills a folder a class with `count` links to the clips, over and over in their order."""
    for index in range(count):
        wav = originals[index % len(originals)]
        link = folder / wav.parent.name / f"{index:06d}-{wav.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(wav, link)
    return folder


def copy_clips(corpus: Path, folder: Path) -> list[Path]:
    """The clips of a corpus, shuffled, copied to where links can be made; now in memory."""
    copies = []
    for wav in sorted(corpus.glob("*/*.wav")):
        copies.append(folder / wav.parent.name / wav.name)
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wav, copies[-1])
    if not copies:
        raise SystemExit(f"error: {corpus} holds no wavs in a folder a class")
    random.Random(0).shuffle(copies)
    return copies


def command(way: str, corpus: Path, out: Path, processes: int) -> list[str]:
    """The command line of a way; raysound's YAML is written beside its output."""
    if way not in ("raysound", "plain_tasks"):
        script = ROOT / "benchmarks" / "ways" / f"{way}.py"
        return [sys.executable, str(script), str(corpus), str(out), str(processes)]
    config = {
        "name": "extraction",
        "output": str(out),
        "corpora": {"real": {"path": str(corpus)}},
        "features": {
            "clip_length": 5.0, "sample_rate": 44100, "hop_length": 441, "n_fft": 1024,
            "n_mels": 64, "f_min": 0, "f_max": 22050,
        },
        "compute": {"num_cpus": processes},
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, str(tree_of(way, corpus) / "jobs" / "extract.py"), str(path)]


def tree_of(way: str, corpus: Path) -> Path:
    """The project's files that a way runs; those of an older commit lie beside the corpora."""
    if way != "plain_tasks":
        return ROOT
    tree = corpus.parent / PLAIN_TASKS
    if not tree.exists():
        tree.mkdir()
        packed = subprocess.run(
            ["git", "archive", PLAIN_TASKS], cwd=ROOT, check=True, stdout=subprocess.PIPE
        ).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=packed, check=True)
    return tree


def measure(way: str, corpus: Path, count: int, processes: int) -> tuple[float, int]:
    """Wall time in seconds of a whole run over a corpus of `count` clips, and the bytes it stored.

    Raises:
        RuntimeError: it failed, or didn't store every clip; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        arguments = command(way, corpus, out, processes)
        tree = tree_of(way, corpus)
        # What others left to be written would be written during this run.
        os.sync()
        # A file, not a pipe: a daemon that outlives its parent would keep a pipe open.
        with log.open("wb") as file:
            started = time.perf_counter()
            code = subprocess.run(
                arguments, cwd=tree, stdout=file, stderr=file,
                env={**os.environ, "PYTHONPATH": str(tree)},
            ).returncode  # fmt: skip
            seconds = time.perf_counter() - started
        clips, stored = look_into(out)
        if code or clips != count:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{way}: exit code {code}, {clips} of {count} clips stored\n{tail}")
        return seconds, stored


def look_into(out: Path) -> tuple[int, int]:
    """How many clips' log-mels lie below a folder, and the bytes of all its files."""
    files = [file for file in out.rglob("*") if file.is_file()]
    clips = {str(file) for file in files if file.suffix == ".npy"}
    for file in files:
        if file.suffix == ".parquet" and "log_mel" in pq.read_schema(file).names:
            # A long clip has several rows.
            clips.update(pq.read_table(file, columns=["clip_id"])["clip_id"].to_pylist())
    return len(clips), sum(file.stat().st_size for file in files)


def probe(way: str, corpus: Path, processes: int) -> tuple[int, str]:
    """Runs a way once, untimed. Returns how many processes it can have, and a remark.

    lhotse's pool breaks on some machines: there it gets one process.
    """
    try:
        measure(way, corpus, PROBE_CLIPS, processes)
    except RuntimeError as error:
        if way != "lhotse_store" or processes == 1:
            raise
        measure(way, corpus, PROBE_CLIPS, 1)
        return 1, f" (1 process, for {processes} failed: {str(error).splitlines()[-1]})"
    return processes, ""


def compare(way: str, corpora: dict[int, Path], sizes: tuple[int, int], processes: int) -> Run:
    """Runs a way over the small and the large corpus, one right after the other."""
    small, large = sizes
    few, _ = measure(way, corpora[small], small, processes)
    many, stored = measure(way, corpora[large], large, processes)
    say(f"{way}: {small} clips in {few:.2f} s, {large} clips in {many:.2f} s")
    if many <= few:
        raise RuntimeError(f"{way}: noise hides the cost of a clip; take sizes further apart")
    cost = (many - few) / (large - small)
    return Run(cost, few - small * cost, stored / large)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def spread(values: list[float], digits: int) -> str:
    """The median, and the least and the greatest."""
    low, mid, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{mid} ({low} – {high})"


def row(label: str, sizes: tuple[int, int], runs: list[Run], raysound: list[Run]) -> str:
    """A line of the table; `runs` and raysound's belong together, round by round."""
    cells = [
        label,
        spread([1 / run.cost for run in runs], 0),
        f"{median(run.cost for run in runs) * 1e3:.2f}",
        spread([run.start_up for run in runs], 1),
        spread([run.cost / ours.cost for run, ours in zip(runs, raysound, strict=True)], 2),
        f"{median(run.stored for run in runs) / 1e3:.0f}",
        f"{sizes[0]:,}, {sizes[1]:,}",
    ]
    return f"| {' | '.join(cells)} |"


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def available_cpus() -> int:
    # macOS has no affinity to ask for.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="From wav to stored log-mels: how fast is each way?"
    )
    parser.add_argument("--corpus", type=Path, default=ROOT / "data" / "esc10")
    # Multiples of 256 × processes: every process gets as many whole shards.
    parser.add_argument("--small", type=int, default=2048, help="clips")
    parser.add_argument("--large", type=int, default=10240, help="clips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=available_cpus())
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    ways = [way for way in WAYS if way in {"raysound", *options.ways}]
    missing = [way for way in ways if way == "lhotse_store" and find_spec("lhotse") is None]
    ways = [way for way in ways if way not in missing]
    sizes = {
        way: (round(options.small * WAYS[way].share), round(options.large * WAYS[way].share))
        for way in ways
    }
    with tempfile.TemporaryDirectory(prefix="raysound-extraction-") as name:
        folder = Path(name)
        originals = copy_clips(options.corpus, folder / "originals")
        corpora = {
            count: make_corpus(originals, count, folder / f"{count}")
            for count in {PROBE_CLIPS, *(count for pair in sizes.values() for count in pair)}
        }
        say("every way once, untimed")
        able = {way: probe(way, corpora[PROBE_CLIPS], options.processes) for way in ways}
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for way in ways:
                runs[way].append(compare(way, corpora, sizes[way], able[way][0]))

    print(HEAD)
    for way in ways:
        label = WAYS[way].label + able[way][1]
        print(row(label, sizes[way], runs[way], runs["raysound"]))
    for way in missing:
        print(f"| {WAYS[way].label} | not installed | | | | | |")
    print(
        f"\nMedian (least – greatest) of {options.rounds} rounds, {options.processes} processes. "
        "The time is that of the whole command; clips/s is what the clips\nbeyond the small corpus "
        "cost, start-up is what is left. Ratios are taken within a round."
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES if find_spec(name))
    print(f"\n{cpu_model()}, {available_cpus()} of {os.cpu_count()} cores; ", end="")
    print(f"Python {platform.python_version()}, {versions}\n")
    print(f"    {shlex.join(['python', *sys.argv])}")


if __name__ == "__main__":
    main()
