/* Mixtures of experts: what routing leaves to them, and what a layer costs; figures by hand. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "models/kernels/observation.h"

/* 1 PFLOP/s, 4 TB/s, 100 multiprocessors. */
static KvDevice round_device(void) {
  KvDevice device = {.id = "round",
                     .n_sm = 100,
                     .memory_Bps = 4e12,
                     .fp32_flops = 6e13,
                     .tile_m = 128,
                     .tile_n = 256};
  device.peak_flops[KV_DTYPE_BF16] = 1e15;
  for (guint family = 0; family < KV_N_KERNELS; family++)
    device.efficiency[family][KV_DTYPE_BF16] = (KvEfficiency){.fixed_seconds = 4e-6,
                                                              .flops_share = 0.8,
                                                              .bandwidth_share = 0.9,
                                                              .sharpness = 4,
                                                              .fill_share = 0.5};
  return device;
}

static void assert_near(double value, double expected, double tolerance) {
  if (!(fabs(value - expected) <= tolerance * fabs(expected)))
    g_error("%.9g is not within %g of %.9g", value, tolerance, expected);
}

static void test_experts_touched(void) {
  assert_near(kv_kernel_experts_touched(1, 256, 8), 8, 1e-9);
  assert_near(kv_kernel_experts_touched(2, 8, 2), 8 * (1 - 0.75 * 0.75), 1e-12);
  assert_near(kv_kernel_experts_touched(1e5, 256, 8), 256, 1e-9);
  assert_near(kv_kernel_experts_touched(3, 4, 4), 4, 0);
  assert_near(kv_kernel_experts_touched(0, 8, 2), 0, 0);
}

/* Mixtral 8x7B: one token reads two experts of 3 x 4096 x 14336 weights. Beside them the router's
 * 4096 x 8, and what tokens and rows carry through the layer. */
static void test_moe_reads_the_experts_it_touches(void) {
  KvDevice device = round_device();
  KvCost one = kv_kernel_moe(&device, KV_DTYPE_BF16, 2, 1, 4096, 14336, TRUE, 8, 2);
  double expert_bytes = 2. * 3 * 4096 * 14336;
  double token_bytes = 6. * 4096, row_bytes = 6. * 4096 + 4. * 2 * 14336 + 4. * 14336;
  double router_bytes = 2. * 4096 * 8 + 2. * 4096 + 2. * 8;
  assert_near(one.bytes, 2 * expert_bytes + token_bytes + 2 * row_bytes + router_bytes, 1e-9);
  assert_near(one.flops, 2 * 2 * 3. * 4096 * 14336 + 2 * 4096. * 8, 1e-9);
  KvCost many = kv_kernel_moe(&device, KV_DTYPE_BF16, 2, 64, 4096, 14336, TRUE, 8, 2);
  assert_near(many.bytes, 8 * expert_bytes, 0.03);
  assert_near(many.flops, 64 * (2 * 2 * 3. * 4096 * 14336 + 2 * 4096. * 8), 1e-9);
  g_assert_cmpfloat(many.seconds, >, 3.5 * one.seconds);
}

/* Many tokens are bound by multiplication. 4096 rows of each of 8 experts are 32 and a half tiles
 * of 128, each of which takes as long as 140 rows of 96 deeper products. What rows carry comes on
 * top. */
static void test_moe_multiplies_whole_tiles(void) {
  KvDevice device = round_device();
  KvCost prefill = kv_kernel_moe(&device, KV_DTYPE_BF16, 2, 16384, 4096, 14336, TRUE, 8, 2);
  double tile_flops = 2 * 140. * (28672. * (4096 + 96) + 4096. * (14336 + 96));
  double row_bytes = 32768 * (6. * 4096 + 12. * 14336) + 16384 * 6. * 4096;
  double router = kv_kernel_gemm(&device, KV_DTYPE_BF16, 2, 16384, 4096, 8).seconds;
  g_assert_cmpint(prefill.bound, ==, KV_BOUND_COMPUTE);
  assert_near(prefill.seconds, 8 * 32.5 * tile_flops / 8e14 + row_bytes / 3.6e12 + 4e-6 + router,
              0.01);
}

static double load_tiles(const KvExpertLoad *load, double rows) {
  guint i = 0;
  while (kv_moe_tile_rows[i] != rows)
    i++;
  return load->tiles[i];
}

static void test_expert_loads(void) {
  /* 12 tokens of 2 experts among 8: 3 rows each. 40: 10 each, two tiles of 8 or one of 16. */
  KvExpertLoad few = kv_moe_balanced_load(12, 8, 2), more = kv_moe_balanced_load(40, 8, 2);
  assert_near(few.touched, 8, 0);
  assert_near(few.rows, 24, 0);
  assert_near(load_tiles(&few, 8), 8, 0);
  assert_near(load_tiles(&more, 8), 16, 0);
  assert_near(load_tiles(&more, 16), 8, 0);
  /* 9 rows over 8 experts: one has two. 3 rows: three experts have one. */
  KvExpertLoad uneven = kv_moe_balanced_load(9, 8, 1), sparse = kv_moe_balanced_load(3, 8, 1);
  assert_near(uneven.rows, 9, 0);
  assert_near(uneven.touched, 8, 0);
  assert_near(sparse.touched, 3, 0);
  /* At random: 2 tokens of 2 experts touch 3.5 of 8. Tiles are never fewer than experts touched. */
  KvExpertLoad two = kv_moe_uniform_load(2, 8, 2);
  assert_near(two.touched, 3.5, 1e-12);
  assert_near(load_tiles(&two, 128), 3.5, 1e-6);
  KvExpertLoad large = kv_moe_uniform_load(1e6, 8, 2);
  assert_near(load_tiles(&large, 128), 2e6 / 128, 0.001);
  /* P(a Poisson of 8 is above 0, 8, 16, ...) = 0.99966 + 0.40745 + 0.00372 + ... */
  KvExpertLoad eight = kv_moe_uniform_load(512, 128, 2);
  assert_near(load_tiles(&eight, 8), 128 * (0.99966 + 0.40745 + 0.00372), 0.001);
}

/* A skewed load has as many rows, on fewer experts; of several ranks, the fullest has more than its
 * share. */
static void test_power_law_load(void) {
  KvExpertLoad all = kv_moe_power_law_load(16, 128, 4, 1.01, 1);
  assert_near(all.rows, 64, 0);
  g_assert_cmpfloat(all.touched, >, 20);
  g_assert_cmpfloat(all.touched, <, 50);
  KvExpertLoad prefill = kv_moe_power_law_load(4096, 128, 4, 1.2, 1);
  assert_near(prefill.rows, 16384, 0);
  g_assert_cmpfloat(load_tiles(&prefill, 128), >,
                    load_tiles(&(KvExpertLoad){.tiles = {[4] = 128}}, 128));
  KvExpertLoad rank = kv_moe_power_law_load(4096, 128, 4, 1.2, 8);
  g_assert_cmpfloat(rank.rows, >, 1.2 * 16384 / 8);
  g_assert_cmpfloat(rank.rows, <, 3. * 16384 / 8);
  g_assert_cmpfloat(rank.touched, <=, 16);
}

/* Launches, sorting and few blocks: a layer of one token waits for latencies that are no bytes. */
static void test_fixed_costs(void) {
  KvDevice device = round_device();
  KvEfficiency *e = &device.efficiency[KV_KERNEL_MOE][KV_DTYPE_BF16];
  KvMoeShape shape = {2048, 64, 256, TRUE};
  KvExpertLoad load = kv_moe_uniform_load(1, 256, 8);
  double before = kv_moe_cost(&device, KV_DTYPE_BF16, 2, &shape, 1, &load, 1).seconds;
  e->fixed_seconds += 3e-5;
  e->combine_seconds = 2e-6; /* for one token log2(1 + 1) times */
  double after = kv_moe_cost(&device, KV_DTYPE_BF16, 2, &shape, 1, &load, 1).seconds;
  assert_near(after - before, 3.2e-5, 1e-6);
  /* One expert's 16 tiles of columns draw 16 / 50 of the bandwidth. */
  KvMoeShape one = {2048, 2048, 1, TRUE};
  KvExpertLoad row = kv_moe_balanced_load(1, 1, 1);
  double few = kv_moe_cost(&device, KV_DTYPE_BF16, 2, &one, 1, &row, 1).seconds;
  e->fill_share = 1e-6;
  double all = kv_moe_cost(&device, KV_DTYPE_BF16, 2, &one, 1, &row, 1).seconds;
  g_assert_cmpfloat(few - all, >, 2048. * 2048 * 2 * (50. / 16 - 1) / 3.6e12);
  /* Nothing is left to a rank that no token reaches. */
  KvExpertLoad none = {0};
  g_assert_cmpfloat(kv_moe_cost(&device, KV_DTYPE_BF16, 2, &one, 1, &none, 1).seconds, ==, 0);
}

/* A device whose experts nobody measured composes them of products. */
static void test_experts_without_a_fit(void) {
  KvDevice device = round_device();
  KvMoeShape shape = {4096, 14336, 8, TRUE};
  KvExpertLoad load = kv_moe_balanced_load(64, 8, 2);
  device.efficiency[KV_KERNEL_MOE][KV_DTYPE_BF16].bandwidth_share = 0;
  KvCost cost = kv_moe_cost(&device, KV_DTYPE_BF16, 2, &shape, 64, &load, 1);
  assert_near(cost.bytes, 8 * 2. * 3 * 4096 * 14336, 0.03);
  assert_near(cost.seconds, cost.bytes / 3.6e12, 0.15);
}

static char *read_table(const char *text, GArray *rows) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-experts-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "experts.csv", NULL);
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
  g_autoptr(GError) error = NULL;
  kv_observations_read(path, rows, &error);
  char *message = error ? g_strdup(error->message + strlen(folder) + 1) : NULL;
  g_unlink(path);
  g_rmdir(folder);
  return message;
}

#define HEADER                                                                                     \
  "framework,version,device,op_name,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,"    \
  "topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency\n"

/* Rows of vLLM 0.24.0 on an H100 and of SGLang 0.5.10 on an A100, ai-dynamo/aiconfigurator
 * @095f58a, Apache-2.0; the last three are made up. */
static void test_tables_are_read(void) {
  static const char table[] = HEADER
      "VLLM,0.24.0,NVIDIA H100 80GB HBM3,moe,vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmono"
      "lithic,w4a16_mxfp4,512,2880,2880,4,128,4,1,balanced,0.2160747\n"
      "VLLM,0.24.0,NVIDIA H100 80GB HBM3,moe,vllm_unquantizedfusedmoe_triton_tritonexperts,"
      "bfloat16,16,4096,1536,8,128,1,4,power_law_1.2,0.2530368\n"
      "VLLM,0.24.0,NVIDIA H100 80GB HBM3,moe,vllm_fp8moe_triton_tritonexperts,fp8_block,64,7168,"
      "2048,8,256,8,1,balanced,0.32504\n" /* a router that keeps half of the groups: left out */
      "SGLang,0.5.10,X,moe,sglang_fused_moe_triton,bfloat16,16,4096,1536,8,128,1,4,balanced,1\n"
      "VLLM,0.24.0,X,moe,vllm_k,bfloat16,16,4096,2688,22,512,1,1,balanced,1\n"
      "VLLM,0.24.0,X,moe,vllm_k,bfloat16,16,4096,1536,8,128,1,1,power_law_1.2_eplb,1\n";
  g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(KvObservation));
  g_assert_null(read_table(table, rows));
  g_assert_cmpuint(rows->len, ==, 2);
  const KvObservation *gpt_oss = &g_array_index(rows, KvObservation, 0), *rank = gpt_oss + 1;
  g_assert_cmpint(gpt_oss->kind, ==, KV_OBSERVED_MOE);
  g_assert_cmpint(gpt_oss->dtype, ==, KV_DTYPE_MXFP4);
  assert_near(gpt_oss->seconds, 216.0747e-6, 1e-9);
  g_assert_cmpfloat(gpt_oss->experts.intermediate, ==, 720);
  g_assert_cmpfloat(gpt_oss->experts.n_experts, ==, 128);
  g_assert_cmpfloat(gpt_oss->expert_load.rows, ==, 2048);
  g_assert_cmpfloat(gpt_oss->expert_load.touched, ==, 128);
  g_assert_cmpfloat(gpt_oss->routings, ==, 1);
  g_assert_cmpfloat(rank->experts.n_experts, ==, 32);
  g_assert_cmpfloat(rank->expert_load.rows, >=, 16 * 8 / 4);
  g_assert_cmpfloat(rank->routings, ==, 5);
  g_autofree char *wrong =
      read_table(HEADER "V,0,X,moe,k,bfloat16,16,0,1536,8,128,1,1,balanced,1\n", rows);
  g_assert_cmpstr(wrong, ==,
                  "experts.csv:2: column 'hidden_size' holds '0', expected a number above 0");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/experts/touched", test_experts_touched);
  g_test_add_func("/experts/bytes", test_moe_reads_the_experts_it_touches);
  g_test_add_func("/experts/tiles", test_moe_multiplies_whole_tiles);
  g_test_add_func("/experts/loads", test_expert_loads);
  g_test_add_func("/experts/power-law", test_power_law_load);
  g_test_add_func("/experts/fixed", test_fixed_costs);
  g_test_add_func("/experts/without-a-fit", test_experts_without_a_fit);
  g_test_add_func("/experts/tables", test_tables_are_read);
  return g_test_run();
}
