"""What an epoch costs before any arithmetic: features read anew each time, or kept in the store.

python benchmarks/epoch_feeding.py [clips]

Prints the seconds that two Ray Train workers need to see every training and validation batch once.
"""

import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import ray.train
from ray.train.torch import TorchTrainer

from raysound import features
from raysound.distributed import training_data
from raysound.distributed.session import ray_session
from raysound.features import Shard
from raysound.settings import ComputeSettings, FeatureSettings

EPOCHS = 4
SETTINGS = FeatureSettings(clip_length=1.0, sample_rate=16000, hop_length=160, f_max=8000)


def write_features(folder: str, clips: int) -> None:
    """Shards of 200 random log-mels of 10 classes, a fifth of them for validation."""
    rng = np.random.default_rng(0)
    for index in range(-(-clips // 200)):
        count = min(200, clips - 200 * index)
        rows = [
            {
                "clip_id": f"{index}-{row}", "window": 0, "label": str(row % 10), "fold": None,
                "split": "validation" if row % 5 == 0 else "train", "group": "", "duration": 1.0,
                "sample_rate": 16000,
            }
            for row in range(count)
        ]  # fmt: skip
        shape = (count, SETTINGS.n_mels, SETTINGS.n_frames)
        log_mels = rng.standard_normal(shape, dtype=np.float32)
        with features.write_shard(f"{folder}/{features.shard_name(index)}", SETTINGS) as writer:
            writer.add(pa.Table.from_pylist(rows), log_mels)
            writer.finish(Shard("", count, count, count, float(count), writer.statistics))


def worker(epochs: int) -> None:
    for epoch in range(epochs):
        seconds = {}
        for split in ("train", "validation"):
            started = time.perf_counter()
            shard = ray.train.get_dataset_shard(split)
            for _ in shard.iter_torch_batches(batch_size=16):
                pass
            seconds[split] = time.perf_counter() - started
        if ray.train.get_context().get_world_rank() == 0 and epoch == epochs - 1:
            with tempfile.TemporaryDirectory() as empty:
                ray.train.report(seconds, checkpoint=ray.train.Checkpoint.from_directory(empty))
        else:
            ray.train.report(seconds)


def main() -> None:
    clips = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as folder, ray_session(ComputeSettings()):
        write_features(folder, clips)
        print(f"{clips} clips, last of {EPOCHS} epochs   train   validation")
        for name, keep in (("read anew each epoch", False), ("kept in the store", True)):
            datasets = {
                split: training_data.dataset(folder, split, [str(i) for i in range(10)], keep)
                for split in ("train", "validation")
            }
            result = TorchTrainer(
                worker,
                train_loop_config=EPOCHS,
                scaling_config=ray.train.ScalingConfig(
                    num_workers=2, resources_per_worker={"CPU": 0.5}
                ),
                run_config=ray.train.RunConfig(name=name, storage_path=folder),
                datasets=datasets,
                dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
            ).fit()
            seconds = result.metrics
            print(f"{name:<28}  {seconds['train']:6.2f} s {seconds['validation']:8.2f} s")


if __name__ == "__main__":
    main()
