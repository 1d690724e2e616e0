"""lhotse: recordings from a folder, compute_and_store_features, one .npy a clip and a manifest.

python benchmarks/ways/lhotse_store.py CORPUS OUT PROCESSES
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from lhotse import CutSet, Fbank, FbankConfig, NumpyFilesWriter, RecordingSet

# As near as lhotse comes: the same frames, Hann window, mel bands and natural log.
CONFIG = FbankConfig(
    sampling_rate=44100,
    frame_length=1024 / 44100,
    frame_shift=441 / 44100,
    num_filters=64,
    low_freq=0.0,
    high_freq=22050.0,
    window_type="hanning",
    preemph_coeff=0.0,
    remove_dc_offset=False,
)


def main() -> None:
    corpus, out, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # lhotse's own pool, but with one torch thread a process: two jobs are slower than one without.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,))
    cuts = CutSet.from_manifests(recordings=RecordingSet.from_dir(corpus, "*.wav"))
    cuts.compute_and_store_features(
        Fbank(CONFIG),
        out,
        num_jobs=jobs,
        storage_type=NumpyFilesWriter,
        executor=pool if jobs > 1 else None,
        progress_bar=False,
    ).to_file(out / "cuts.jsonl.gz")


if __name__ == "__main__":
    main()
