#!/usr/bin/env bash
# Measures and tests raysound on a host with one GPU, which may have no network:
#   bash benchmarks/gpu.sh [--smoke] [--minutes 12] [--model resnetish18] [--steps wheels,machine,training,tests,folds]
# benchmarks/gpu_pack.sh makes, elsewhere, what such a host lacks: wheels and features, in benchmarks/gpu/.
# Each step has a time limit and ends in a line with its seconds. A step that fails does not stop the next ones; the
# exit code is then 1. Results go to $OUT/gpu.md (default benchmarks/out), as Markdown for docs/benchmarks.md, and
# progress to gpu.log beside it. --smoke runs every step on a CPU, with tiny data.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

smoke='' minutes='' model='' steps=wheels,machine,training,tests,folds
while (($#)); do
  case $1 in
    --smoke) smoke=1 ;;
    --minutes | --model | --steps) declare "${1#--}=${2:?"$1 needs a value"}" && shift ;;
    *) sed -n '2,8s/^# \?//p' "$0" >&2 && exit 2 ;;
  esac
  shift
done
# A busy CPU may take its time.
minutes=${minutes:-$([[ -n $smoke ]] && echo 60 || echo 12)}
total=$((minutes * 60)) failed=0 ended=''
out=${OUT:-benchmarks/out} carried=benchmarks/gpu work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" && : >"$out/gpu.md" && : >"$out/gpu.log"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$work/site" python=python3
[[ -n $smoke ]] && export CUDA_VISIBLE_DEVICES=''

# step NAME LIMIT COMMAND...: at most LIMIT seconds, and no more than are left. Its stdout is a result.
step() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  [[ ",$steps," == *",$name,"* ]] || return
  ((limit = limit < total - SECONDS ? limit : total - SECONDS))
  printf '\n== %s, at most %d s\n' "$name" "$limit" >&2
  printf '\n### %s\n\n' "$name" >>"$out/gpu.md"
  code=124
  if ((limit > 0)); then
    timeout --kill-after=10 "$limit" "$@" 2> >(tee -a "$out/gpu.log" >&2) | tee -a "$out/gpu.md"
    code=${PIPESTATUS[0]}
  fi
  case $code in 0) code=ok ;; 124 | 137) code="out of time" failed=1 ;; *) code="failed with $code" failed=1 ;; esac
  ended+="| $name | $code | $((SECONDS - began)) |"$'\n'
  printf '== %s: %s after %d s\n' "$name" "$code" $((SECONDS - began)) >&2
  [[ $code == ok ]] || printf '\nThis step is not complete: %s after %d s.\n' "$code" $((SECONDS - began)) >>"$out/gpu.md"
}

run_tests() {
  echo '| test | |'
  echo '|---|---|'
  "$python" -m pytest tests/gpu -v --durations=5 -p no:cacheprovider 2>&1 | tee >(cat >&2) |
    sed -nE 's/^(tests\S+) (PASSED|FAILED|ERROR|SKIPPED).*/| `\1` | \2 |/p'
}
export -f run_tests

if [[ -z $smoke ]] && compgen -G "$carried/wheels/*.whl" >/dev/null; then
  step wheels 90 python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$work/site" "$carried"/wheels/*.whl
fi
found=''
for candidate in .venv/bin/python python3; do
  wanted='import torch, sys; sys.exit(not (sys.argv[1:] or torch.cuda.is_available()))'
  "$candidate" -c "$wanted" $smoke 2>/dev/null && found=1 python=$candidate && break
done
[[ -n $found ]] || { echo "error: no Python here has a torch that sees a GPU; --smoke tries the steps on a CPU" >&2 && exit 2; }

step machine 60 "$python" benchmarks/gpu_machine.py
# Training may take 38 % of the time, the tests 25 %, the folds what is left.
if [[ -n $smoke ]]; then
  step training 300 "$python" benchmarks/training.py --model "${model:-cnn}" --clips 40 --clip-length 0.5 \
    --batch-size 8 --epochs 2 --rounds 1
else
  limit=$((total * 38 / 100))
  step training $limit "$python" benchmarks/training.py --model "${model:-resnetish18}" --clip-length 5 \
    --sample-rate 44100 --hop-length 441 --clips 2560 --batch-size 128 --compile --seconds $((limit * 8 / 10))
fi
step tests $((total / 4)) bash -o pipefail -c run_tests
step folds $((total - SECONDS)) "$python" benchmarks/gpu_folds.py train "$carried" --output "$work/folds" \
  --seconds $((total - SECONDS - 15)) ${smoke:+--smoke}

printf '\n### steps\n\n| step | | seconds |\n|---|---|---|\n%s' "$ended" | tee -a "$out/gpu.md"
echo "results: $out/gpu.md" >&2
exit $failed
