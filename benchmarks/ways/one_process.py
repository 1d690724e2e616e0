"""One process, one torchaudio transform for every file, one .npy a clip.

python benchmarks/ways/one_process.py CORPUS OUT
"""

import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.transforms import MelSpectrogram


def main() -> None:
    corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    # torch's own threads share the work of each transform.
    mel = MelSpectrogram(sample_rate=44100, n_fft=1024, hop_length=441, n_mels=64)
    for wav in sorted(corpus.glob("*/*.wav")):
        samples, _ = soundfile.read(wav, dtype="float32", always_2d=True)
        log_mel = mel(torch.from_numpy(samples.T)).log()
        np.save(out / f"{wav.parent.name}-{wav.stem}.npy", log_mel.numpy())


if __name__ == "__main__":
    main()
