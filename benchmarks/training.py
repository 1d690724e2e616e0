r"""What raysound's training costs beside a plain PyTorch loop, and what each switch gains.

taskset -c 0,1 python benchmarks/training.py
python benchmarks/training.py --clip-length 5 --sample-rate 44100 --hop-length 441 \
    --clips 2560 --batch-size 128 --compile --seconds 240

Synthesizes sounds, extracts them, and prints two Markdown tables. The first compares clips/s of a
loop as in PyTorch's tutorial over tensors in memory, of `jobs/train.py` with the features in Ray's
object store, of the same with the features streamed from Parquet each epoch, and of raysound's step
alone on data that is on the device already: the same model, batches, precision and threads. It
counts the epochs without their checkpoints; what these take beside an epoch is printed below. The
second compares the switches of `compute`, one at a time, with all of them off and all of them on.
Uses a GPU where there is one. Progress goes to stderr; with `--seconds`, no round starts that would
not end in time.
"""

import argparse
import glob
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raysound import storage
from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.cluster.session import available_cpus, ray_session
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.extraction.synthesize import make_formula_corpus
from raysound.distributed.training import feature_loading
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import (
    classifier_metadata,
    make_loop_config,
    train_classifier,
)
from raysound.distributed.training.training_data import TrainingData, load_training_data
from raysound.distributed.training.worker import train_alone
from raysound.models import build
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config
from raysound.settings.synthesis import FormulaSettings
from raysound.training import batches
from raysound.training.hardware import hardware_for
from raysound.training.history import read_history
from raysound.training.inference import Normalisation
from raysound.training.loop import fit
from raysound.training.step import Batch, Hardware

# Dense bfloat16 arithmetic, by words of the device's name; from the vendor's data sheets. The first
# entry whose words all occur counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0,
    "H100": 989.0, "H200": 989.0, "GH200": 989.0, "A100": 312.0, "L4": 121.0,
}  # fmt: skip
OFF = {
    "precision": "float32", "channels_last": False, "tf32": False, "pin_memory": False,
    "prefetch_batches": 0, "compile": False,
}  # fmt: skip
# Settings of `compute` that a switch changes; the last is no setting, but GPU_SHARE.
SWITCHES = {
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"channels_last": True},
    "TF32": {"tf32": True},
    "pinned memory": {"pin_memory": True},
    "prefetch": {"prefetch_batches": 2},
    "data kept on the GPU": {},
    "compile": {"compile": True},
}
CPU_SWITCHES = ("bfloat16", "channels_last")
GPU_SHARE = batches.GPU_SHARE


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnetish18")
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--clip-length", type=float, default=1.0)
    parser.add_argument("--sample-rate", type=int, default=16000)
    parser.add_argument("--hop-length", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=3, help="the first is not counted")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all rounds")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too")
    return parser.parse_args()


def config_for(options: argparse.Namespace, folder: str) -> Config:
    return from_tree(
        {
            "name": "benchmark",
            "output": f"{folder}/out",
            "corpora": {
                "real": {
                    "path": f"{folder}/sounds/real",
                    "split": {"test_fraction": 0, "validation_fraction": 0},
                }
            },
            "features": {
                "clip_length": options.clip_length, "sample_rate": options.sample_rate,
                "hop_length": options.hop_length, "n_mels": 64, "f_max": options.sample_rate / 2,
            },
            "model": {"name": options.model},
            "compute": {"precision": options.precision},
            "training": {
                "epochs": options.epochs, "batch_size": options.batch_size,
                "checkpoint_policy": "last",
            },
        },
        "benchmark",
    )  # fmt: skip


def plain_loop(
    rows: batches.Rows,
    config: Config,
    hardware: Hardware,
    norm: Normalisation,
    device: torch.device,
) -> float:
    """Clips/s of the loop that everybody writes."""
    settings = config.training
    log_mel = ((torch.from_numpy(rows.log_mel) - torch.tensor(norm.mean).unsqueeze(-1)) /
               torch.tensor(norm.std).unsqueeze(-1)).unsqueeze(1).float()  # fmt: skip
    target = torch.from_numpy(rows.target)
    model = build(config.model.name, int(rows.target.max()) + 1).to(device).train()
    layout = torch.channels_last if hardware.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    rates = []
    for _ in range(settings.epochs):
        started = time.perf_counter()
        for some in torch.randperm(len(target)).split(settings.batch_size):
            inputs = log_mel[some].to(device, non_blocking=True, memory_format=layout)
            optimizer.zero_grad()
            low = hardware.precision != torch.float32
            with torch.autocast(device.type, hardware.precision, enabled=low):
                loss = loss_of(model(inputs), target[some].to(device))
            loss.backward()
            optimizer.step()
        loss.item()
        rates.append(len(target) / (time.perf_counter() - started))
    return median(rates[1:])


def rate_of(history: list[dict[str, float]]) -> float:
    """Clips/s of a training, without its first epoch."""
    return median(row["train_clips"] / row["seconds"] for row in history[1:])


def under_raysound(config: Config, seed: int, share: float, pauses: list[float]) -> float:
    """Clips/s of train_classifier, with features in the store or streamed.

    Appends to `pauses` the seconds between two epochs, in which the first one's checkpoint is
    written and reported.
    """
    feature_loading.STORE_SHARE = share
    tree = config.model_dump()
    tree["training"]["seed"] = seed
    ends: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            files = glob.glob(f"{config.output}/training/*/history.jsonl")
            last = max((os.path.getmtime(file) for file in files), default=0.0)
            if last > began and last not in ends:
                ends.append(last)

    began = time.time()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run = train_classifier(Config.model_validate(tree))
    finally:
        done.set()
        thread.join()
    history = read_history(storage.join(run, "history.jsonl"))
    for before, end, row in zip(ends, ends[1:], history[1:], strict=False):
        pauses.append(end - before - row["seconds"])
    return rate_of(history)


def step_alone(
    rows: batches.Rows, config: Config, hardware: Hardware, device: torch.device
) -> float:
    """Clips/s of raysound's loop over batches that are on the device already."""
    size = config.training.batch_size
    log_mel, target = torch.from_numpy(rows.log_mel).to(device), torch.from_numpy(rows.target)
    batches = [
        Batch(log_mel[some.to(device)], target[some].to(device), [])
        for some in torch.randperm(len(target)).split(size)
        if len(some) == size
    ]
    model = build(config.model.name, int(rows.target.max()) + 1).to(device)
    if hardware.channels_last:
        model = model.to(memory_format=torch.channels_last)
    history: list[dict[str, float]] = []

    def train_batches(epoch: int) -> Iterator[Batch]:
        return iter(batches)

    fit(
        model, train_batches, None, config.training, Normalisation((0.0,) * 64, (1.0,) * 64),
        lambda progress: history.append(progress.history[-1]),
        classes=int(rows.target.max()) + 1, hardware=hardware,
    )  # fmt: skip
    return rate_of(history)


def with_switches(
    config: Config, material: TrainingData, threads: int, device: torch.device, on: frozenset[str]
) -> float:
    """Clips/s of a training in this process, which does all but start Ray Train's workers."""
    compute = OFF | {key: value for name in on for key, value in SWITCHES[name].items()}
    tree = config.model_dump()
    tree["compute"] |= compute
    config = Config.model_validate(tree)
    batches.GPU_SHARE = GPU_SHARE if "data kept on the GPU" in on else 0.0
    with tempfile.TemporaryDirectory() as run:
        train_alone(
            make_loop_config(config, material, classifier_metadata(config, material), run, threads),
            device,
            {},
        )
        return rate_of(read_history(storage.join(run, "history.jsonl")))


def flops_a_clip(config: Config, classes: int) -> float:
    """Of forward and backward, from PyTorch's own count."""
    model = build(config.model.name, classes)
    shape = (2, 1, config.features.n_mels, config.features.n_frames)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.randn(shape)).sum().backward()
    return counter.get_total_flops() / shape[0]


def peak_tflops(device_name: str) -> float | None:
    """Of dense bfloat16 arithmetic; None for a card that the table lacks, or a part of one."""
    words = {*re.split(r"[\s-]+", device_name)}
    if "MIG" in words:
        return None
    return next((peak for key, peak in PEAK_TFLOPS.items() if {*key.split()} <= words), None)


def repeated(
    rounds: int, ways: dict[str, Callable[[int], float]], deadline: float = float("inf")
) -> dict[str, list[float]]:
    """Every way in each round, so that a slow minute of the machine is shared.

    The first round is made in any case, another one if it would end before the deadline.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        started = time.monotonic()
        for name, way in ways.items():
            rates[name].append(way(number))
            line = f"round {number + 1}: {name}: {rates[name][-1]:.1f} clips/s"
            print(line, file=sys.stderr, flush=True)
        now = time.monotonic()
        if now + (now - started) > deadline:
            break
    return rates


def span(values: list[float], form: str) -> str:
    """Median, least and greatest."""
    return f"{median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def ratios(mine: list[float], theirs: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


class Peak:
    """Arithmetic a second, from clips a second, and its share of what the device can do."""

    def __init__(self, config: Config, classes: int, device: torch.device, given: float | None):
        self.flops = flops_a_clip(config, classes)
        gpu = device.type == "cuda"
        self.name = torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"
        self.tflops = given or peak_tflops(self.name)

    def cells(self, rates: list[float]) -> str:
        """TFLOP/s and share of peak, as cells of a table."""
        tera = median(rates) * self.flops / 1e12
        share = f"{tera / self.tflops:.1%}" if self.tflops else "unknown card"
        return f"{tera:.3f} | {share}"

    def line(self) -> str:
        """What the shares refer to."""
        peak = f", peak {self.tflops:g} TFLOP/s in dense bfloat16" if self.tflops else ""
        return f"{self.name}{peak}; {self.flops / 1e9:.2f} GFLOP a clip, forward and backward"


def compare_ways(
    config: Config, options: argparse.Namespace, device: torch.device, peak: Peak, deadline: float
) -> None:
    """Prints the first table."""
    folder = finished_features("real", config)
    clips = split_clips(config, folder)
    labels = sorted(set(clips["label"].to_pylist()))
    rows = feature_loading.read_all(folder, clips, labels)
    norm = feature_loading.normalisation(folder, clips)
    gpu = device.type == "cuda"
    hardware = hardware_for(device, config.compute)
    torch.backends.cudnn.benchmark = gpu
    pauses: list[float] = []
    rates = repeated(
        options.rounds,
        {
            "plain PyTorch, tensors in memory": lambda number: plain_loop(
                rows, config, hardware, norm, device
            ),
            "raysound, features in the object store": lambda seed: under_raysound(
                config, 2 * seed, 0.4, pauses
            ),
            "raysound, features streamed from Parquet": lambda seed: under_raysound(
                config, 2 * seed + 1, 0.0, pauses
            ),
            "raysound's step alone, data on the device": lambda number: step_alone(
                rows, config, hardware, device
            ),
        },
        deadline,
    )
    plain, *_, step = rates.values()
    print("| way | clips/s | of the plain loop | of the step alone | TFLOP/s | of peak |")
    print("|---|---|---|---|---|---|")
    for name, values in rates.items():
        of_plain, of_step = (span(ratios(values, of), ".3f") for of in (plain, step))
        print(f"| {name} | {span(values, '.1f')} | {of_plain} | {of_step} | {peak.cells(values)} |")
    print(f"\n{peak.line()}")
    print(f"between two epochs: {span(pauses, '.2f')} s for the checkpoint and Ray\n", flush=True)


def compare_switches(
    config: Config, options: argparse.Namespace, device: torch.device, peak: Peak, deadline: float
) -> None:
    """Prints the second table."""
    feature_loading.STORE_SHARE = 1.0
    folder = finished_features("real", config)
    material = load_training_data(folder, split_clips(config, folder))
    threads = plan_workers(config)[1]
    names = [
        name for name in SWITCHES
        if name != "compile" and (device.type == "cuda" or name in CPU_SWITCHES)
    ]  # fmt: skip
    every = frozenset(names)
    # To compile takes a minute: tried once, on top of all others.
    variants = {
        "all off": frozenset[str](),
        **{f"{name} alone": frozenset({name}) for name in names},
        **{f"all but {name}": every - {name} for name in names},
        "all on": every,
        **({"all on, and compile": every | {"compile"}} if options.compile else {}),
    }
    rates = repeated(
        options.rounds,
        {
            name: lambda _, on=on: with_switches(config, material, threads, device, on)
            for name, on in variants.items()
        },
        deadline,
    )
    off, on = rates["all off"], rates["all on"]
    print("| switch | alone, clips/s | × all off | all but it, clips/s | all on × all but it |")
    print("|---|---|---|---|---|")
    for name in names:
        alone, without = rates[f"{name} alone"], rates[f"all but {name}"]
        print(
            f"| {name} | {span(alone, '.1f')} | {span(ratios(alone, off), '.2f')} "
            f"| {span(without, '.1f')} | {span(ratios(on, without), '.2f')} |"
        )
    print("\n| together | clips/s | × all off | × all on | TFLOP/s | of peak |")
    print("|---|---|---|---|---|---|")
    for name in ("all off", "all on", "all on, and compile"):
        if name in rates:
            values = rates[name]
            of_off, of_on = (span(ratios(values, of), ".2f") for of in (off, on))
            print(f"| {name} | {span(values, '.1f')} | {of_off} | {of_on} | {peak.cells(values)} |")
    print(f"\n{peak.line()}", flush=True)


def main() -> None:
    options = arguments()
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = config_for(options, folder)
        with ray_session(config.compute):
            make_formula_corpus(
                "real",
                FormulaSettings(
                    output=f"{folder}/sounds", clips_per_class=-(-options.clips // 10),
                    seconds=options.clip_length, sample_rate=options.sample_rate,
                ),
            )  # fmt: skip
            extract_corpus("real", config)
            torch.set_num_threads(min(plan_workers(config)[1], available_cpus()))
            peak = Peak(config, 10, device, options.peak_tflops)
            shape = (config.features.n_mels, config.features.n_frames)
            print(
                f"{options.model}, {options.clips} clips of {shape}, batches of "
                f"{options.batch_size}, {torch.get_num_threads()} threads, "
                f"{hardware_for(device, config.compute).precision}; "
                f"Python {platform.python_version()}, "
                + ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
                + "\n",
                flush=True,
            )
            compare_ways(config, options, device, peak, began + 0.5 * options.seconds)
            compare_switches(config, options, device, peak, began + options.seconds)


if __name__ == "__main__":
    main()
