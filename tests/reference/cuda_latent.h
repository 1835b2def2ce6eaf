/* The part of test_cuda_kernels.c that is about latent attention and mixtures of experts. */
#ifndef KV_TESTS_REFERENCE_CUDA_LATENT_H
#define KV_TESTS_REFERENCE_CUDA_LATENT_H

/* --- grouped products ------------------------------------------------------------------------ */

/* out[N] = x[K] . weight[N][K], in the twin's order of sums. */
static void product_of_row(float *out, const float *x, const float *weight, guint K, guint N) {
  g_autofree float *turned = g_new(float, (gsize)K *N);
  for (gsize n = 0; n < N; n++)
    for (gsize k = 0; k < K; k++)
      turned[k * N + n] = weight[n * K + k];
  kv_host_linear(out, x, turned, NULL, 1, K, N);
}

/* All rows through all groups, as heads are. */
static void check_heads(guint R, guint G, guint K, guint N, guint tile_rows) {
  gsize x_stride = (gsize)G * K + 8, out_stride = (gsize)G * N + 16;
  g_autofree float *x = random_floats(R * x_stride, 1.0);
  g_autofree float *weight = random_floats((gsize)G * N * K, 1.0 / sqrt(K));
  KvBf16 *out = poisoned(R * out_stride * 2);
  const KvCudaGrouped product = {.out = out,
                                 .x = upload_bf16(x, R * x_stride),
                                 .weight = upload_bf16(weight, (gsize)G * N * K),
                                 .x_stride = x_stride,
                                 .x_group = K,
                                 .out_stride = out_stride,
                                 .out_group = N,
                                 .inputs = K,
                                 .outputs = N,
                                 .groups = G,
                                 .rows = R,
                                 .tile_rows = tile_rows};
  LAUNCHED(kv_cuda_grouped_product(&product, device->stream));
  g_autofree float *got = download_bf16(out, R * out_stride), *expected = g_new(float, N);
  for (gsize r = 0; r < R; r++) {
    for (gsize g = 0; g < G; g++) {
      product_of_row(expected, x + r * x_stride + g * K, weight + g * N * K, K, N);
      g_autofree char *what = g_strdup_printf("head %zu of %u, row %zu of %u, %u x %u, tile %u", g,
                                              G, r, R, K, N, tile_rows);
      assert_close(what, got + r * out_stride + g * N, expected, N, TOLERANCE);
    }
    for (gsize i = (gsize)G * N; i < out_stride; i++) /* nothing else is written */
      g_assert_true(isnan(got[r * out_stride + i]));
  }
  release();
}

static void test_grouped_products(void) {
  static const guint shapes[][4] = {{1, 1, 8, 8},      {1, 16, 128, 512}, {3, 5, 72, 24},
                                    {17, 3, 512, 128}, {64, 2, 64, 136},  {130, 2, 200, 72}};
  for (guint i = 0; i < G_N_ELEMENTS(shapes); i++)
    for (guint tile_rows = 16; tile_rows <= 64; tile_rows *= 4)
      check_heads(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], tile_rows);
}

/* --- experts --------------------------------------------------------------------------------- */

typedef struct {
  guint rows, n_experts, chosen, groups, groups_kept;
  gboolean normalized;
} Choice;

static const Choice choices[] = {
    {1, 64, 6, 0, 0, FALSE},   {1, 8, 2, 0, 0, TRUE},       {37, 64, 6, 0, 0, TRUE},
    {16, 160, 6, 8, 3, FALSE}, {300, 128, 8, 0, 0, TRUE},   {5, 7, 7, 0, 0, TRUE},
    {700, 3, 1, 3, 1, FALSE},  {2, 1024, 32, 16, 1, FALSE}, {513, 64, 6, 4, 2, FALSE},
};

/* Every (row, choice) has a place of its own among those of its expert, and the tiles cover them.
 */
static void check_places(const Choice *c, const guint32 *experts, const guint32 *places,
                         const guint32 *place_rows, const KvCudaGroupTile *tiles, guint n_tiles,
                         guint tile_rows) {
  guint n = c->rows * c->chosen, used = 0, covered = 0;
  g_autofree guint32 *expert_of = g_new(guint32, n);
  for (guint i = 0; i < n; i++)
    expert_of[i] = G_MAXUINT32;
  for (guint i = 0; i < n; i++) {
    if (experts[i] == G_MAXUINT32) {
      g_assert_cmpuint(places[i], ==, G_MAXUINT32);
      continue;
    }
    used++;
    g_assert_cmpuint(places[i], <, n);
    if (places[i] >= n)
      return;
    g_assert_cmpuint(expert_of[places[i]], ==, G_MAXUINT32);
    expert_of[places[i]] = experts[i];
    g_assert_cmpuint(place_rows[places[i]], ==, i / c->chosen);
  }
  for (guint t = 0; t < n_tiles; t++) {
    g_assert_cmpuint(tiles[t].count, >, 0);
    g_assert_cmpuint(tiles[t].count, <=, tile_rows);
    for (guint i = 0; i < tiles[t].count && tiles[t].first + i < n; i++, covered++)
      g_assert_cmpuint(expert_of[tiles[t].first + i], ==, tiles[t].group);
  }
  g_assert_cmpuint(covered, ==, used);
}

/* Router, sorting, and the two products and the sum of a mixture, each beside its twin. */
static void check_mixture(const Choice *c, guint D, guint E, guint tile_rows) {
  const KvHostRouting routing = {c->normalized, c->normalized ? 1.0f : 1.5f, c->groups,
                                 c->groups_kept};
  gsize n = (gsize)c->rows * c->chosen, X = c->n_experts;
  g_autofree float *logits = g_new(float, c->rows *X), *scores = g_new(float, X);
  g_autofree guint32 *sequences = g_new0(guint32, c->rows);
  for (gsize i = 0; i < c->rows * X; i++) /* many of them equal */
    logits[i] = (float)random_size(0, 24) / 4.0f;
  if (c->rows > 2)
    sequences[c->rows / 2] = G_MAXUINT32;
  guint32 *experts = poisoned(n * 4), *places = poisoned(n * 4), *place_rows = poisoned(n * 4);
  guint most = kv_cuda_most_expert_tiles(c->rows, c->n_experts, c->chosen, tile_rows), n_tiles = 0;
  KvCudaGroupTile *tiles = poisoned(most * sizeof *tiles);
  guint32 *gpu_n_tiles = poisoned(4);
  float *shares = poisoned(n * 4);
  LAUNCHED(kv_cuda_route(experts, shares, upload_f32(logits, c->rows * X),
                         on_device(sequences, c->rows * sizeof *sequences), c->rows, c->n_experts,
                         c->chosen, routing.normalized, routing.scale, routing.groups,
                         routing.groups_kept, device->stream));
  LAUNCHED(kv_cuda_sort_by_expert(places, place_rows, tiles, gpu_n_tiles, experts, c->rows,
                                  c->n_experts, c->chosen, tile_rows, device->stream));
  g_autofree guint32 *got = g_new(guint32, n), *expected = g_new(guint32, n);
  g_autofree guint32 *got_places = g_new(guint32, n), *got_rows = g_new(guint32, n);
  g_autofree float *expected_shares = g_new0(float, n), *got_shares = download_f32(shares, n);
  g_autofree KvCudaGroupTile *got_tiles = g_new(KvCudaGroupTile, most);
  OK(kv_cuda_download(device, got, experts, n * 4, &ok_error));
  OK(kv_cuda_download(device, got_places, places, n * 4, &ok_error));
  OK(kv_cuda_download(device, got_rows, place_rows, n * 4, &ok_error));
  OK(kv_cuda_download(device, &n_tiles, gpu_n_tiles, 4, &ok_error));
  OK(kv_cuda_download(device, got_tiles, tiles, most * sizeof *tiles, &ok_error));
  for (gsize r = 0; r < c->rows; r++)
    if (sequences[r] == G_MAXUINT32)
      memset(expected + r * c->chosen, 0xff, (gsize)c->chosen * 4);
    else
      kv_host_route(expected + r * c->chosen, expected_shares + r * c->chosen, logits + r * X,
                    c->n_experts, c->chosen, &routing, scores);
  g_assert_cmpmem(got, n * 4, expected, n * 4);
  assert_close("shares", got_shares, expected_shares, n, 1e-5);
  g_assert_cmpuint(n_tiles, <=, most);
  check_places(c, expected, got_places, got_rows, got_tiles, MIN(n_tiles, most), tile_rows);

  g_autofree float *x = random_floats((gsize)c->rows * D, 1.0);
  g_autofree float *before = random_floats((gsize)c->rows * D, 1.0);
  g_autofree float *up = random_floats(X * E * D, 1.0 / sqrt(D));
  KvBf16 *inner = poisoned(n * E * 2), *mixed = poisoned(n * D * 2);
  g_autofree float *down = random_floats(X * D * E, 1.0 / sqrt(E));
  KvCudaGrouped product = {.out = inner,
                           .x = upload_bf16(x, (gsize)c->rows * D),
                           .weight = upload_bf16(up, X * E * D),
                           .x_stride = D,
                           .out_stride = E,
                           .x_rows = place_rows,
                           .inputs = D,
                           .outputs = E,
                           .groups = c->n_experts,
                           .rows = (guint)n,
                           .tile_rows = tile_rows,
                           .tiles = tiles,
                           .n_tiles = gpu_n_tiles,
                           .most_tiles = most};
  LAUNCHED(kv_cuda_grouped_product(&product, device->stream));
  product.out = mixed;
  product.x = inner;
  product.weight = upload_bf16(down, X * D * E);
  product.x_stride = E;
  product.out_stride = D;
  product.x_rows = NULL;
  product.inputs = E;
  product.outputs = D;
  LAUNCHED(kv_cuda_grouped_product(&product, device->stream));
  float *sum = upload_f32(before, (gsize)c->rows * D);
  LAUNCHED(
      kv_cuda_combine_experts(sum, mixed, places, shares, c->rows, D, c->chosen, device->stream));
  g_autofree float *got_sum = download_f32(sum, (gsize)c->rows * D);
  g_autofree float *middle = g_new(float, E), *part = g_new(float, D);
  for (gsize r = 0; r < c->rows; r++) {
    for (guint k = 0; sequences[r] != G_MAXUINT32 && k < c->chosen; k++) {
      gsize e = expected[r * c->chosen + k];
      product_of_row(middle, x + r * D, up + e * E * D, D, E);
      for (guint i = 0; i < E; i++) /* as the kernel's result is kept */
        middle[i] = float_of(bf16_of(middle[i]));
      product_of_row(part, middle, down + e * D * E, E, D);
      for (guint i = 0; i < D; i++)
        before[r * D + i] += expected_shares[r * c->chosen + k] * part[i];
    }
    g_autofree char *what = g_strdup_printf("mixture of %u of %u, row %zu of %u, tile %u",
                                            c->chosen, c->n_experts, r, c->rows, tile_rows);
    assert_close(what, got_sum + r * D, before + r * D, D, TOLERANCE);
  }
  release();
}

static void test_experts(void) {
  for (guint i = 0; i < G_N_ELEMENTS(choices); i++)
    check_mixture(&choices[i], i % 2 ? 72 : 64, i % 3 ? 40 : 136, i % 2 ? 64 : 16);
}

/* --- latents --------------------------------------------------------------------------------- */

static const KvHostLatent latent_shapes[] = {
    {1, 8, 64, 8, 512, 0.08f},    {16, 128, 64, 128, 512, 0.072f},  {5, 64, 64, 40, 512, 0.09f},
    {20, 32, 64, 128, 512, 0.1f}, {128, 128, 64, 128, 512, 0.072f},
};

/* Queries absorbed and latents expanded, head by head, from the one matrix that both are parts of.
 */
static void check_absorption(const KvHostLatent *l, guint R) {
  gsize H = l->n_heads, width = l->nope + l->value, latent = l->rank + l->rope;
  gsize d = l->nope + l->rope, all = H * width * l->rank;
  g_autofree float *up = random_floats(all, 1.0 / sqrt(l->rank)), *turned = g_new(float, all);
  g_autofree float *q = random_floats(R * H * d, 1.0), *mixed = random_floats(R * H * l->rank, 1.0);
  g_autofree float *absorbed = g_new(float, H *latent), *expanded = g_new(float, H * l->value);
  for (gsize i = 0; i < H * width; i++) /* [rank][H (nope + value)] on the host */
    for (gsize r = 0; r < l->rank; r++)
      turned[r * H * width + i] = up[i * l->rank + r];
  KvBf16 *keys = poisoned(H * l->rank * l->nope * 2),
         *values = poisoned(H * l->rank * l->value * 2);
  KvBf16 *out = poisoned(R * H * latent * 2), *small = poisoned(R * H * l->value * 2);
  LAUNCHED(kv_cuda_split_latent_up(keys, values, upload_bf16(up, all), l->n_heads, l->nope,
                                   l->value, device->stream));
  KvCudaGrouped product = {.out = out,
                           .x = upload_bf16(q, R * H * d),
                           .weight = keys,
                           .x_stride = H * d,
                           .x_group = d,
                           .out_stride = H * latent,
                           .out_group = latent,
                           .inputs = l->nope,
                           .outputs = l->rank,
                           .groups = l->n_heads,
                           .rows = R,
                           .tile_rows = kv_cuda_grouped_tile_rows(R, 1)};
  LAUNCHED(kv_cuda_grouped_product(&product, device->stream));
  product.out = small;
  product.x = upload_bf16(mixed, R * H * l->rank);
  product.weight = values;
  product.x_stride = H * l->rank;
  product.x_group = l->rank;
  product.out_stride = H * l->value;
  product.out_group = l->value;
  product.inputs = l->rank;
  product.outputs = l->value;
  LAUNCHED(kv_cuda_grouped_product(&product, device->stream));
  g_autofree float *got = download_bf16(out, R * H * latent);
  g_autofree float *got_small = download_bf16(small, R * H * l->value);
  for (gsize r = 0; r < R; r++) {
    kv_host_absorb_query(absorbed, q + r * H * d, turned, l);
    kv_host_expand_latents(expanded, mixed + r * H * l->rank, turned, l);
    for (gsize h = 0; h < H; h++)
      assert_close("absorbed query", got + (r * H + h) * latent, absorbed + h * latent, l->rank,
                   TOLERANCE);
    assert_close("expanded latents", got_small + r * H * l->value, expanded, H * l->value,
                 TOLERANCE);
  }
  release();
}

/* What stands before attention: norms, turns and the write. */
static void check_latent_store(const KvHostLatent *l, guint block_tokens) {
  const guint32 contexts[] = {1, 37, 0, 16};
  const guint32 sequences[] = {0, 1, 1, 1, G_MAXUINT32, 3}, positions[] = {0, 34, 35, 36, 0, 15};
  enum { R = G_N_ELEMENTS(sequences) };
  gsize H = l->n_heads, d = l->nope + l->rope, width = l->rank + l->rope;
  gsize stride = H * d + width;
  Cache c;
  cache_init(&c, 1, (guint)width, block_tokens, contexts, 4, FALSE);
  g_autofree float *rows = random_floats(R * stride, 1.0), *gain = random_floats(l->rank, 1.0);
  g_autofree float *no_values = g_new0(float, width);
  KvBf16 *qkv = upload_bf16(rows, R * stride), *absorbed = poisoned(R * H * width * 2);
  LAUNCHED(kv_cuda_latent_store(absorbed, qkv, stride, qkv + H * d, stride, &c.gpu, &c.tables,
                                on_device(sequences, sizeof sequences),
                                on_device(positions, sizeof positions), upload_angles(40, l->rope),
                                upload_bf16(gain, l->rank), EPSILON, R, l->n_heads, l->nope,
                                device->stream));
  g_autofree float *got = download_bf16(absorbed, R * H * width);
  g_autofree float *pool = download_bf16(c.gpu.pool, c.floats);
  for (gsize r = 0; r < R; r++) {
    float cosine[32], sine[32], *latent = rows + r * stride + H * d;
    for (gsize h = 0; h < H; h++)
      for (gsize i = 0; i < l->rank; i++) /* left to the product */
        g_assert_true(isnan(got[(r * H + h) * width + i]));
    if (sequences[r] == G_MAXUINT32)
      continue;
    kv_host_rotary_angles(cosine, sine, positions[r], l->rope, &rotary);
    kv_host_rms_norm(latent, latent, gain, EPSILON, 1, l->rank);
    kv_host_rotary_pairs(latent + l->rank, cosine, sine, l->rope);
    kv_host_pages_write(&c.host, c.table + c.starts[sequences[r]], positions[r], latent, NULL);
    for (gsize h = 0; h < H; h++) {
      float *q = rows + r * stride + h * d + l->nope;
      kv_host_rotary_pairs(q, cosine, sine, l->rope);
      assert_close("turned query", got + (r * H + h) * width + l->rank, q, l->rope, TOLERANCE);
    }
  }
  double difference = 0.0, size = 0.0;
  for (gsize i = 0; i < c.floats; i++) {
    g_assert_cmpint(isnan(pool[i]), ==, isnan(c.host.pool[i])); /* nothing else is written */
    if (!isnan(pool[i])) {
      difference += pow((double)pool[i] - c.host.pool[i], 2);
      size += pow(c.host.pool[i], 2);
    }
  }
  g_assert_cmpfloat(sqrt(difference / size), <, TOLERANCE);
  cache_clear(&c);
}

static void check_latent_decode(const KvHostLatent *l, guint block_tokens, const guint32 *contexts,
                                guint n, guint32 split_tokens) {
  gsize H = l->n_heads, width = l->rank + l->rope, row = H * l->rank;
  guint32 longest = 1;
  Cache c;
  cache_init(&c, 1, (guint)width, block_tokens, contexts, n, TRUE);
  g_autofree float *q = random_floats(n * H * width, 1.0), *expected = g_new0(float, n *row);
  for (guint s = 0; s < n; s++) {
    g_autofree float *scores = g_new(float, contexts[s] + 1);
    longest = MAX(longest, contexts[s]);
    if (contexts[s])
      kv_host_latent_attention(expected + s * row, q + s * H * width, &c.host,
                               c.table + c.starts[s], contexts[s] - 1, 1, l, scores);
  }
  guint32 splits = (longest + split_tokens - 1) / split_tokens;
  KvBf16 *out = poisoned(n * row * 2);
  LAUNCHED(kv_cuda_latent_decode(
      out, upload_bf16(q, n * H * width), &c.gpu, &c.tables,
      on_device(contexts, n * sizeof *contexts), n, l->n_heads, l->scale,
      on_device(&split_tokens, sizeof split_tokens), splits,
      poisoned(kv_cuda_decode_scratch_bytes(n, l->n_heads, l->rank, splits)), device->stream));
  g_autofree float *got = download_bf16(out, n * row);
  for (guint s = 0; s < n; s++) {
    g_autofree char *what = g_strdup_printf("latent decode H %u block %u context %u split %u",
                                            l->n_heads, block_tokens, contexts[s], split_tokens);
    assert_close(what, got + s * row, expected + s * row, row, TOLERANCE);
  }
  cache_clear(&c);
}

/* Chunks at the ends of their contexts, with something before them or not. */
static void check_latent_prefill(const KvHostLatent *l, guint block_tokens, const guint32 *contexts,
                                 const guint32 *chunks, guint n) {
  gsize H = l->n_heads, width = l->rank + l->rope, row = H * l->rank, rows = 0;
  guint most = kv_cuda_latent_tile_tokens(l->n_heads);
  GArray *tiles = g_array_new(FALSE, FALSE, sizeof(KvCudaTile));
  Cache c;
  cache_init(&c, 1, (guint)width, block_tokens, contexts, n, TRUE);
  for (guint s = 0; s < n; rows += chunks[s++])
    for (guint32 t = 0; t < chunks[s]; t += most) {
      KvCudaTile tile = {s, (guint32)rows + t, contexts[s] - chunks[s] + t,
                         MIN(most, chunks[s] - t)};
      g_array_append_val(tiles, tile);
    }
  g_autofree float *q = random_floats(rows * H * width, 1.0), *expected = g_new(float, rows *row);
  gsize at = 0;
  for (guint s = 0; s < n; at += chunks[s++]) {
    g_autofree float *scores = g_new(float, contexts[s]);
    kv_host_latent_attention(expected + at * row, q + at * H * width, &c.host,
                             c.table + c.starts[s], contexts[s] - chunks[s], chunks[s], l, scores);
  }
  KvBf16 *out = poisoned(rows * row * 2);
  LAUNCHED(kv_cuda_latent_prefill(out, upload_bf16(q, rows * H * width), &c.gpu, &c.tables,
                                  on_device(tiles->data, tiles->len * sizeof(KvCudaTile)),
                                  tiles->len, l->n_heads, l->scale, device->stream));
  g_autofree float *got = download_bf16(out, rows * row);
  at = 0;
  for (guint s = 0; s < n; s++)
    for (guint32 t = 0; t < chunks[s]; t++, at++) {
      g_autofree char *what =
          g_strdup_printf("latent prefill H %u block %u token %u of %u", l->n_heads, block_tokens,
                          contexts[s] - chunks[s] + t, contexts[s]);
      assert_close(what, got + at * row, expected + at * row, row, TOLERANCE);
    }
  g_array_unref(tiles);
  cache_clear(&c);
}

static void test_latents(void) {
  static const guint32 contexts[] = {1, 0, 2, 63, 64, 65, 127, 128, 129, 300, 1000};
  static const guint32 prompts[] = {1, 33, 64, 130, 100}, chunks[] = {1, 33, 7, 70, 5};
  static const guint blocks[] = {16, 64, 1, 32, 16};
  for (guint i = 0; i < G_N_ELEMENTS(latent_shapes); i++) {
    const KvHostLatent *l = &latent_shapes[i];
    guint n = l->n_heads > 100 ? 6 : G_N_ELEMENTS(contexts); /* the twin is slow */
    check_absorption(l, i % 2 ? 3 : 33);
    check_latent_store(l, blocks[i]);
    check_latent_decode(l, blocks[i], contexts, n, 64);
    check_latent_decode(l, blocks[i], contexts, n, 256);
    check_latent_decode(l, blocks[i], contexts, n, 1024);
    check_latent_prefill(l, blocks[i], prompts, chunks, l->n_heads > 100 ? 3 : 5);
  }
}

static void test_latent_shapes_are_refused(void) {
  KvCudaPages pages = {.n_kv_heads = 1, .head_dim = 128};
  KvCudaTables tables = {0};
  const KvCudaGrouped odd = {.inputs = 12, .outputs = 8, .groups = 1, .rows = 1, .tile_rows = 16};
  g_assert_cmpint(kv_cuda_latent_decode(NULL, NULL, &pages, &tables, NULL, 1, 1, 1.0f, NULL, 1,
                                        NULL, device->stream),
                  ==, cudaErrorInvalidValue);
  g_assert_cmpint(
      kv_cuda_latent_prefill(NULL, NULL, &pages, &tables, NULL, 1, 1, 1.0f, device->stream), ==,
      cudaErrorInvalidValue);
  g_assert_cmpint(kv_cuda_grouped_product(&odd, device->stream), ==, cudaErrorInvalidValue);
  g_assert_cmpint(kv_cuda_route(NULL, NULL, NULL, NULL, 1, 4, 5, 0, 1.0f, 0, 0, device->stream), ==,
                  cudaErrorInvalidValue);
}

static void add_latent_tests(void) {
  g_test_add_func("/reference/cuda/grouped-products", test_grouped_products);
  g_test_add_func("/reference/cuda/experts", test_experts);
  g_test_add_func("/reference/cuda/latents", test_latents);
  g_test_add_func("/reference/cuda/bad-latent-shapes", test_latent_shapes_are_refused);
}

#endif
