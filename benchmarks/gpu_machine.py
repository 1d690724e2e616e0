"""The card, the driver and the versions that a measurement was made with, as a Markdown table.

python benchmarks/gpu_machine.py
"""

import os
import platform
import subprocess
from importlib.metadata import version

import torch


def main() -> None:
    rows = {
        "CPUs": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchaudio", "ray", "raysound")},
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }
    if torch.cuda.is_available():
        words = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
        said = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        found = said.stdout.strip().split(", ")
        if said.returncode or len(found) != 3:
            found = [torch.cuda.get_device_name(), "unknown", "unknown"]
        rows = dict(zip(("card", "memory", "driver"), found, strict=True)) | rows
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
