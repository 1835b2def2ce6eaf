#!/bin/bash
# Everything that needs a GPU, in order: are the kernels right, are the logits right, how fast is it.
#
#     gpu.sh BUNDLE OUT [tests|sanitize|logits|bench|techniques|run|calibrate|validate ...]
#
# BUNDLE is what `ninja -C build cuda-bundle` made (build/cuda-bundle); OUT gets logs and JSON, runs also as one archive. Without parts, all but `sanitize`;
# what measures goes on where tests or logits failed, and the exit status says so.
set -u
bundle=$(cd "$1" && pwd) && mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- tests logits bench techniques run calibrate validate
status=0

# cuBLASLt: the toolkit's, else the one that PyTorch brought.
lt=$(ls /usr/local/cuda/lib64/libcublasLt.so.13 2>/dev/null ||
  python3 -c 'import nvidia, glob; print(glob.glob(list(nvidia.__path__)[0] + "/**/libcublasLt.so.13", recursive=True)[0])')
cublas=$(dirname "$lt")
ours() { # with our program, but not with Python, the library's folder on the path
  LD_LIBRARY_PATH="$cublas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
}

# Next-token distributions beside the whole cache's: a budget that covers everything first, which must change nothing (kivi: R
# covers everything, another kernel and fp16 beside bf16, so nearly nothing); then settings that do, on both executors. flexgen
# places and rounds nothing; attention on the CPU sums in another order.
flexgen=flexgen:hg=100:hc=0:cpu_cache_compute
agreements() {
  local failed=0
  while read -r executor model use cache prompt decoded chunk; do
    ours timeout 60 "$bundle/agreement" "$executor" "$model" "$use" "$cache" "$prompt" "$decoded" "$chunk" || failed=1
  done <<END
cuda qwen2.5-0.5b snapkv:budget=2048 bf16 1000 32 1000
cuda qwen2.5-0.5b kivi:bits=2:R=128 bf16 90 32 90
cuda qwen2.5-0.5b - fp8 1000 64 1000
cuda qwen2.5-0.5b - fp8 1000 64 300
cuda qwen2.5-0.5b kivi:bits=4 bf16 1000 64 1000
cuda qwen2.5-0.5b kivi:bits=4 bf16 1000 64 300
cuda qwen2.5-0.5b kivi:bits=2 bf16 1000 200 1000
cuda qwen2.5-0.5b snapkv:budget=512 bf16 1000 64 1000
cuda qwen2.5-0.5b snapkv:budget=512 bf16 1000 64 300
cuda qwen2.5-0.5b quest:token_budget=2048 bf16 1000 32 1000
cuda qwen2.5-0.5b quest:token_budget=512 bf16 1000 64 1000
cuda qwen2.5-0.5b quest:token_budget=512 bf16 1000 64 300
cuda qwen2.5-0.5b pyramidkv:budget=2048 bf16 1000 32 1000
cuda qwen2.5-0.5b pyramidkv:budget=256 bf16 1000 64 1000
cuda qwen2.5-0.5b pyramidkv:budget=256 bf16 1000 64 300
cuda qwen2.5-0.5b h2o:budget_total=1:output_tokens=32 bf16 1000 32 1000
cuda qwen2.5-0.5b h2o bf16 1000 64 1000
cuda qwen2.5-0.5b h2o bf16 1000 64 300
cuda qwen2.5-0.5b palu:rank_k=65536:rank_v=65536 bf16 1000 32 1000
cuda qwen2.5-0.5b palu:rank_ratio=0.9 bf16 1000 64 1000
cuda qwen2.5-0.5b palu bf16 1000 64 1000
cuda qwen2.5-0.5b palu bf16 1000 64 300
cuda qwen2.5-0.5b minicache:gamma=1 bf16 1000 32 1000
cuda qwen2.5-0.5b minicache:S=22 bf16 1000 64 1000
cuda qwen2.5-0.5b minicache:S=22 bf16 1000 64 300
cuda qwen2.5-0.5b $flexgen=off:wg=50:wc=50:cg=0:cc=100 bf16 1000 32 300
cuda qwen2.5-0.5b $flexgen=off:wg=0:wc=100:cg=40:cc=60:overlap=off bf16 1000 32 300
cuda qwen2.5-0.5b $flexgen=on:wg=100:wc=0:cg=0:cc=100 bf16 1000 32 300
host opt-125m $flexgen=off:wg=50:wc=50:cg=40:cc=60 bf16 200 16 90
host opt-125m $flexgen=on:cg=0:cc=100 bf16 200 16 90
cuda qwen2.5-0.5b infinigen:alpha=1e6:max_num_kv=1 bf16 1000 32 1000
cuda qwen2.5-0.5b infinigen:alpha=5 bf16 1000 64 300
cuda opt-125m infinigen:max_num_kv=0.5 bf16 200 16 200
host opt-125m infinigen:max_num_kv=0.5 bf16 200 16 200
cuda opt-125m - fp8 200 16 200
host opt-125m - fp8 200 16 200
cuda opt-125m kivi:bits=2 bf16 200 16 200
host opt-125m kivi:bits=2 bf16 200 16 200
cuda opt-125m snapkv:budget=128 bf16 200 16 200
host opt-125m snapkv:budget=128 bf16 200 16 200
cuda opt-125m quest:token_budget=64 bf16 200 16 200
host opt-125m quest:token_budget=64 bf16 200 16 200
cuda opt-125m pyramidkv:budget=64 bf16 200 16 200
host opt-125m pyramidkv:budget=64 bf16 200 16 200
cuda opt-125m h2o:hh_ratio=0.2 bf16 200 16 200
host opt-125m h2o:hh_ratio=0.2 bf16 200 16 200
cuda opt-125m minicache:gamma=1 bf16 200 16 200
host opt-125m minicache:gamma=1 bf16 200 16 200
cuda opt-125m minicache:S=10 bf16 200 16 200
host opt-125m minicache:S=10 bf16 200 16 200
cuda opt-125m palu:rank_k=65536:rank_v=65536 bf16 200 16 200
host opt-125m palu:rank_k=65536:rank_v=65536 bf16 200 16 200
cuda opt-125m palu:rank_ratio=0.9 bf16 200 16 200
host opt-125m palu:rank_ratio=0.9 bf16 200 16 200
END
  return $failed
}

# The kernels' tests under compute-sanitizer: what a tool finds makes its part fail, and so does a test that does not end in its
# time. cuBLASLt's own kernels are left out of all but memcheck: there are thousands, and each is instrumented.
sanitize() {
  local failed=0 result tool seconds options
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on PATH, expected the CUDA toolkit's"; return 1; }
  while read -r tool seconds options; do
    echo "--- $tool"
    # shellcheck disable=SC2086 # options are words
    KV_TEST_FEW=1 ours timeout "$seconds" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
      "$bundle/test_cuda_kernels" $options </dev/null
    result=$?
    case $result in
    0) echo "--- $tool: nothing found" ;;
    9) echo "--- $tool: found errors" ;;
    124) echo "--- $tool: not done after $seconds s" ;;
    *) echo "--- $tool: status $result" ;;
    esac
    [ $result -eq 0 ] || failed=1
  done <<END
memcheck 180
racecheck 180 -s /reference/cuda/products
synccheck 100 -s /reference/cuda/products
initcheck 100 -s /reference/cuda/products
END
  return $failed
}

# NAME TRACE OPTIONS...: serve a trace on the GPU beside its simulation; OUT/validate/NAME. The traces are not those
# that device files were fitted to, and the figures can be priced anew without the GPU: kvsim validate --steps.
# KV_RUNS: a pattern of names, of which alone are run.
one_run() {
  local name=$1 trace=$2
  shift 2
  [[ $name =~ ^(${KV_RUNS-.*})$ ]] || return 0
  ours timeout 75 "$bundle/kvsim" validate "$trace" --executor cuda --platform "$platform" "$@" -o "$out/validate/$name" \
    >"$out/validate/$name.txt" 2>&1
  local result=$?
  echo "--- $name: status $result"
  grep -E "^kvsim|steps |attention|MLP|copies|  (ttft|tpot|e2e) mean|makespan|median error|^  all " "$out/validate/$name.txt"
  return $result
}

validate() {
  local status=0 traces=$out/validate/traces platform=h200
  [ ! -f "$out/h200-kvsim.json" ] || platform=$out/h200-kvsim.json # calibrated before
  mkdir -p "$traces" && cp "$bundle/calls.jsonl" "$bundle/chat.jsonl" "$traces" || return 1
  "$bundle/kvsim" trace generate --requests=40 --rate=2 --input=lognormal:3000:2000 --answers=lognormal:150:80 \
    --block-tokens=64 --seed=5 -o "$traces/long.jsonl" || return 1
  one_run 0.5b-chat "$traces/chat.jsonl" --model qwen2.5-0.5b --requests 60 || status=1
  one_run 0.5b-swap "$traces/calls.jsonl" --model qwen2.5-0.5b --rate-scale 50 --requests 100 --use vllm:preemption_mode=swap \
    --set engine.num_blocks=900 || status=1
  one_run 1b-calls "$traces/calls.jsonl" --model llama-3.2-1b --rate-scale 4 || status=1
  one_run 8b-calls "$traces/calls.jsonl" --model llama-3.1-8b --rate-scale 2 --requests 200 || status=1
  one_run v2-lite-calls "$traces/calls.jsonl" --model deepseek-v2-lite --rate-scale 2 --requests 200 || status=1
  one_run 1b-mla "$traces/calls.jsonl" --model llama-3.2-1b --use mla:dcq=0 --rate-scale 4 --requests 100 || status=1
  one_run 1b-mqa "$traces/calls.jsonl" --model llama-3.2-1b --use gqa:num_kv_heads=1 --rate-scale 4 --requests 100 || status=1
  while read -r name options; do
    # shellcheck disable=SC2086 # options are words
    one_run "8b-$name" "$traces/calls.jsonl" --model llama-3.1-8b --rate-scale 4 --requests 50 $options </dev/null || status=1
  done <<END
exact
fp8 --set precision.cache=fp8
kivi-4bit --use kivi:bits=4 --set engine.block_tokens=32 --set engine.prefix_caching=false
kivi-2bit --use kivi:bits=2 --set engine.block_tokens=32 --set engine.prefix_caching=false
snapkv --use snapkv:budget=256
pyramidkv --use pyramidkv:budget=256
h2o --use h2o
quest --use quest:token_budget=256
infinigen --use infinigen --set engine.num_blocks=4096
palu --use palu
minicache --use minicache --set engine.prefix_caching=false
END
  one_run 8b-long "$traces/long.jsonl" --model llama-3.1-8b || status=1
  one_run 8b-closed "$traces/calls.jsonl" --model llama-3.1-8b --arrivals closed --concurrency 64 || status=1
  one_run 0.5b-snapkv "$traces/chat.jsonl" --model qwen2.5-0.5b --requests 20 --use snapkv:budget=512 --quality \
    --set engine.num_blocks=4096 || status=1
  one_run 1b-shared "$traces/calls.jsonl" --model llama-3.2-1b --rate-scale 50 --requests 100 --use chunkattention:c=64 \
    --set engine.num_blocks=4096 || status=1
  one_run 0.5b-orca "$traces/calls.jsonl" --model qwen2.5-0.5b --rate-scale 4 --requests 40 --use orca \
    --set engine.max_model_len=8192 --set engine.num_blocks=8192 || status=1
  one_run 0.5b-ssd "$traces/chat.jsonl" --model qwen2.5-0.5b --rate-scale 4 --requests 60 --set engine.num_blocks=250 \
    --set prefix_cache.tier=ssd --set prefix_cache.tier_GB=4 || status=1
  local placement
  for placement in off:cg=50:cc=50 off:cg=50:cc=50:overlap=off off:cg=0:cc=100 on:cg=0:cc=100; do
    one_run "1b-flexgen-cpu-${placement//[:=]/-}" "$traces/calls.jsonl" --model llama-3.2-1b --arrivals closed --concurrency 32 \
      --requests 33 --set arrivals.output_scale=0.2 --set engine.num_blocks=4096 \
      --use $flexgen=$placement:gbs=16:num_gpu_batches=2:wg=50:wc=50 || status=1
  done
  one_run 1b-wall "$traces/calls.jsonl" --model llama-3.2-1b --rate-scale 4 --requests 100 --pace wall || status=1
  one_run 1b-virtual "$traces/calls.jsonl" --model llama-3.2-1b --rate-scale 4 --requests 100 || status=1
  one_run mamba-calls "$traces/calls.jsonl" --model mamba-1.4b --rate-scale 4 --requests 200 --set engine.max_model_len=8192 ||
    status=1
  gzip -9f "$out"/validate/*/steps.csv
  tar -C "$out/validate" -czf "$out/validate.tar.gz" .
  return $status
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv >"$out/gpu.csv" 2>&1
cat "$out/gpu.csv"
for part; do
  echo "=== $part"
  begin=$(date +%s)
  case $part in
  tests) ours timeout 200 "$bundle/test_cuda_kernels" >"$out/tests.log" 2>&1
    worked=$?
    ours timeout 60 "$bundle/test_cuda_engine" >>"$out/tests.log" 2>&1 || worked=1
    ours timeout 100 "$bundle/test_cuda_tiers" >>"$out/tests.log" 2>&1 && [ $worked -eq 0 ] ;;
  sanitize) sanitize >"$out/sanitize.log" 2>&1 ;;
  logits) KV_CUBLAS=$cublas timeout 280 python3 "$here/compare_logits.py" "$bundle/cuda_logits" "$out/logits.json" \
    >"$out/logits.log" 2>&1 ;;
  bench) ours timeout 280 "$bundle/cuda_bench" "$out/bench.json" >"$out/bench.log" 2>&1
    worked=$?
    ours timeout 60 "$bundle/cuda_latent" "$out/latent.json" >>"$out/bench.log" 2>&1 && [ $worked -eq 0 ] ;;
  techniques) ours timeout 100 "$bundle/cuda_techniques" "$out/techniques.json" >"$out/techniques.log" 2>&1
    worked=$?
    agreements >"$out/agreement.jsonl" 2>>"$out/techniques.log" && [ $worked -eq 0 ] ;;
  run) ours timeout 120 "$bundle/kvsim" run "$bundle/chat.jsonl" --executor cuda --requests 40 --model qwen2.5-0.5b \
    --set engine.num_blocks=4096 --json -n >"$out/run.json" 2>"$out/run.log" ;;
  calibrate) rm -rf "$out/calibration"
    ours timeout 400 "$bundle/kvsim" calibrate --measure --table "$out/kernels.csv" --runs "$out/calibration" \
      -o "$out/h200-kvsim.json" >"$out/calibrate.log" 2>&1
    worked=$?
    gzip -9f "$out"/calibration/*.csv
    tar -C "$out" -czf "$out/calibration.tar.gz" calibration && [ $worked -eq 0 ] ;;
  validate) mkdir -p "$out/validate" && validate >"$out/validate.log" 2>&1 ;;
  *) echo "no part $part: tests, sanitize, logits, bench, techniques, run, calibrate or validate"; exit 2 ;;
  esac
  result=$?
  [ $result -eq 0 ] || status=1
  echo "=== $part: status $result, $(($(date +%s) - begin)) s"
  case $part in
  tests) grep -E '^(not )?ok|^# .*(error|expected)|Bail' "$out/tests.log" | cut -c1-200 | head -60 ;;
  sanitize) grep -E '^---|ERROR SUMMARY|RACECHECK SUMMARY|^========= .*(Invalid|Uninit|Race|Barrier|hazard)|^not ok|Bail' "$out/sanitize.log" |
    cut -c1-200 | head -120 ;;
  run) cat "$out/run.log"; head -c 1500 "$out/run.json" ;;
  techniques) cat "$out/techniques.log" "$out/agreement.jsonl" ;;
  *) tail -n 130 "$out/$part.log" ;;
  esac
done
nvidia-smi --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader >>"$out/gpu.csv" 2>&1
exit $status
