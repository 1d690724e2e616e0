"""The floor: only what no way can leave out: read, Fourier transform, write Parquet.

python benchmarks/ways/floor.py CORPUS OUT PROCESSES

No mel bands, no Ray, no care for odd files. What it stores is the log power of every eighth Fourier
bin, which compresses to the size of a log-mel.
"""

import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

N_SAMPLES, N_FFT, HOP, N_FRAMES, N_BINS = 220500, 1024, 441, 501, 64
SHARD_CLIPS = 256
# Frames transformed at a time: they and their spectra stay in the cache of a core.
CHUNK = 128

OUT = Path(sys.argv[2])
TENSOR = pa.fixed_shape_tensor(pa.float32(), (N_BINS, N_FRAMES))
# Made once and used by every clip: a fresh large array costs more than the arithmetic on it.
SAMPLES = np.empty(N_SAMPLES, np.int16)
WAVE = torch.zeros(N_SAMPLES + N_FFT)
FRAMES = WAVE.unfold(0, N_FFT, HOP)
WINDOW = torch.hann_window(N_FFT) / 32768
WINDOWED = torch.empty(CHUNK, N_FFT)
SPECTRUM = torch.empty(CHUNK, N_FFT // 2 + 1, dtype=torch.complex64)
POWER = torch.empty(N_FRAMES, N_BINS)
LOG_POWER = torch.empty(SHARD_CLIPS, N_BINS, N_FRAMES)


def transform(wav: Path, log_power: torch.Tensor) -> None:
    soundfile.read(wav, frames=N_SAMPLES, fill_value=0, out=SAMPLES)
    WAVE[N_FFT // 2 : -N_FFT // 2] = torch.from_numpy(SAMPLES)
    for start in range(0, N_FRAMES, CHUNK):
        power = POWER[start : start + CHUNK]
        spectrum = SPECTRUM[: len(power)]
        torch.mul(FRAMES[start : start + CHUNK], WINDOW, out=WINDOWED[: len(power)])
        torch.fft.rfft(WINDOWED[: len(power)], out=spectrum)
        real, imaginary = torch.view_as_real(spectrum[:, : 8 * N_BINS : 8]).unbind(-1)
        torch.mul(real, real, out=power).addcmul_(imaginary, imaginary)
    torch.log(POWER.clamp_(min=1e-10).T, out=log_power)


def write_shard(wavs: list[Path]) -> None:
    for wav, log_power in zip(wavs, LOG_POWER, strict=False):
        transform(wav, log_power)
    values = LOG_POWER[: len(wavs)].numpy().reshape(-1)
    rows = pa.FixedSizeListArray.from_arrays(values, N_BINS * N_FRAMES)
    log_mel = pa.ExtensionArray.from_storage(TENSOR, rows)
    pq.write_table(
        pa.table({"clip_id": [wav.stem for wav in wavs], "log_mel": log_mel}),
        OUT / f"{wavs[0].stem}.parquet",
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=["log_mel.list.element"],
        write_statistics=False,
    )


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    # By name, not by folder: shards of one class alone would differ in work.
    wavs = sorted(Path(sys.argv[1]).glob("*/*.wav"), key=lambda wav: wav.name)
    shards = [wavs[start : start + SHARD_CLIPS] for start in range(0, len(wavs), SHARD_CLIPS)]
    # Forked processes have torch imported already.
    with get_context("fork").Pool(int(sys.argv[3]), torch.set_num_threads, (1,)) as pool:
        pool.map(write_shard, shards, chunksize=1)


if __name__ == "__main__":
    main()
