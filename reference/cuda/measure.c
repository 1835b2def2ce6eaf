#include "reference/cuda/measure.h"

#include "reference/cuda/timing.h"
#include "reference/host/file_store.h"
#include "sim/base/error.h"

/* What is measured, and where it is written. */
typedef struct {
  KvCudaTimer timer;
  KvOutput *table;
} Measuring;

static const char header[] =
    "kvsim_operation,dtype,kernel,m,k,n,batch,chunk,past,heads,kv_heads,head_dim,bytes,us\n";

/* --- products -------------------------------------------------------------------------------- */

/* Inputs and outputs. The last is as wide as a vocabulary, and only few rows meet it. */
static const guint products[][2] = {{1024, 1536}, {1024, 6144},  {3072, 1024},  {3072, 3072},
                                    {3072, 5120}, {3072, 16384}, {8192, 3072},  {5120, 7168},
                                    {5120, 5120}, {5120, 27648}, {13824, 5120}, {3072, 100352}};
static const guint rows[] = {1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
enum { WIDE_OUTPUTS = 65536, MOST_ROWS_OF_WIDE = 256 };

static gboolean measure_products(Measuring *m, GError **error) {
  for (guint p = 0; p < G_N_ELEMENTS(products); p++)
    for (guint r = 0; r < G_N_ELEMENTS(rows); r++) {
      double seconds;
      guint inputs = products[p][0], outputs = products[p][1];
      if (outputs >= WIDE_OUTPUTS && rows[r] > MOST_ROWS_OF_WIDE)
        continue;
      if (kv_error_if_interrupted(error) ||
          !kv_cuda_time_product(&m->timer, rows[r], inputs, outputs, &seconds, error))
        return FALSE;
      kv_output_print(m->table, "gemm,bf16,,%u,%u,%u,,,,,,,,%.6g\n", rows[r], inputs, outputs,
                      1e6 * seconds);
    }
  return TRUE;
}

/* --- attention ------------------------------------------------------------------------------- */

static const struct {
  guint n_heads, n_kv_heads, head_dim;
} heads[] = {{24, 8, 128}, {48, 8, 128}, {16, 16, 128}, {20, 4, 64}, {12, 12, 64}};

static const guint chunks[] = {16, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
static const guint pasts[] = {0, 1024, 8192};
static const guint prompt_batches[] = {1, 4};
enum { MOST_PROMPT_TOKENS = 8192, MOST_CHUNK_AFTER_PAST = 2048 };

/* The type whose efficiency a packed cache's kernel is: whatever has at most four bits is int4. */
static const char *cache_type(guint bits) {
  return bits == 0 ? "bf16" : bits == 8 ? "fp8" : "int4";
}

static gboolean measure_attention(Measuring *m, const KvCudaAttentionCase *of, GError **error) {
  double seconds;
  gboolean prompt = of->chunk > 0;
  if (kv_error_if_interrupted(error) ||
      !(prompt ? kv_cuda_time_prefill(&m->timer, of, &seconds, error)
               : kv_cuda_time_decode(&m->timer, of, &seconds, error)))
    return FALSE;
  double elements = 2.0 * of->n_kv_heads * of->head_dim * of->sequences * (of->past + of->chunk);
  kv_output_print(m->table, "%s attention,%s,kvsim,,,,%u,%u,%u,%u,%u,%u,%.0f,%.6g\n",
                  prompt ? "prefill" : "decode", cache_type(of->bits), of->sequences,
                  prompt ? of->chunk : 1, prompt ? of->past : of->past - 1, of->n_heads,
                  of->n_kv_heads, of->head_dim, elements * kv_cuda_case_element_bytes(of),
                  1e6 * seconds);
  return TRUE;
}

static gboolean measure_prefill(Measuring *m, KvCudaAttentionCase of, GError **error) {
  for (guint c = 0; c < G_N_ELEMENTS(chunks); c++)
    for (guint p = 0; p < G_N_ELEMENTS(pasts); p++)
      for (guint b = 0; b < G_N_ELEMENTS(prompt_batches); b++) {
        of.chunk = chunks[c];
        of.past = pasts[p];
        of.sequences = prompt_batches[b];
        gboolean wanted = of.sequences * of.chunk <= MOST_PROMPT_TOKENS &&
                          (of.past == 0 || of.chunk <= MOST_CHUNK_AFTER_PAST);
        if (wanted && !measure_attention(m, &of, error))
          return FALSE;
      }
  return TRUE;
}

static const guint batches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
static const guint contexts[] = {64, 256, 512, 1024, 2048, 4096, 8192, 32768};
enum { MOST_DECODE_TOKENS = 1 << 19 };

static gboolean measure_decode(Measuring *m, KvCudaAttentionCase of, GError **error) {
  for (guint b = 0; b < G_N_ELEMENTS(batches); b++)
    for (guint c = 0; c < G_N_ELEMENTS(contexts); c++) {
      of.sequences = batches[b];
      of.past = contexts[c];
      if (of.sequences * of.past <= MOST_DECODE_TOKENS && !measure_attention(m, &of, error))
        return FALSE;
    }
  return TRUE;
}

/* Packed caches: every other batch and context, for heads that their kernel has. */
static gboolean measure_packed(Measuring *m, KvCudaAttentionCase of, GError **error) {
  static const guint bits[] = {8, 4, 2};
  for (guint i = 0; i < G_N_ELEMENTS(bits); i++)
    for (guint b = 0; b < G_N_ELEMENTS(batches); b += 2)
      for (guint c = 0; c < G_N_ELEMENTS(contexts); c++) {
        of.bits = bits[i];
        of.sequences = batches[b];
        of.past = contexts[c];
        if (of.sequences * of.past <= MOST_DECODE_TOKENS && !measure_attention(m, &of, error))
          return FALSE;
      }
  return TRUE;
}

static gboolean measure_heads(Measuring *m, GError **error) {
  for (guint h = 0; h < G_N_ELEMENTS(heads); h++) {
    KvCudaAttentionCase of = {.n_heads = heads[h].n_heads,
                              .n_kv_heads = heads[h].n_kv_heads,
                              .head_dim = heads[h].head_dim};
    if (!measure_prefill(m, of, error) || !measure_decode(m, of, error) ||
        !measure_packed(m, of, error))
      return FALSE;
  }
  return TRUE;
}

/* --- the rest -------------------------------------------------------------------------------- */

static void put_bytes(Measuring *m, const char *operation, double bytes, double seconds) {
  kv_output_print(m->table, "%s,bf16,,,,,,,,,,,%.0f,%.6g\n", operation, bytes, 1e6 * seconds);
}

/* A norm reads fp32 and writes bf16; a gated activation reads two bf16 values and writes one. */
static gboolean measure_elementwise(Measuring *m, GError **error) {
  static const guint n_rows[] = {1, 8, 64, 256, 1024, 4096, 16384}, widths[] = {1024, 4096, 8192};
  for (guint r = 0; r < G_N_ELEMENTS(n_rows); r++)
    for (guint w = 0; w < G_N_ELEMENTS(widths); w++) {
      double seconds, n = (double)n_rows[r] * widths[w];
      if (!kv_cuda_time_norm(&m->timer, n_rows[r], widths[w], &seconds, error))
        return FALSE;
      put_bytes(m, "element-wise", 6.0 * n, seconds);
      if (!kv_cuda_time_activation(&m->timer, n_rows[r], widths[w], &seconds, error))
        return FALSE;
      put_bytes(m, "element-wise", 6.0 * n, seconds);
    }
  return TRUE;
}

static gboolean measure_copies(Measuring *m, GError **error) {
  static const struct {
    enum cudaMemcpyKind kind;
    const char *operation;
  } ways[] = {{cudaMemcpyDeviceToDevice, "copy inside"},
              {cudaMemcpyHostToDevice, "copy to the GPU"},
              {cudaMemcpyDeviceToHost, "copy from the GPU"}};
  const gsize least = 4096, most = (gsize)1 << 28;
  for (guint w = 0; w < G_N_ELEMENTS(ways); w++)
    for (gsize bytes = least; bytes <= most; bytes *= 4) {
      double seconds;
      if (!kv_cuda_time_copy(&m->timer, ways[w].kind, bytes, &seconds, error))
        return FALSE;
      put_bytes(m, ways[w].operation, (double)bytes, seconds);
    }
  return TRUE;
}

/* The drive, as the tier on it is used: one block at a time, and many. */
enum { DRIVE_BLOCK_BYTES = 192 << 10, DRIVE_BLOCKS = 128, DRIVE_ROUNDS = 5 };

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static gboolean measure_transfers(Measuring *m, KvFileStore *store, char *memory, guint n,
                                  gboolean write, GError **error) {
  g_autofree KvFileTransfer *transfers = g_new(KvFileTransfer, n);
  double seconds[DRIVE_ROUNDS];
  for (guint i = 0; i < n; i++)
    transfers[i] = (KvFileTransfer){write, i, memory + i * kv_file_store_slot_bytes(store)};
  for (guint r = 0; r < DRIVE_ROUNDS; r++) {
    gint64 begin = g_get_monotonic_time();
    kv_file_store_begin(store, transfers, n);
    if (!kv_file_store_wait(store, error))
      return FALSE;
    seconds[r] = 1e-6 * (double)(g_get_monotonic_time() - begin);
  }
  qsort(seconds, DRIVE_ROUNDS, sizeof *seconds, by_value);
  put_bytes(m, write ? "drive write" : "drive read", (double)n * DRIVE_BLOCK_BYTES,
            seconds[DRIVE_ROUNDS / 2]);
  return TRUE;
}

static gboolean measure_drive(Measuring *m, GError **error) {
  g_autoptr(KvFileStore) store =
      kv_file_store_new(NULL, DRIVE_BLOCK_BYTES, 16, DRIVE_BLOCKS, error);
  if (!store)
    return FALSE;
  gsize bytes = DRIVE_BLOCKS * kv_file_store_slot_bytes(store);
  char *memory = g_aligned_alloc0(1, bytes, 4096);
  gboolean done = TRUE;
  for (guint way = 0; way < 4 && done; way++) /* what is read was written */
    done = measure_transfers(m, store, memory, way % 2 ? DRIVE_BLOCKS : 1, way < 2, error);
  g_aligned_free(memory);
  return done;
}

static gboolean measure_launches(Measuring *m, GError **error) {
  static const char *const operations[] = {"launch", "graph node"};
  for (guint graph = 0; graph < G_N_ELEMENTS(operations); graph++) {
    double seconds;
    if (!kv_cuda_time_launch(&m->timer, graph, &seconds, error))
      return FALSE;
    put_bytes(m, operations[graph], 0.0, seconds);
  }
  return TRUE;
}

/* Work before a kernel is timed, with the pauses in which the clocks stay up: what the power limit
 * takes from long work is priced by its energy. */
static const double warm_seconds = 0.004;

gboolean kv_cuda_measure(KvOutput *table, char **name, GError **error) {
  Measuring m = {.table = table};
  kv_output_print(table, "%s", header);
  gboolean done = (m.timer.device = kv_cuda_device_open(error)) &&
                  (m.timer.gemm = kv_cuda_gemm_new(error)) && measure_launches(&m, error) &&
                  measure_copies(&m, error) && measure_drive(&m, error);
  m.timer.warm_seconds = warm_seconds;
  m.timer.replayed = TRUE;
  m.timer.rested = TRUE;
  done = done && measure_elementwise(&m, error) && measure_products(&m, error) &&
         measure_heads(&m, error);
  if (done)
    *name = g_strdup(m.timer.device->name);
  kv_cuda_gemm_free(m.timer.gemm);
  kv_cuda_device_close(m.timer.device);
  return done;
}
