"""A process pool, torchaudio file by file, one .npy a clip.

python benchmarks/ways/process_pool.py CORPUS OUT PROCESSES
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.transforms import MelSpectrogram

OUT = Path(sys.argv[2])
MEL = MelSpectrogram(sample_rate=44100, n_fft=1024, hop_length=441, n_mels=64)


def extract(wav: Path) -> None:
    samples, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    log_mel = MEL(torch.from_numpy(samples.T)).log()
    np.save(OUT / f"{wav.parent.name}-{wav.stem}.npy", log_mel.numpy())


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    wavs = sorted(Path(sys.argv[1]).glob("*/*.wav"))
    # One thread a process: otherwise each process would start as many as there are cores.
    with ProcessPoolExecutor(
        int(sys.argv[3]), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for _ in pool.map(extract, wavs, chunksize=32):
            pass


if __name__ == "__main__":
    main()
