/* What follows a finished prompt, of one layer and of several in a launch: votes, choice and
 * gathering (snapkv, pyramidkv), packing (kivi). Part of test_cuda_kernels.c. */
#ifndef KV_TESTS_REFERENCE_CUDA_FINISH_H
#define KV_TESTS_REFERENCE_CUDA_FINISH_H

#include "reference/cuda/window.h"
#include "reference/host/format.h"

/* Layers of one shape, each with its own blocks under its own table, of `tokens` tokens. */
typedef struct {
  Cache caches[KV_CUDA_TOGETHER];
  KvCudaCut cut;
} CutLayers;

static void cut_layers_init(CutLayers *x, const guint *shape, guint n_layers, guint32 prompt,
                            guint32 tokens, guint window) {
  x->cut = (KvCudaCut){.n_layers = n_layers,
                       .n_heads = shape[0],
                       .prompt = prompt,
                       .tokens = tokens,
                       .window = window};
  for (guint l = 0; l < n_layers; l++) {
    Cache *c = &x->caches[l];
    cache_init(c, shape[1], shape[2], 16, &tokens, 1, TRUE);
    x->cut.layers[l] = (KvCudaCutLayer){.pool = c->gpu.pool,
                                        .to = c->gpu.pool,
                                        .table = c->tables.table,
                                        .to_table = c->tables.table};
  }
  x->cut.pages = x->caches[0].gpu;
  x->cut.pages.pool = NULL;
}

static void cut_layers_clear(CutLayers *x) {
  for (guint l = 0; l < x->cut.n_layers; l++)
    cache_clear(&x->caches[l]);
}

static void check_votes(const guint *shape, guint n_layers, guint32 prompt, guint window) {
  gsize n = shape[1] * (gsize)(prompt - window), queries = (gsize)window * shape[0] * shape[2];
  CutLayers x;
  cut_layers_init(&x, shape, n_layers, prompt, prompt, window);
  g_autofree float *q = random_floats(n_layers * queries, 1.0), *scores = g_new(float, prompt);
  g_autofree float *expected = g_new(float, n);
  for (guint l = 0; l < n_layers; l++)
    x.cut.layers[l].q = upload_bf16(q + l * queries, queries);
  float *votes = poisoned(n_layers * n * sizeof *votes);
  LAUNCHED(kv_cuda_vote(votes, &x.cut,
                        poisoned(kv_cuda_vote_scratch_bytes(n_layers, shape[0], window)),
                        device->stream));
  g_autofree float *got = download_f32(votes, n_layers * n);
  for (guint l = 0; l < n_layers; l++) {
    const Cache *c = &x.caches[l];
    kv_host_snapkv_vote(expected, q + l * queries, &c->host, c->table, prompt, shape[0], window,
                        scores);
    g_autofree char *what =
        g_strdup_printf("votes H %u Hkv %u d %u prompt %u window %u, layer %u of %u", shape[0],
                        shape[1], shape[2], prompt, window, l, n_layers);
    assert_close(what, got + l * n, expected, n, 1e-3);
  }
  cut_layers_clear(&x);
}

static void assert_same(const char *what, guint layer, const float *got, const float *expected,
                        gsize n) {
  for (gsize i = 0; i < n; i++)
    if (!(got[i] == expected[i] || (isnan(got[i]) && isnan(expected[i])))) {
      g_test_message("%s: element %" G_GSIZE_FORMAT " of layer %u is %g, expected %g", what, i,
                     layer, (double)got[i], (double)expected[i]);
      g_test_fail();
      return;
    }
}

/* A layer whose tokens went elsewhere: its own blocks are as they were, and those there hold what
 * the twin's hold after its cut. */
static void check_moved(const Cache *from, const Cache *to, const KvHostCompression *k,
                        const guint32 *kept, guint layer, guint32 prompt, guint32 tokens) {
  g_autofree float *before = download_bf16(from->gpu.pool, from->floats);
  g_autofree float *after = download_bf16(to->gpu.pool, to->floats);
  KvHostPages there = to->host;
  there.pool = after;
  assert_same("blocks that were cut from", layer, before, from->host.pool, from->floats);
  kv_host_snapkv_compact(k, &from->host, from->table, kept, prompt, tokens);
  for (guint h = 0; h < from->n_kv_heads; h++)
    for (guint32 slot = 0; slot < k->budget + tokens - prompt; slot++) {
      const float *got = kv_host_slot(&there, to->table, h, slot);
      const float *expected = kv_host_slot(&from->host, from->table, h, slot);
      assert_same("keys moved", layer, got, expected, from->head_dim);
      assert_same("values moved", layer, got + there.value_offset,
                  expected + from->host.value_offset, from->head_dim);
    }
}

/* The same votes on both sides, many of them equal: the same choice, and the same caches after it.
 * Budgets differ from layer to layer, and every second layer's tokens go to blocks elsewhere. */
static void check_cut(const guint *shape, guint n_layers, guint32 prompt, guint32 tokens,
                      guint window, guint kernel, gboolean max_pooling) {
  gsize voted = prompt - window, n = shape[1] * voted;
  KvHostCompression k = {
      .format = KV_HOST_SNAPKV, .window = window, .kernel = kernel, .max_pooling = max_pooling};
  CutLayers x;
  Cache elsewhere[KV_CUDA_TOGETHER];
  cut_layers_init(&x, shape, n_layers, prompt, tokens, window);
  for (guint l = 0; l < n_layers; l++) {
    KvCudaCutLayer *layer = &x.cut.layers[l];
    layer->budget = window + 1 + random_size(0, prompt - window - 1);
    x.cut.most = MAX(x.cut.most, layer->budget);
    if (l % 2) {
      cache_init(&elsewhere[l], shape[1], shape[2], 16, &tokens, 1, FALSE);
      layer->to = elsewhere[l].gpu.pool;
      layer->to_table = elsewhere[l].tables.table;
    }
  }
  g_autofree float *votes = g_new(float, n_layers *n);
  for (gsize i = 0; i < n_layers * n; i++)
    votes[i] = (float)random_size(0, 40) / 16.0f;
  gsize row = x.cut.most, rows = (gsize)n_layers * shape[1], bytes = rows * row * sizeof(guint32);
  g_autofree guint32 *got = g_malloc(bytes), *kept = g_new(guint32, shape[1] * row);
  guint32 *gpu_kept = poisoned(bytes);
  gsize slots = row + tokens - prompt;
  KvBf16 *scratch = poisoned(2 * sizeof(KvBf16) * rows * slots * shape[2]);
  LAUNCHED(kv_cuda_select(gpu_kept, upload_f32(votes, n_layers * n),
                          poisoned(n_layers * n * sizeof(float)), &x.cut, kernel, max_pooling,
                          device->stream));
  OK(kv_cuda_download(device, got, gpu_kept, bytes, &ok_error));
  LAUNCHED(kv_cuda_gather_kept(scratch, &x.cut, gpu_kept, device->stream));
  LAUNCHED(kv_cuda_scatter_kept(&x.cut, scratch, device->stream));
  for (guint l = 0; l < n_layers; l++) {
    const Cache *c = &x.caches[l];
    k.budget = x.cut.layers[l].budget;
    for (guint h = 0; h < shape[1]; h++) {
      kv_host_snapkv_select(&k, kept + (gsize)h * k.budget, votes + l * n + h * voted, prompt);
      g_assert_cmpmem(got + (l * shape[1] + h) * row, k.budget * sizeof *got,
                      kept + (gsize)h * k.budget, k.budget * sizeof *got);
    }
    if (l % 2) {
      check_moved(c, &elsewhere[l], &k, kept, l, prompt, tokens);
      continue;
    }
    g_autofree float *pool = download_bf16(c->gpu.pool, c->floats);
    kv_host_snapkv_compact(&k, &c->host, c->table, kept, prompt, tokens);
    assert_same("blocks that were cut", l, pool, c->host.pool, c->floats);
  }
  for (guint l = 1; l < n_layers; l += 2)
    cache_clear(&elsewhere[l]);
  cut_layers_clear(&x);
}

static void test_snapkv_cache(void) {
  static const struct {
    guint32 prompt;
    guint n_layers;
  } prompts[] = {{65, 1}, {65, KV_CUDA_TOGETHER}, {100, 3}, {300, 2}, {1025, 1}, {3000, 1}};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++)
    for (guint h = 0; h < G_N_ELEMENTS(head_shapes); h += every) {
      guint window = h % 2 ? 8 : 64;
      guint32 prompt = prompts[i].prompt;
      check_votes(head_shapes[h], prompts[i].n_layers, prompt, window);
      check_cut(head_shapes[h], prompts[i].n_layers, prompt, prompt + (h % 2) * random_size(0, 50),
                window, h % 3 ? 5 : 13, h / 2 % 2);
    }
}

/* A stack of layers whose prompt is cut as an engine does it, but without one: more than go
 * together, of two shapes; every second layer's tokens go to blocks elsewhere, in a pool that all
 * those share. Keys are levels of one vector, and queries lie along it, so that votes are equal or
 * far apart and both sides choose the same. */
enum { STACK = KV_CUDA_TOGETHER + 8, NARROW = 4, STACK_BUDGET = 60, STACK_WINDOW = 8 };

typedef struct {
  KvCudaLayer layers[STACK];
  KvCudaPages pages[STACK];
  KvHostPages host[STACK];
  KvCudaCutTarget targets[STACK];
  float *queries[STACK];
  GArray *tables; /* of guint32: elsewhere */
  KvBf16 *elsewhere;
} Stack;

static float sign_of(guint i) {
  return i % 3 ? 1.0f : -1.0f;
}

static gsize stack_queries(const Stack *x, guint l) {
  return (gsize)STACK_WINDOW * x->layers[l].attention.n_heads * 64;
}

static void stack_fill(Stack *x, const Cache *c, guint l, guint32 tokens) {
  guint kv = l < NARROW ? 1 : 2, width = kv * 64;
  gsize half = (gsize)kv * c->block_tokens * 64, floats = 2 * half * c->n_blocks;
  KvHostPages *host = &x->host[l];
  x->layers[l].attention =
      (KvAttention){.kind = KV_ATTENTION_FULL, .n_heads = 4, .n_kv_heads = kv, .head_dim = 64};
  *host = (KvHostPages){.pool = g_new(float, floats),
                        .block_floats = 2 * half,
                        .value_offset = half,
                        .block_tokens = c->block_tokens,
                        .n_kv_heads = kv,
                        .head_dim = 64};
  for (gsize i = 0; i < floats; i++)
    host->pool[i] = NAN;
  for (guint32 t = 0; t < tokens; t++) {
    g_autofree float *key = g_new(float, width), *value = random_floats(width, 1.0);
    float level = 0.0f;
    for (guint i = 0; i < width; i++) {
      if (i % 64 == 0)
        level = (float)random_size(128, 255) / 256.0f;
      key[i] = level * sign_of(i % 64);
    }
    kv_host_pages_write(host, c->table, t, key, value);
  }
  x->queries[l] = g_new(float, stack_queries(x, l));
  for (gsize i = 0; i < stack_queries(x, l); i++)
    x->queries[l][i] = sign_of(i % 64) / 4.0f;
  x->pages[l] = (KvCudaPages){.pool = upload_bf16(host->pool, floats),
                              .block_elements = 2 * half,
                              .value_offset = half,
                              .block_shift = c->gpu.block_shift,
                              .n_kv_heads = kv,
                              .head_dim = 64};
}

static void stack_init(Stack *x, const Cache *c, guint32 tokens) {
  *x = (Stack){.tables = g_array_new(FALSE, FALSE, sizeof(guint32))};
  for (guint l = 0; l < STACK; l++)
    stack_fill(x, c, l, tokens);
  x->elsewhere =
      poisoned((gsize)STACK * c->n_blocks * x->pages[STACK - 1].block_elements * sizeof(KvBf16));
  for (guint l = 0; l < STACK; l++) {
    x->targets[l] = (KvCudaCutTarget){.budget = STACK_BUDGET - l % 3,
                                      .pool = l % 2 ? x->elsewhere : x->pages[l].pool,
                                      .own_table = l % 2 == 0,
                                      .table = x->tables->len};
    for (guint32 i = 0; l % 2 && i < c->n_table; i++) {
      guint32 block = (l + 1) * c->n_blocks - 1 - i;
      g_array_append_val(x->tables, block);
    }
  }
}

/* Beside the twin, which cuts in place. */
static void stack_check(Stack *x, const Cache *c, guint l, guint32 prompt, guint32 tokens) {
  const KvHostCompression k = {.budget = x->targets[l].budget, .window = STACK_WINDOW, .kernel = 1};
  const KvHostPages *host = &x->host[l];
  gsize floats = host->block_floats * c->n_blocks, voted = prompt - STACK_WINDOW;
  guint kv = host->n_kv_heads;
  g_autofree float *votes = g_new(float, kv *voted), *scores = g_new(float, prompt);
  g_autofree float *own = download_bf16(x->pages[l].pool, floats), *there = NULL;
  g_autofree guint32 *kept = g_new(guint32, (gsize)kv * k.budget);
  kv_host_snapkv_vote(votes, x->queries[l], host, c->table, prompt, 4, STACK_WINDOW, scores);
  for (guint h = 0; h < kv; h++)
    kv_host_snapkv_select(&k, kept + (gsize)h * k.budget, votes + h * voted, prompt);
  if (l % 2)
    assert_same("blocks of a stack that were cut from", l, own, host->pool, floats);
  kv_host_snapkv_compact(&k, host, c->table, kept, prompt, tokens);
  if (l % 2 == 0) {
    assert_same("blocks of a stack", l, own, host->pool, floats);
    return;
  }
  KvHostPages seen = *host;
  const guint32 *table = (guint32 *)(void *)x->tables->data + x->targets[l].table;
  seen.pool = there = download_bf16(x->elsewhere, STACK * floats);
  for (guint h = 0; h < kv; h++)
    for (guint32 slot = 0; slot < k.budget + tokens - prompt; slot++) {
      const float *got = kv_host_slot(&seen, table, h, slot);
      const float *expected = kv_host_slot(host, c->table, h, slot);
      assert_same("keys of a stack", l, got, expected, 64);
      assert_same("values of a stack", l, got + seen.value_offset, expected + seen.value_offset,
                  64);
    }
}

/* The window's queries of all layers, in one piece that is given up with it. */
static void stack_window(const Stack *x, KvCudaWindow *window) {
  KvBf16 *memory = NULL;
  OK((memory = kv_cuda_alloc(STACK * stack_queries(x, 0) * sizeof(KvBf16), "a test's window",
                             &ok_error)) != NULL);
  window->queries = g_new(KvBf16 *, STACK);
  for (guint l = 0; l < STACK; l++) {
    window->queries[l] = memory + l * stack_queries(x, 0);
    OK(kv_cuda_copy(device, window->queries[l], upload_bf16(x->queries[l], stack_queries(x, l)),
                    stack_queries(x, l) * sizeof(KvBf16), &ok_error));
  }
}

static void test_cut_stack(void) {
  const guint32 prompt = 203, tokens = 205;
  const KvHostCompression k = {.budget = STACK_BUDGET, .window = STACK_WINDOW, .kernel = 1};
  Cache c;
  g_autofree Stack *x = g_new(Stack, 1);
  cache_init(&c, 2, 64, 16, &tokens, 1, FALSE);
  stack_init(x, &c, tokens);
  KvCudaWeights weights = {.n_layers = STACK, .layers = x->layers};
  KvCudaCache cache = {.block_tokens = 16, .layers = x->pages};
  KvCudaCompressed compressed = {
      .device = device,
      .weights = &weights,
      .cache = &cache,
      .settings = &k,
      .format = &kv_cuda_format_snapkv,
      .owners = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free)};
  const KvHostSpan span = {.block_table = c.table,
                           .n_tokens = tokens,
                           .prompt_tokens = prompt,
                           .owner = 7,
                           .last = TRUE};
  KvCudaWindow *window = kv_cuda_format_owner(&compressed, span.owner);
  double seconds = -1.0;
  stack_window(x, window);
  OK(kv_cuda_window_cut(&compressed, &span, x->targets, (guint32 *)(void *)x->tables->data,
                        x->tables->len, &seconds, &ok_error));
  g_assert_cmpfloat(seconds, >=, 0.0);
  g_assert_null(window->queries);
  for (guint l = 0; l < STACK; l++) {
    stack_check(x, &c, l, prompt, tokens);
    g_free(x->host[l].pool);
    g_free(x->queries[l]);
  }
  kv_cuda_free(compressed.scratch);
  g_hash_table_unref(compressed.owners);
  g_array_unref(x->tables);
  cache_clear(&c);
}

/* A layer's pages under the cache's table, full of random numbers. */
static KvCudaPages random_pages(const Cache *c, guint n_kv_heads, guint64 seed) {
  KvCudaPages pages = c->gpu;
  pages.n_kv_heads = n_kv_heads;
  pages.value_offset = (gsize)n_kv_heads * c->block_tokens * c->head_dim;
  pages.block_elements = 2 * pages.value_offset;
  gsize elements = pages.block_elements * c->n_blocks;
  pages.pool = on_device(NULL, elements * sizeof(KvBf16));
  LAUNCHED(kv_cuda_fill_random(pages.pool, elements, 0.0f, 1.0f, seed, device->stream));
  return pages;
}

static void assert_equal_memory(const void *a, const void *b, gsize bytes) {
  g_autofree char *x = g_malloc(bytes), *y = g_malloc(bytes);
  OK(kv_cuda_download(device, x, a, bytes, &ok_error));
  OK(kv_cuda_download(device, y, b, bytes, &ok_error));
  g_assert_true(memcmp(x, y, bytes) == 0);
}

/* Layers that are packed together, more than a launch takes and one of other heads among them,
 * hold what each of them holds that is packed alone, which check_kivi() compares to the twin. */
static void test_kivi_layers(void) {
  enum { N = KV_CUDA_TOGETHER + 3, TOKENS = 333, RINGS = 2 };
  const KvHostCompression k = {.format = KV_HOST_KIVI, .bits = 2, .group = 32, .residual = 128};
  const guint32 tokens = TOKENS;
  KvCudaPages pages[N];
  KvCudaPacked together[N], alone[N];
  Cache c;
  cache_init(&c, 2, 128, 32, &tokens, 1, FALSE);
  for (guint l = 0; l < N; l++) {
    Cache shape = c;
    shape.n_kv_heads = l == 5 ? 1 : 2;
    pages[l] = random_pages(&c, shape.n_kv_heads, l);
    together[l] = packed_beside(&shape, &k, RINGS);
    alone[l] = packed_beside(&shape, &k, RINGS);
    LAUNCHED(kv_cuda_kivi_pack(&alone[l], c.tables.table, &pages[l], c.tables.table, 1, TOKENS, 1,
                               device->stream));
  }
  for (guint again = 0; again < 2; again++)
    LAUNCHED(kv_cuda_kivi_pack(together, c.tables.table, pages, c.tables.table, 1, TOKENS, N,
                               device->stream));
  for (guint l = 0; l < N; l++) {
    assert_equal_memory(together[l].pool, alone[l].pool, alone[l].block_bytes * c.n_blocks);
    assert_equal_memory(together[l].ring, alone[l].ring,
                        RINGS * alone[l].ring_elements * sizeof(guint16));
  }
  cache_clear(&c);
}

#endif
