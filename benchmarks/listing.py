"""What listing a large corpus takes: seconds, and the memory of the largest process.

python benchmarks/listing.py --clips 1000000

Makes a folder a class of empty files and lists it twice into a manifest: by one process, and by all
processes of a local Ray cluster as jobs/extract.py does; then once more, when nothing has changed.
Prints a markdown table: of the driver and of the largest worker the memory of their own (RssAnon)
and all of it (VmRSS), at their peaks. Ends with an error if the two manifests differ.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from memory import KINDS, run_watched

from raysound.corpora.manifest_parts import manifest_rows, read_index
from raysound.distributed.cluster.session import ray_session
from raysound.distributed.extraction.listing import digest_on_cluster, plan_locally, plan_on_cluster
from raysound.features import parquet
from raysound.settings.loading import from_tree

ROOT = Path(__file__).resolve().parents[1]


def make_corpus(folder: Path, clips: int, classes: int) -> None:
    """Empty files; what is in them is no matter."""
    for label in range(classes):
        (folder / f"class-{label:03d}").mkdir(parents=True)
        descriptor = os.open(folder / f"class-{label:03d}", os.O_RDONLY)
        for clip in range(label, clips, classes):
            os.mknod(f"{clip:08d}.wav", dir_fd=descriptor)
        os.close(descriptor)


def list_corpus(corpus: str, output: str, way: str) -> None:
    """Runs in a process of its own; prints the seconds."""
    tree = {"name": "listing", "output": output, "corpora": {"real": {"path": corpus}}}
    config = from_tree(tree, "benchmark")
    started = time.perf_counter()
    if way == "one process":
        plan_locally("real", config)
        print(json.dumps([time.perf_counter() - started, 0]))
        return
    with ray_session(config.compute):
        started = time.perf_counter()
        plan_on_cluster("real", config)
        listed = time.perf_counter()
        digest_on_cluster("real", config)
        print(json.dumps([listed - started, time.perf_counter() - listed]))


def watched(corpus: Path, output: Path, way: str) -> tuple[list[float], dict]:
    """What a way printed, and the peaks of memory."""
    output.mkdir()
    command = [sys.executable, __file__, "--run", way, str(corpus), str(output)]
    peaks = run_watched(command, output, ROOT)
    return json.loads((output / "out").read_text().splitlines()[-1]), peaks


def differ(outputs: list[Path]) -> bool:
    """True where the manifests of two outputs are not the same row by row."""
    settings = from_tree({"name": "x", "output": "x", "corpora": {"real": {"path": "x"}}}, "x")
    folders = [parquet.folder(str(output), "real", settings.features) for output in outputs]
    first, second = (read_index(folder) for folder in folders)
    if first is None or second is None or first.digest != second.digest:
        return True
    pairs = zip(*map(manifest_rows, folders), strict=True)
    return any(not one.equals(other) for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        way, corpus, output = given.run
        list_corpus(corpus, output, way)
        return
    print("| clips | way | seconds | again, s | driver, MB | all of it | largest worker, MB |"
          " all of it |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for clips in given.clips:
        with tempfile.TemporaryDirectory() as folder:
            make_corpus(Path(folder, "corpus"), clips, given.classes)
            outputs = []
            for way in ("one process", "Ray Data"):
                outputs.append(Path(folder, way))
                seconds, peaks = watched(Path(folder, "corpus"), outputs[-1], way)
                memory = [
                    f"{peaks[name, kind] / 1e6:.0f}"
                    for name in ("driver", "worker")
                    for kind in KINDS
                ]
                row = [f"{clips:,}", way, *(f"{one:.1f}" for one in seconds), *memory]
                print(f"| {' | '.join(row)} |", flush=True)
            if differ(outputs):
                sys.exit("error: the manifests differ")


if __name__ == "__main__":
    main()
