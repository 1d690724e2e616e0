#!/usr/bin/env bash
# Gathers what benchmarks/gpu.sh needs on a GPU host without network, into benchmarks/gpu:
#   bash benchmarks/gpu_pack.sh data/esc10
# data/esc10 is ESC-10 as wav, with the column fold in its metadata.csv. The host is x86-64 Linux with Python 3.12 and
# has torch, torchaudio, numpy, pandas, pyarrow, pyyaml, safetensors, jinja2, matplotlib, pytest and pytest-timeout;
# the wheels are the rest. Ray goes without what no job uses, compressed by LZMA, which takes two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=${1:?"name the folder of ESC-10 as wav"} out=benchmarks/gpu python=.venv/bin/python
rm -rf "$out" && mkdir -p "$out/wheels"
"$python" benchmarks/gpu_folds.py extract "$corpus" "$out"
pins=$(mktemp)
grep -E '^(ray|jsonschema|jsonschema-specifications|referencing|rpds-py|pydantic|pydantic_core|annotated-types|typing-inspection|soundfile|cffi|pycparser|tensorboardX|msgpack)==' constraints.txt >"$pins"
platforms=()
for version in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${version}_x86_64"); done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 -d "$out/wheels" -r "$pins"
# Its metadata; the code comes from the tree.
"$python" -m pip wheel -q --no-deps -w "$out/wheels" .
"$python" - "$out/wheels" <<'PY'
import pathlib, sys, zipfile

LEFT_OUT = ("ray/jars/", "ray/rllib/", "ray/dashboard/client/", "ray/serve/")
for wheel in pathlib.Path(sys.argv[1]).glob("ray-*.whl"):
    small = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(small, "w") as rest:
        names = {n for n in whole.namelist() if not n.startswith(LEFT_OUT) or n.endswith("__init__.py")}
        for item in (item for item in whole.infolist() if item.filename in names):
            data = whole.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                rows = data.decode().splitlines(keepends=True)
                data = "".join(row for row in rows if row.split(",")[0] in names).encode()
            rest.writestr(item, data, zipfile.ZIP_LZMA)
    small.replace(wheel)
PY
du -sh "$out"/*
