/* What stands between the QKV product and attention: normalized heads (Qwen3), rotary positions,
 * and the write of keys and values to their block, in one pass over the rows. Twins:
 * kv_host_rms_norm() by head, kv_host_rotary(), kv_host_pages_write(). */
#include "reference/cuda/bf16.cuh"
#include "reference/cuda/launch.cuh"

enum { WARPS = 8 };

/* Where the `slot`-th token of block `block` keeps head `head`'s keys. */
static __device__ __forceinline__ KvBf16 *key_slot(const KvCudaPages &pages, uint32_t block,
                                                   uint32_t head, uint32_t slot) {
  return pages.pool + block * pages.block_elements +
         (((uint64_t)head << pages.block_shift) + slot) * pages.head_dim;
}

/* Two neighbours and their partners half a head later, of a head whose halves are pairs. */
static __device__ __forceinline__ void turn_pair(KvBf16 *target, const KvBf16 *x, uint32_t half,
                                                 uint32_t i, const KvBf16 *gain, float scale,
                                                 const float2 *angles) {
  uint32_t first = *(const uint32_t *)(x + i), second = *(const uint32_t *)(x + half + i);
  float a[2] = {low_float(first) * scale, high_float(first) * scale};
  float b[2] = {low_float(second) * scale, high_float(second) * scale};
  if (gain) {
    uint32_t of_first = *(const uint32_t *)(gain + i),
             of_second = *(const uint32_t *)(gain + half + i);
    a[0] *= low_float(of_first);
    a[1] *= high_float(of_first);
    b[0] *= low_float(of_second);
    b[1] *= high_float(of_second);
  }
  if (angles) {
    float4 turn = *(const float4 *)(angles + i);
    float turned[2] = {a[0] * turn.x - b[0] * turn.y, a[1] * turn.z - b[1] * turn.w};
    b[0] = b[0] * turn.x + a[0] * turn.y;
    b[1] = b[1] * turn.z + a[1] * turn.w;
    a[0] = turned[0];
    a[1] = turned[1];
  }
  *(uint32_t *)(target + i) = pack_bf16(a[0], a[1]);
  *(uint32_t *)(target + half + i) = pack_bf16(b[0], b[1]);
}

/* One warp a head of a row of qkv[R][H + 2 Hkv][d]; a lane holds elements of the first half
 * and their partners in the second, in pairs where halves are even. grid (R, heads / WARPS). */
static __global__ void __launch_bounds__(32 * WARPS)
    rotate_and_store(KvBf16 *qkv, const KvCudaPages pages, const KvCudaTables tables,
                     const uint32_t *row_sequences, const uint32_t *positions, const float2 *angles,
                     const KvBf16 *query_norm, const KvBf16 *key_norm, float epsilon,
                     uint32_t n_heads) {
  await_previous();
  uint32_t row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t d = pages.head_dim, heads = n_heads + 2 * pages.n_kv_heads;
  uint32_t sequence = row_sequences[row];
  if (head >= heads || sequence == UINT32_MAX)
    return;
  KvBf16 *x = qkv + ((uint64_t)row * heads + head) * d, *target = x;
  uint32_t position = positions[row];
  if (head >= n_heads && pages.pool) {
    uint32_t slot = position & ((1u << pages.block_shift) - 1);
    uint32_t block = tables.table[tables.table_starts[sequence] + (position >> pages.block_shift)];
    uint32_t kv = head - n_heads;
    target = kv < pages.n_kv_heads
                 ? key_slot(pages, block, kv, slot)
                 : key_slot(pages, block, kv - pages.n_kv_heads, slot) + pages.value_offset;
  }
  if (head >= n_heads + pages.n_kv_heads) { /* a value */
    if (d % 4 == 0)
      for (uint32_t i = lane; i < d / 4; i += 32)
        ((uint2 *)target)[i] = ((const uint2 *)x)[i];
    else
      for (uint32_t i = lane; i < d; i += 32)
        target[i] = x[i];
    return;
  }
  const KvBf16 *gain = head < n_heads ? query_norm : key_norm;
  float scale = 1.0f;
  if (gain) {
    float squares = 0.0f;
    for (uint32_t i = lane; i < d; i += 32)
      squares += to_float(x[i]) * to_float(x[i]);
    scale = rsqrtf(warp_sum(squares) / (float)d + epsilon);
  }
  uint32_t half = d / 2;
  if (d % 4 == 0) {
    for (uint32_t i = 2 * lane; i < half; i += 64)
      turn_pair(target, x, half, i, gain, scale,
                angles ? angles + (uint64_t)position * half : nullptr);
    return;
  }
  for (uint32_t i = lane; i < d - half; i += 32) { /* an odd head's middle has no partner */
    float a = to_float(x[i]) * scale * (gain ? to_float(gain[i]) : 1.0f), b = 0.0f;
    uint32_t partner = i + (d - half);
    if (partner < d)
      b = to_float(x[partner]) * scale * (gain ? to_float(gain[partner]) : 1.0f);
    if (angles) {
      float2 turn = angles[(uint64_t)position * half + i];
      float turned = a * turn.x - b * turn.y;
      b = b * turn.x + a * turn.y;
      a = turned;
    }
    target[i] = to_bf16(a);
    if (partner < d)
      target[partner] = to_bf16(b);
  }
}

cudaError_t kv_cuda_rotate_and_store(KvBf16 *qkv, const KvCudaPages *pages,
                                     const KvCudaTables *tables, const uint32_t *row_sequences,
                                     const uint32_t *positions, const float2 *angles,
                                     const KvBf16 *query_norm, const KvBf16 *key_norm,
                                     float epsilon, uint32_t rows, uint32_t n_heads,
                                     cudaStream_t stream) {
  if (rows == 0)
    return cudaSuccess;
  if (angles && pages->head_dim % 2)
    return cudaErrorInvalidValue;
  dim3 grid(rows, (n_heads + 2 * pages->n_kv_heads + WARPS - 1) / WARPS);
  return launch_early(rotate_and_store, grid, 32 * WARPS, 0, stream, 1, qkv, *pages, *tables,
                      row_sequences, positions, angles, query_norm, key_norm, epsilon, n_heads);
}
