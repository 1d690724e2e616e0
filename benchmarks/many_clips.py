"""What the driver holds while a corpus of many short clips is extracted, and that none is lost.

python benchmarks/many_clips.py --clips 20000 200000

Writes as many wavs of 0.1 s, runs jobs/extract.py on them, and prints a markdown table: the peak of
the memory that is the driver's own (RssAnon, without what it shares), and of the largest worker.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import yaml
from memory import run_watched

ROOT = Path(__file__).resolve().parents[1]
RATE = 8000


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


def run(folder: Path, output: Path) -> tuple[float, dict]:
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
    peaks = run_watched([sys.executable, "jobs/extract.py", str(config)], output, ROOT)
    return time.monotonic() - started, peaks


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
            driver, worker = (peaks[name, "RssAnon"] for name in ("driver", "worker"))
            (features,) = (output / "features").iterdir()
            parts = sorted(features.glob("part-*.parquet"))
            ids = pq.ParquetDataset(parts).read(["clip_id"])["clip_id"]
            distinct = pc.count_distinct(ids).as_py()
            print(
                f"| {clips:,} | {seconds:.0f} | {driver / 1e6:.0f} | "
                f"{worker / 1e6:.0f} | {len(parts)} | {len(ids):,} | {distinct:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
