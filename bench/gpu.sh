#!/usr/bin/env bash
# Everything that needs a GPU, in eight minutes: the tests marked `gpu`, rollouts by each sampler, steps of GRPO beside what was announced.
#
#   [OUT=runs/gpu] [PYTHON=python3] [LIMIT=480] bench/gpu.sh [--quick]
#
# Nothing is fetched. Wheels in the folder .whl, if there is one, are unpacked beside what is installed. Each part has a time limit, its log
# and a line in $OUT/parts.jsonl; the table is $OUT/gpu.md. Without a GPU it says so and runs every part with tiny shapes on the CPU,
# as --quick does. Exit: 0 all parts ran, 1 one failed, 3 no GPU (the CPU half ran), 4 something that it needs is not installed.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-runs/gpu} python=${PYTHON:-python3} began=$SECONDS limit=${LIMIT:-480} failed=0 none=0 quick=()
[ "${1:-}" = "--quick" ] && quick=(--quick)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
mkdir -p "$out"
rm -f "$out/parts.jsonl"
if compgen -G ".whl/*.whl" > /dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 4
    export PYTHONPATH="$site:$PYTHONPATH"
fi

"$python" bench/gpu.py look --out "$out" ${quick[@]+"${quick[@]}"}
case $? in
    0) ;;
    3) echo "no GPU here: the CPU half, tiny shapes"; none=1; quick=(--quick) ;;
    *) echo "not everything is installed: carry wheels of what is missing in .whl"; exit 4 ;;
esac

part() { # seconds at most, name of the log, words: a part, if there is time
    local left=$((limit - SECONDS + began)) most=$1 log=$2
    shift 2
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 5 ]; then
        echo "$log: no time left"
        failed=1
        return
    fi
    local start=$SECONDS code=0
    timeout -k 5 "$most" "$@" > "$out/$log.log" 2>&1 || code=$?
    echo "$log: exit $code, $((SECONDS - start)) s"
    [ "$code" -ne 0 ] && { tail -n 5 "$out/$log.log"; failed=1; }
}

if [ ${#quick[@]} -eq 0 ]; then
    part 150 tests "$python" -m pytest -q -m gpu tests/fast/test_fast_static.py tests/train/test_train_device.py
else
    part 150 tests "$python" -m pytest -q tests/fast/test_fast_static.py -k "ways_to_draw or rungs"
fi
for way in static single general generate continuous; do
    part 45 "rollout-$way" "$python" bench/gpu.py rollout "$way" --out "$out" ${quick[@]+"${quick[@]}"}
done
for way in static general; do
    part 60 "step-$way" "$python" bench/gpu.py step "$way" --out "$out" ${quick[@]+"${quick[@]}"}
done
if [ ${#quick[@]} -eq 0 ]; then
    part 90 speed "$python" bench/speed/run.py rollout-b grpo-b --repeat 2 --output "$out/speed.json"
fi
"$python" bench/gpu.py table --out "$out"
[ "$failed" -ne 0 ] && exit 1
[ "$none" -ne 0 ] && exit 3
exit 0
