#!/usr/bin/env python3
"""Our logits beside those of transformers, on small checkpoints with random weights that are made here.

    compare_logits.py CUDA_LOGITS OUT.json [TOKENS]

CUDA_LOGITS is the program built from cuda_logits.c. For each of the families below: a bf16 checkpoint, TOKENS (2000) random
tokens computed in chunks, and at every position ||ours - theirs|| / ||theirs|| against transformers in fp32 on the same
weights; beside it the error of transformers' own bf16 run. Exit status 1 if any position is over 1e-2. Weights have the spread
that transformers gives new models. With three times that (SHARP) attention is sharp and magnifies every rounding of bf16: there
no position may be further off than the worst of transformers' own bf16. Where a router chooses
some of its experts, two shares that are nearly equal may change places in bf16, and another expert is computed: of those
families (ROUTED) the median has to be under the limit. What experts compute is held to the limit at every position by the
families whose router chooses all of them.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

LIMIT = 1e-2
COMMON = dict(vocab_size=2048, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
              num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False, initializer_range=0.02,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=512, rope_theta=500000.0)

# Sizes that are small, and heads and latents as DeepSeek-V2 has them.
DEEPSEEK = dict(vocab_size=2048, hidden_size=512, intermediate_size=1408, moe_intermediate_size=256, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=512, qk_rope_head_dim=64,
                qk_nope_head_dim=128, v_head_dim=128, n_routed_experts=4, num_experts_per_tok=4, n_shared_experts=2,
                first_k_dense_replace=1, routed_scaling_factor=1.0, max_position_embeddings=4096, tie_word_embeddings=False,
                initializer_range=0.02, bos_token_id=1, eos_token_id=2, pad_token_id=0)
# Without mscale_all_dim, which transformers does not apply to the scores of this family.
YARN = dict(rope_type="yarn", factor=8.0, beta_fast=32, beta_slow=1, original_max_position_embeddings=512, rope_theta=10000.0)
SHARP = {"llama-sharp", "qwen3-sharp", "opt-sharp"}
ROUTED = {"deepseek-v2-routed", "deepseek-v2-grouped", "qwen3-moe", "mixtral"}


def families():
    """name, configuration, prefill chunk, bytes of a shard"""
    t = transformers
    yield "llama", t.LlamaConfig(**COMMON), 2000, "1GB"
    yield "llama-chunked-sharded", t.LlamaConfig(**{**COMMON, "head_dim": 128}), 333, "5MB"
    yield "llama3-rope", t.LlamaConfig(**COMMON, rope_parameters=LLAMA3), 512, "1GB"
    yield "llama-mha-tied", t.LlamaConfig(**{**COMMON, "num_key_value_heads": 8, "tie_word_embeddings": True}), 700, "1GB"
    yield "mistral-window", t.MistralConfig(**COMMON, head_dim=64, sliding_window=300), 333, "1GB"
    yield "qwen2", t.Qwen2Config(**COMMON), 1024, "1GB"
    yield "qwen3", t.Qwen3Config(**COMMON, head_dim=128), 1024, "1GB"
    yield "llama-sharp", t.LlamaConfig(**{**COMMON, "initializer_range": 0.06}), 700, "1GB"
    yield "qwen3-sharp", t.Qwen3Config(**{**COMMON, "initializer_range": 0.06}, head_dim=128), 700, "1GB"
    yield "mamba", t.MambaConfig(vocab_size=2048, hidden_size=512, state_size=16, num_hidden_layers=4), 333, "1GB"
    yield "mamba-wide", t.MambaConfig(vocab_size=2048, hidden_size=256, state_size=32, conv_kernel=3, expand=3, time_step_rank=40,
                                      num_hidden_layers=3, use_bias=True, tie_word_embeddings=False), 700, "1GB"
    yield "opt", t.OPTConfig(vocab_size=2048, hidden_size=512, ffn_dim=2048, num_hidden_layers=4, num_attention_heads=8,
                             max_position_embeddings=2048, word_embed_proj_dim=512), 512, "1GB"
    yield "opt-sharp", t.OPTConfig(vocab_size=2048, hidden_size=512, ffn_dim=2048, num_hidden_layers=4, num_attention_heads=8,
                                   max_position_embeddings=2048, word_embed_proj_dim=512, init_std=0.06), 512, "1GB"
    yield "deepseek-v2", t.DeepseekV2Config(**{**DEEPSEEK, "num_attention_heads": 16, "num_key_value_heads": 16}), 700, "1GB"
    yield "deepseek-v2-queries-yarn", t.DeepseekV2Config(**{**DEEPSEEK, "q_lora_rank": 384}, rope_parameters=YARN), 333, "1GB"
    yield "deepseek-v2-routed", t.DeepseekV2Config(
        **{**DEEPSEEK, "n_routed_experts": 64, "num_experts_per_tok": 6, "routed_scaling_factor": 2.0}), 1024, "1GB"
    yield "deepseek-v2-grouped", t.DeepseekV2Config(
        **{**DEEPSEEK, "n_routed_experts": 32, "num_experts_per_tok": 4, "topk_method": "group_limited_greedy", "n_group": 4,
           "topk_group": 2}), 2000, "1GB"
    yield "qwen3-moe", t.Qwen3MoeConfig(**COMMON, head_dim=128, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256,
                                        norm_topk_prob=True), 1024, "1GB"
    yield "mixtral", t.MixtralConfig(**COMMON, num_local_experts=8, num_experts_per_tok=2), 512, "1GB"


def environment():
    """gpu.sh says where cuBLASLt is; PyTorch, in this process, has its own."""
    return {**os.environ, "LD_LIBRARY_PATH": os.environ.get("KV_CUBLAS", os.environ.get("LD_LIBRARY_PATH", ""))}


def reference(folder, tokens, dtype):
    """Loaded anew: a model that was cast has rounded its rotary frequencies too."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").cuda().eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))[None].cuda()).logits[0].float()


def errors(ours, theirs):
    return ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).cpu().numpy()


def randomize(model):
    """Norm gains and biases that are not one and zero, so that a missing one is seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(base + 0.1 * torch.randn_like(parameter))


def compare(program, name, config, chunk, shard, n):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        randomize(model)
        model.to(torch.bfloat16).save_pretrained(folder / "model", max_shard_size=shard)
        tokens = np.random.default_rng(1).integers(3, config.vocab_size, n).astype(np.uint32)
        tokens.tofile(folder / "tokens.u32")
        ran = subprocess.run([program, str(folder / "model"), str(folder / "tokens.u32"), str(folder / "logits.f32"),
                              str(chunk), "64"], capture_output=True, text=True, env=environment())
        if ran.returncode:
            return {"family": name, "failed": ran.stderr.strip() or f"status {ran.returncode}"}
        ours = torch.from_numpy(np.fromfile(folder / "logits.f32", np.float32).reshape(n, -1)).cuda()
        exact = reference(folder / "model", tokens, torch.float32)
        error, bf16_error = errors(ours, exact), errors(reference(folder / "model", tokens, torch.bfloat16), exact)
        generated = json.loads(ran.stdout)
        return {
            "family": name, "chunk": chunk, "tokens": n,
            "files": len(list((folder / "model").glob("*.safetensors"))),
            "over_limit": float((error >= LIMIT).mean()),
            "error_largest": float(error.max()), "error_at": int(error.argmax()), "error_median": float(np.median(error)),
            "transformers_bf16_error_largest": float(bf16_error.max()),
            "transformers_bf16_error_median": float(np.median(bf16_error)),
            "argmax_equal": float((ours.argmax(1) == exact.argmax(1)).float().mean()),
            "greedy_tokens": generated["generated"], "greedy_equal_to_host": generated["equal_before_a_difference"],
        }


def is_bad(row):
    if "failed" in row:
        return True
    if row["family"] in SHARP:
        return not row["error_largest"] <= row["transformers_bf16_error_largest"]
    return not row["error_median" if row["family"] in ROUTED else "error_largest"] < LIMIT


def main():
    program, out = sys.argv[1], sys.argv[2]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for family in families():
        try:
            rows.append(compare(program, *family, n))
        except Exception as problem:  # one family must not hide the others
            rows.append({"family": family[0], "failed": f"{type(problem).__name__}: {problem}"})
        print(json.dumps(rows[-1]), flush=True)
    Path(out).write_text(json.dumps({"limit": LIMIT, "transformers": transformers.__version__,
                                     "torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    bad = [r["family"] for r in rows if is_bad(r)]
    print("logits: " + ("all under the limit" if not bad else "over the limit or failed: " + ", ".join(bad)))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
