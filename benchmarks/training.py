"""What raysound's training costs beside a plain PyTorch loop, and what each switch gains.

taskset -c 0,1 python benchmarks/training.py
python benchmarks/training.py --clip-length 5 --sample-rate 44100 --hop-length 441 --clips 4000

Makes sounds by formula, extracts them, and prints two markdown tables. The first: clips/s of a loop
as in PyTorch's tutorial over tensors in memory, of `jobs/train.py`'s road with the features in
Ray's object store, and of the same with the features streamed from Parquet each epoch; the same
model, batches, precision and threads. The second: the step alone, on data that is on the device
already, switch by switch, with its share of `--peak-tflops`. Uses a GPU where there is one.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raysound import storage
from raysound.config import from_tree
from raysound.distributed import training_data
from raysound.distributed.epochs_shown import read_history
from raysound.distributed.extract import extract_corpus, finished_features
from raysound.distributed.judge import split_clips, train_judge
from raysound.distributed.placement import placement
from raysound.distributed.session import available_cpus, ray_session
from raysound.distributed.synthesize import by_formula
from raysound.models import build
from raysound.scoring import Normalisation
from raysound.settings import Config, FormulaSettings
from raysound.training import Batch, Hardware, fit

# Of dense bfloat16 arithmetic, by a part of the device's name; from the vendor's data sheets.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "T4": 65.0}
SWITCHES = {
    "float32": Hardware(),
    "TF32": Hardware(),
    "bfloat16": Hardware(torch.bfloat16),
    "bfloat16, channels_last": Hardware(torch.bfloat16, channels_last=True),
    "bfloat16, channels_last, compile": Hardware(torch.bfloat16, channels_last=True, compile=True),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnetish18")
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--clip-length", type=float, default=1.0)
    parser.add_argument("--sample-rate", type=int, default=16000)
    parser.add_argument("--hop-length", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=3, help="the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
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
            "training": {
                "epochs": options.epochs, "batch_size": options.batch_size, "keep": "last",
            },
        },
        "benchmark",
    )  # fmt: skip


def plain_loop(
    rows: training_data.Rows,
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


def under_raysound(config: Config, seed: int, share: float) -> float:
    """Clips/s of train_judge, without its first epoch, with features in the store or streamed."""
    training_data.STORE_SHARE = share
    tree = config.model_dump()
    tree["training"]["seed"] = seed
    run = train_judge(Config.model_validate(tree))
    history = read_history(storage.join(run, "history.jsonl"))
    return median(row["train_clips"] / row["seconds"] for row in history[1:])


def step_alone(
    rows: training_data.Rows, config: Config, hardware: Hardware, device: torch.device
) -> float:
    """Clips/s of raysound's loop over batches that are on the device already."""
    size = config.training.batch_size
    log_mel, target = torch.from_numpy(rows.log_mel).to(device), torch.from_numpy(rows.target)
    batches = [
        Batch(log_mel[some], target[some].to(device), [])
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
    return median(row["train_clips"] / row["seconds"] for row in history[1:])


def flops_a_clip(config: Config, classes: int) -> float:
    """Of forward and backward, from PyTorch's own count."""
    model = build(config.model.name, classes)
    shape = (2, 1, config.features.n_mels, config.features.n_frames)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.randn(shape)).sum().backward()
    return counter.get_total_flops() / shape[0]


def repeated(rounds: int, ways: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Every way in each round, so that a slow minute of the machine is shared."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            rates[name].append(way(number))
            print(f"round {number + 1}: {name}: {rates[name][-1]:.1f} clips/s", flush=True)
    return rates


def span(values: list[float], form: str) -> str:
    """Median, least and greatest."""
    return f"{median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def compare(config: Config, options: argparse.Namespace, device: torch.device) -> list[str]:
    """The first table."""
    folder = finished_features("real", config)
    clips = split_clips(config, folder)
    labels = sorted(set(clips["label"].to_pylist()))
    rows = training_data.read_all(folder, clips, labels)
    norm = training_data.normalisation(folder, clips)
    torch.set_num_threads(min(placement(config)[1], available_cpus()))
    gpu = device.type == "cuda"
    hardware = Hardware(torch.bfloat16, channels_last=True) if gpu else Hardware()
    rates = repeated(
        options.rounds,
        {
            "plain PyTorch, tensors in memory": lambda number: plain_loop(
                rows, config, hardware, norm, device
            ),
            "raysound, features in the object store": lambda seed: under_raysound(
                config, 2 * seed, 0.4
            ),
            "raysound, features streamed from Parquet": lambda seed: under_raysound(
                config, 2 * seed + 1, 0.0
            ),
        },
    )
    plain = next(iter(rates.values()))
    lines = ["| way | clips/s | of the plain loop |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(values, plain, strict=True)]
        lines.append(f"| {name} | {span(values, '.1f')} | {span(ratios, '.3f')} |")
    return [*lines, "", *switches(rows, config, options, device)]


def switches(
    rows: training_data.Rows, config: Config, options: argparse.Namespace, device: torch.device
) -> list[str]:
    """The second table."""

    def step(name: str) -> float:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = name != "float32"
            torch.backends.cudnn.allow_tf32 = name != "float32"
        torch._dynamo.reset()
        return step_alone(rows, config, SWITCHES[name], device)

    names = [
        name
        for name in SWITCHES
        if (options.compile or "compile" not in name) and (device.type == "cuda" or name != "TF32")
    ]
    rates = repeated(options.rounds, {name: lambda _, name=name: step(name) for name in names})
    flops = flops_a_clip(config, int(rows.target.max()) + 1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    known = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    peak = options.peak_tflops or known
    lines = ["| step alone | clips/s | × float32 | TFLOP/s | of peak |", "|---|---|---|---|---|"]
    for switch, values in rates.items():
        gain = [mine / theirs for mine, theirs in zip(values, rates["float32"], strict=True)]
        tera = median(values) * flops / 1e12
        share = f"{tera / peak:.1%}" if peak else "–"
        lines.append(
            f"| {switch} | {span(values, '.1f')} | {span(gain, '.2f')} | {tera:.3f} | {share} |"
        )
    return [*lines, "", f"{name}; {flops / 1e9:.2f} GFLOP a clip, forward and backward"]


def main() -> None:
    options = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = config_for(options, folder)
        with ray_session(config.compute):
            by_formula(
                "real",
                FormulaSettings(
                    output=f"{folder}/sounds", clips_per_class=-(-options.clips // 10),
                    seconds=options.clip_length, sample_rate=options.sample_rate,
                ),
            )  # fmt: skip
            extract_corpus("real", config)
            lines = compare(config, options, device)
    print("\n".join(lines))
    shape = (config.features.n_mels, config.features.n_frames)
    print(
        f"\n{options.model}, {options.clips} clips of {shape}, batches of {options.batch_size}, "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
    )


if __name__ == "__main__":
    main()
