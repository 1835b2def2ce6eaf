#include "sim/engine/mixed_attention.h"

#include <math.h>
#include <string.h>

#include "models/kernels/roofline.h"

static const double PACKED_ROWS = 128.0, UNPACKED_ROWS = 64.0;

KvMixedAttention kv_mixed_attention_of(const KvDevice *device) {
  static const struct {
    const char *architecture;
    KvMixedAttention kind;
  } generations[] = {
      {"sm_90", KV_MIXED_PACKED},    {"sm_100", KV_MIXED_APART},  {"sm_103", KV_MIXED_APART},
      {"sm_120", KV_MIXED_UNPACKED}, {"sm_8", KV_MIXED_UNPACKED},
  };
  for (guint i = 0; device->architecture && i < G_N_ELEMENTS(generations); i++)
    if (strstr(device->architecture, generations[i].architecture))
      return generations[i].kind;
  return KV_MIXED_APART;
}

double kv_mixed_attention_seconds(const KvDevice *device, KvMixedAttention kind, KvDtype format,
                                  double read_bytes, double flops, double n_kv_heads,
                                  double group) {
  const KvEfficiency *multiply =
      kv_roofline_efficiency(device, KV_KERNEL_PREFILL_ATTENTION, KV_DTYPE_BF16);
  const KvEfficiency *read = kv_roofline_efficiency(device, KV_KERNEL_DECODE_ATTENTION, format);
  double rows = kind == KV_MIXED_PACKED ? PACKED_ROWS / fmin(group, PACKED_ROWS) : UNPACKED_ROWS;
  double compute = flops * rows / (kv_roofline_peak(device, KV_DTYPE_BF16) * multiply->flops_share);
  double head_bytes = read_bytes / n_kv_heads;
  double missed = head_bytes > device->l2_bytes ? 1.0 - device->l2_bytes / head_bytes : 0.0;
  double rereads = kind == KV_MIXED_UNPACKED ? (group - 1.0) * missed : 0.0;
  double memory = read_bytes * (1.0 + rereads) / (device->memory_Bps * read->bandwidth_share);
  return kv_smooth_max(compute, memory, 4.0);
}
