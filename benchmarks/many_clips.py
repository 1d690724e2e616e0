"""What the driver holds while a corpus of many short clips is extracted, and that none is lost.

python benchmarks/many_clips.py --clips 20000 200000

Writes as many wavs of 0.1 s, runs jobs/extract.py on them, and prints a markdown table: the peak of
the memory that is the driver's own (RssAnon, without what it shares), and of the largest worker.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import yaml

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000
SECONDS_BETWEEN_LOOKS = 0.05


def write_corpus(folder: Path, clips: int) -> None:
    """Wavs of 0.1 s in ten folders; few are distinct, all are files of their own."""
    rng = np.random.default_rng(0)
    sounds = []
    for _ in range(50):
        path = folder / "sound.wav"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(RATE // 10), RATE)
        sounds.append(path.read_bytes())
        path.unlink()
    for label in range(10):
        (folder / f"class-{label}").mkdir()
    for clip in range(clips):
        (folder / f"class-{clip % 10}" / f"{clip:07d}.wav").write_bytes(sounds[clip % 50])


def run(folder: Path, output: Path) -> tuple[float, dict[str, int]]:
    """Extracts a corpus; returns seconds, and the peak of every process's own memory in bytes."""
    config = output / "config.yaml"
    output.mkdir()
    config.write_text(
        yaml.safe_dump(
            {
                "name": "many-clips",
                "output": str(output),
                "corpora": {"real": {"path": str(folder)}},
                "features": {
                    "clip_length": 0.1, "sample_rate": RATE, "hop_length": 80, "n_fft": 256,
                    "n_mels": 64, "f_max": RATE / 2,
                },
            }
        )
    )  # fmt: skip
    started = time.monotonic()
    with (output / "log.txt").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "jobs/extract.py", str(config)], cwd=ROOT, stdout=log, stderr=log
        )
        peaks: dict[str, int] = defaultdict(int)
        while driver.poll() is None:
            for name, used in memory_of_family(driver.pid):
                peaks[name] = max(peaks[name], used)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if driver.returncode:
        sys.exit((output / "log.txt").read_text())
    return time.monotonic() - started, peaks


def memory_of_family(driver: int) -> list[tuple[str, int]]:
    """The driver's memory as `driver`, that of each Ray worker as `worker`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
            )
            title = (status.parent / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        used = int(fields.get("RssAnon", "0").split()[0]) * 1024
        if status.parent.name == str(driver):
            found.append(("driver", used))
        elif title.startswith("ray::"):
            found.append(("worker", used))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[20_000, 200_000])
    print("| clips | seconds | driver, MB | largest worker, MB | shards | rows | distinct clips |")
    print("|---|---|---|---|---|---|---|")
    for clips in parser.parse_args().clips:
        with tempfile.TemporaryDirectory() as folder:
            corpus, output = Path(folder, "corpus"), Path(folder, "output")
            write_corpus(corpus, clips)
            seconds, peaks = run(corpus, output)
            (features,) = (output / "features").iterdir()
            parts = sorted(features.glob("part-*.parquet"))
            ids = pq.ParquetDataset(parts).read(["clip_id"])["clip_id"]
            distinct = pc.count_distinct(ids).as_py()
            print(
                f"| {clips:,} | {seconds:.0f} | {peaks['driver'] / 1e6:.0f} | "
                f"{peaks['worker'] / 1e6:.0f} | {len(parts)} | {len(ids):,} | {distinct:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
