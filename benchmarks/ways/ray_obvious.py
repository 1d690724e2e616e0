"""Ray Data's obvious way: read_audio, map with torchaudio, write_parquet.

python benchmarks/ways/ray_obvious.py CORPUS OUT PROCESSES
"""

import sys
from pathlib import Path
from typing import Any

import ray
import torch
from torchaudio.transforms import MelSpectrogram

MEL = MelSpectrogram(sample_rate=44100, n_fft=1024, hop_length=441, n_mels=64)


def extract(row: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    log_mel = MEL(torch.from_numpy(row["amplitude"])).log()[0]
    path = Path(row["path"])
    return {"clip_id": path.stem, "label": path.parent.name, "log_mel": log_mel.numpy()}


def main() -> None:
    corpus, out = sys.argv[1], sys.argv[2]
    # A cluster of its own; without dashboard and lines from workers, as raysound's.
    ray.init("local", num_cpus=int(sys.argv[3]), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_audio(corpus, include_paths=True).map(extract).write_parquet(out)


if __name__ == "__main__":
    main()
