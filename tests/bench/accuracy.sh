#!/bin/bash
# Regenerates the table of rung 1 (operations) in docs/accuracy.md from folders of measured tables:
#
#   tests/bench/accuracy.sh MEASURED [KVSIM] [PAGE]
#
# MEASURED holds aiconfigurator/kernels, llmservingsim/kernels, vidur and h200_pytorch; KVSIM is the
# program (default build/kvsim) and PAGE the page (default docs/accuracy.md), of which the lines
# between the two markers are replaced. Every figure comes from `kvsim calibrate`.
set -eu
measured=${1:?"usage: accuracy.sh MEASURED [KVSIM] [PAGE]"}
kvsim=${2:-build/kvsim}
page=${3:-docs/accuracy.md}
kernels=$measured/aiconfigurator/kernels
profiles=$measured/llmservingsim/kernels
vidur=$measured/vidur
[ -d "$kernels" ] && [ -d "$profiles" ] && [ -d "$vidur" ] || { echo "accuracy.sh: $measured: no tables" >&2; exit 2; }

tables_of() { # the tables of a device
  case $1 in
  h100-sxm) set -- h100_sxm 0.24.0 0.24.0 2.29.2 1.3.0rc20 ;;
  a100-80gb) set -- a100_sxm 0.14.0 0.14.0 2.27.3 '' ;;
  b200) set -- b200_sxm 0.24.0 0.24.0 2.29.2 1.3.0rc20 ;;
  l40s) set -- l40s 0.24.0 0.22.0 2.27.3 '' ;;
  rtx-pro-6000-server) find "$profiles/RTXPRO6000" -name '*.csv.gz' | grep -v 'skew\|moe' | sort; return ;;
  rtx-4090) find "$profiles/RTX4090" -name '*.csv.gz' | grep -v 'skew\|moe' | sort; return ;;
  h200) ls "$measured"/h200_pytorch/*.json; return ;;
  esac
  echo "$kernels/$1/gemm/gemm_perf.vllm-$2.csv.gz"
  echo "$kernels/$1/attention/context_attention_perf.vllm-$2.csv.gz"
  echo "$kernels/$1/attention/generation_attention_perf.vllm-$2.csv.gz"
  echo "$kernels/$1/comm/custom_allreduce_perf.vllm-$3.csv.gz"
  echo "$kernels/$1/comm/nccl_perf.nccl-$4.csv.gz"
  [ -z "$5" ] || echo "$kernels/$1"/mla/{context,generation}_mla_perf.trtllm-"$5".csv.gz
}

# Score the tables $3 … of device $1 by the efficiencies of $2.
score() {
  scored=$1 like=$2
  shift 2
  "$kvsim" calibrate --device "$scored" --like "$like" --from "$@" | rows "$scored, $like"
}

# The rows of a table whose type (gemm_dtype, moe_dtype) matches a pattern, as a file of their own.
pick() {
  zcat "$kernels/$1" | awk -F, -v types="$2" 'NR == 1 || $6 ~ types' >"$work/$3"
  echo "$work/$3"
}

# Tables of experts and of quantized products, each fitted on its own: of vLLM where it has one that
# was not bound by the host.
further_tables_of() {
  case $1 in
  a100-80gb)
    pick a100_sxm/gemm/gemm_perf.trtllm-1.0.0.csv.gz '^(sq|int4_wo)$' a100-quantized.csv
    echo "$kernels/a100_sxm/moe/moe_perf.sglang-0.5.10.csv.gz"
    ;;
  h100-sxm)
    pick h100_sxm/gemm/gemm_perf.sglang-0.5.14.csv.gz '^fp8_block$' h100-block.csv
    echo "$kernels/h100_sxm/moe/moe_perf.vllm-0.24.0.csv.gz"
    ;;
  b200)
    pick b200_sxm/gemm/gemm_perf.sglang-0.5.14.csv.gz '^fp8_block$' b200-block.csv
    pick b200_sxm/moe/moe_perf.vllm-0.24.0.csv.gz '^[^_]*(_block|_wo|16_mxfp4)?$' b200-experts.csv
    pick b200_sxm/moe/moe_perf.sglang-0.5.14.csv.gz '^w4a8_mxfp4_mxfp8$' b200-experts-w4a8.csv
    ;;
  l40s) echo "$kernels/l40s/moe/moe_perf.vllm-0.24.0.csv.gz" ;;
  esac
}

# Rows "kind dtype n median p95 bias low .. high covers" of kvsim calibrate as rows of a page.
rows() {
  awk -v device="$1" '/ \.\. / {
    gsub(/ %/, "%")
    n = NF
    kind = $1
    for (i = 2; i <= n - 9; i++) kind = kind " " $i
    printf "| %s | %s | %s | %s | %s | %s | %s | %s to %s | %s |\n", device, kind, $(n-8), $(n-7), \
           $(n-6), $(n-5), $(n-4), $(n-3) "%", $(n-1), $n
  }'
}

head_of() {
  echo "| $1 | operation | type | n | median | p95 | bias | 90 % interval | covers |"
  echo "|---|---|---|---|---|---|---|---|---|"
}

section() {
  echo "### Fitted to one half of the shape families, scored on the other"
  echo
  head_of device
  for device in a100-80gb h100-sxm h200 b200 l40s rtx-pro-6000-server rtx-4090; do
    # shellcheck disable=SC2046
    "$kvsim" calibrate --device $device --from $(tables_of $device) | rows $device
    for table in $(further_tables_of $device); do
      "$kvsim" calibrate --device $device --from "$table" | rows $device
    done
  done
  echo
  echo "### Without any measurement of the device: its data sheet and another device's efficiencies"
  echo
  head_of "device, efficiencies of"
  for pair in a100-80gb,h100-sxm h100-sxm,a100-80gb b200,h100-sxm l40s,rtx-pro-6000-server \
    rtx-pro-6000-server,l40s rtx-4090,l40s h200,h100-sxm; do
    device=${pair%,*}
    # shellcheck disable=SC2046
    "$kvsim" calibrate --device "$device" --like "${pair#*,}" --from $(tables_of "$device") |
      rows "$device, ${pair#*,}"
  done
  for pair in a100-80gb,h100-sxm h100-sxm,a100-80gb h100-sxm,b200 b200,h100-sxm l40s,h100-sxm; do
    device=${pair%,*}
    # shellcheck disable=SC2046
    "$kvsim" calibrate --device "$device" --like "${pair#*,}" --from \
      $(further_tables_of "$device" | grep 'moe\|experts') | rows "$device, ${pair#*,}"
  done
  echo
  echo "### Latent attention: another engine's kernels (SGLang), and absorbed projections; nothing fitted to them"
  echo
  head_of "device, efficiencies of"
  score h100-sxm h100-sxm "$kernels/h100_sxm/mla/generation_mla_perf.sglang-0.5.14.csv.gz"
  score b200 b200 "$kernels/b200_sxm/mla/context_mla_perf.sglang-0.5.14.csv.gz" \
    "$kernels/b200_sxm/mla/generation_mla_perf.sglang-0.5.14.csv.gz"
  score h100-sxm h100-sxm "$kernels/h100_sxm/mla_bmm/mla_bmm_perf.vllm-0.24.0.csv.gz"
  score b200 b200 "$kernels/b200_sxm/mla_bmm/mla_bmm_perf.vllm-0.24.0.csv.gz"
  echo
  echo "### Uneven contexts in one batch, alone and beside a chunk, no number fitted to them"
  echo
  head_of "device, efficiencies of"
  # shellcheck disable=SC2046
  score rtx-pro-6000-server rtx-pro-6000-server $(find "$profiles/RTXPRO6000" -name 'skew.csv.gz' | sort)
  # shellcheck disable=SC2046
  score rtx-4090 rtx-4090 $(find "$profiles/RTX4090" -name 'skew.csv.gz' | sort)
  echo
  echo "### Mixture of experts, priced by the parameters of GEMM (nothing fitted)"
  echo
  head_of device
  "$kvsim" calibrate --device rtx-pro-6000-server --like rtx-pro-6000-server --from \
    $(find "$profiles/RTXPRO6000" -name 'moe.csv.gz' | sort) | rows rtx-pro-6000-server
  echo
  echo "### Another profiler's tables (Vidur: PyTorch and NCCL of 2023), nothing fitted to them"
  echo
  head_of "device, efficiencies of"
  # shellcheck disable=SC2046
  "$kvsim" calibrate --device a100-80gb --like a100-80gb --from \
    $(find "$vidur/compute/a100" "$vidur/network/a100_dgx" -name '*.csv.gz' | sort) |
    rows "a100-80gb, a100-80gb"
  # shellcheck disable=SC2046
  "$kvsim" calibrate --device a40 --like a100-80gb --from \
    $(find "$vidur/compute/a40" "$vidur/network/a40_pairwise_nvlink" -name '*.csv.gz' | sort) |
    rows "a40, a100-80gb"
}

text=$(mktemp)
work=$(mktemp -d)
trap 'rm -rf "$text" "$text.page" "$work"' EXIT
section >"$text"
awk -v text="$text" '
  /<!-- rung 1: end -->/ { inside = 0 }
  !inside { print }
  /<!-- rung 1: begin -->/ { inside = 1; while ((getline line < text) > 0) print line }
' "$page" >"$text.page"
cat "$text.page" >"$page"
