"""Ray Data over raysound's own kernel, in the simplest form: a row a shard, a task a shard.

python benchmarks/ways/ray_kernel.py CORPUS OUT PROCESSES
"""

import sys
from typing import Any

import pyarrow as pa
import ray
import torch

from raysound.corpora.manifest import read_corpus
from raysound.distributed.extraction.datasets import split_by_shard
from raysound.features.extraction import extract_shard
from raysound.features.parquet import shard_name
from raysound.features.shards import assign_shards, clips_per_shard
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=5.0, sample_rate=44100, hop_length=441, n_fft=1024, n_mels=64, f_min=0, f_max=22050
)


def extract(batch: dict[str, Any], shards: list[pa.Table], out: str) -> dict[str, list[int]]:
    torch.set_num_threads(1)
    (index,) = batch["id"]
    return {
        "windows": [extract_shard(f"{out}/{shard_name(index)}", shards[index], SETTINGS).windows]
    }


def main() -> None:
    corpus, out = sys.argv[1], sys.argv[2]
    ray.init("local", num_cpus=int(sys.argv[3]), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    clips = read_corpus(corpus)
    per_shard = clips_per_shard(len(clips), "auto", SETTINGS)
    shards = split_by_shard(assign_shards(clips, None, per_shard))
    ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
        extract, batch_size=1, fn_kwargs={"shards": shards, "out": out}
    ).sum("windows")


if __name__ == "__main__":
    main()
