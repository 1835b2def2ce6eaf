#!/usr/bin/env python3
"""Whole-model step times of decoder shapes on one GPU, with PyTorch: what the simulator's steps are held to.

    pytorch_steps.py SHAPE... > steps.json

A SHAPE is one of SHAPES below. Weights, activations and caches are random bf16. A decode step is one CUDA graph: batch x
context, every sequence attends to `context` tokens, greedy token from the logits. A prefill is one sequence of `context`
tokens, eager launches, logits of the last position. Attention is tried with the backends FlashAttention and cuDNN.
Element-wise parts are compiled. Times are medians of the GPU's events, in microseconds.
"""
import json
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# layers, hidden, heads, KV heads, head size, intermediate, vocabulary
SHAPES = {
    "llama-3-8b": (32, 4096, 32, 8, 128, 14336, 128256),
    "llama-2-13b": (40, 5120, 40, 40, 128, 13824, 32000),
    "qwen2.5-14b": (48, 5120, 40, 8, 128, 13824, 152064),
    "qwen2.5-32b": (64, 5120, 40, 8, 128, 27648, 152064),
    "qwen3-4b": (36, 2560, 32, 8, 128, 9728, 151936),
}
DECODE = [(1, 512), (1, 8192), (4, 2048), (16, 512), (16, 2048), (16, 8192), (64, 512), (64, 2048), (128, 1024)]
PREFILL = [512, 2048, 8192, 16384]
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
GPU = torch.device("cuda")


@torch.compile
def norm(x, residual, weight):
    residual = residual + x
    y = residual.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
    return y.to(x.dtype) * weight, residual


@torch.compile
def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


@torch.compile
def gate(x):
    a, b = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(a) * b


class Model:
    def __init__(self, shape):
        self.layers, self.hidden, self.heads, self.kv, self.d, self.inter, self.vocab = shape
        random = lambda *size: torch.randn(*size, device=GPU, dtype=torch.bfloat16) * 0.02
        self.qkv = [random((self.heads + 2 * self.kv) * self.d, self.hidden) for _ in range(self.layers)]
        self.out = [random(self.hidden, self.heads * self.d) for _ in range(self.layers)]
        self.up = [random(2 * self.inter, self.hidden) for _ in range(self.layers)]
        self.down = [random(self.hidden, self.inter) for _ in range(self.layers)]
        self.ones = torch.ones(self.hidden, device=GPU, dtype=torch.bfloat16)
        self.table, self.head = random(self.vocab, self.hidden), random(self.vocab, self.hidden)

    def forward(self, ids, cache, position, backend, causal, last_only):
        """ids [B, T]; cache: per layer k, v [B, Hkv, n, d], or None in prefill."""
        B, T = ids.shape
        linear = torch.nn.functional.linear
        angle = (position[:, None] / 10000 ** (torch.arange(self.d // 2, device=GPU) / (self.d // 2)))
        cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        x, residual = self.table[ids], torch.zeros(B, T, self.hidden, device=GPU, dtype=torch.bfloat16)
        for l in range(self.layers):
            y, residual = norm(x, residual, self.ones)
            qkv = linear(y, self.qkv[l]).view(B, T, self.heads + 2 * self.kv, self.d).transpose(1, 2)
            q, k, v = qkv.split((self.heads, self.kv, self.kv), dim=1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if cache:
                cache[l][0][:, :, -1:] = k
                cache[l][1][:, :, -1:] = v
                k, v = cache[l]
            with sdpa_kernel(BACKENDS[backend]):
                a = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=causal, enable_gqa=self.kv != self.heads)
            x = linear(a.transpose(1, 2).reshape(B, T, self.heads * self.d), self.out[l])
            y, residual = norm(x, residual, self.ones)
            x = linear(gate(linear(y, self.up[l])), self.down[l])
        y, _ = norm(x, residual, self.ones)
        return linear(y[:, -1:] if last_only else y, self.head).argmax(-1)


def median_us(work, repeats):
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def decode(model, batch, context, backend):
    ids = torch.randint(model.vocab, (batch, 1), device=GPU)
    cache = [tuple(torch.randn(batch, model.kv, context, model.d, device=GPU, dtype=torch.bfloat16) for _ in "kv")
             for _ in range(model.layers)]
    position = torch.tensor([context - 1.0], device=GPU)
    step = lambda: model.forward(ids, cache, position, backend, False, True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(5):
        graph.replay()
    return median_us(graph.replay, 31)


def prefill(model, context, backend):
    ids = torch.randint(model.vocab, (1, context), device=GPU)
    position = torch.arange(context, device=GPU, dtype=torch.float32)
    work = lambda: model.forward(ids, None, position, backend, True, True)
    for _ in range(3):
        work()
    return median_us(work, 9)


def smi(query):
    text = subprocess.run(["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader"],
                          capture_output=True, text=True).stdout
    return text.strip()


def main(names):
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch._dynamo.config.cache_size_limit = 256
    steps = []
    for name in names:
        model = Model(SHAPES[name])
        cases = [("decode", b, n) for b, n in DECODE] + [("prefill", 1, n) for n in PREFILL]
        for phase, batch, context in cases:
            kv_bytes = 4 * model.layers * model.kv * model.d * batch * context
            if kv_bytes > 45e9:
                continue
            for backend in BACKENDS:
                try:
                    us = decode(model, batch, context, backend) if phase == "decode" else prefill(model, context, backend)
                except RuntimeError as error:
                    print(f"{name} {phase} {batch} {context} {backend}: {error}", file=sys.stderr)
                    continue
                steps.append({"model": name, "phase": phase, "batch": batch, "context": context, "backend": backend,
                              "us": round(us, 1), "clocks": smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")})
                print(steps[-1], file=sys.stderr)
                torch.cuda.empty_cache()
        del model
        torch.cuda.empty_cache()
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "driver": smi("driver_version"),
                      "command": "reference/measure/pytorch_steps.py " + " ".join(names),
                      "clocks_unit": "SM MHz, memory MHz, W, degrees C, just after", "steps": steps}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:] or list(SHAPES))
