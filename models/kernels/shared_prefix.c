#include "models/kernels/kernels.h"

/* Hydragen (arXiv:2402.05099), section 3: softmax attention over a prefix that several sequences
 * share and over what each has of its own are two calls, whose outputs are combined by their
 * normalizers. To the first call the sharers are more queries of one sequence, so the prefix is
 * read once. */
KvCost kv_kernel_shared_prefix_attention(const KvDevice *device, KvDtype dtype,
                                         const KvDecodeAttention *own, double sharers,
                                         double shared_tokens, double shared_read_bytes) {
  double per_token = own->mean_tokens > 0.0 ? own->flops / (own->batch * own->mean_tokens) : 0.0;
  KvDecodeAttention prefix = {.batch = own->batch / sharers,
                              .read_bytes = shared_read_bytes,
                              .flops = own->batch * shared_tokens * per_token,
                              .n_kv_heads = own->n_kv_heads,
                              .group = own->group * sharers,
                              .mean_tokens = shared_tokens};
  KvCost sum = kv_kernel_decode_attention(device, dtype, own);
  KvCost shared = kv_kernel_decode_attention(device, dtype, &prefix);
  /* The combination reads two outputs and writes one, fp32: a query row and head is flops / (4
   * tokens) elements wide. */
  KvCost combined = kv_kernel_elementwise(device, own->batch * per_token / 4.0 * 3.0 * 4.0);
  sum.seconds += shared.seconds + combined.seconds;
  sum.flops += shared.flops;
  sum.bytes += shared.bytes + combined.bytes;
  return sum;
}
