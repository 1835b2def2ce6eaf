/* Checkpoint folders written here: what they hold comes out, and what is wrong with them is said.
 */
#include <glib.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "reference/host/tensors.h"
#include "sim/base/error.h"

static char *folder;

static void write_file(const char *name, const void *bytes, gsize length) {
  g_autofree char *path = g_build_filename(folder, name, NULL);
  g_autoptr(GError) error = NULL;
  g_file_set_contents(path, bytes, (gssize)length, &error);
  g_assert_no_error(error);
}

static void begin(const char *config) {
  g_autoptr(GError) error = NULL;
  folder = g_dir_make_tmp("kvsim-checkpoint-XXXXXX", &error);
  g_assert_no_error(error);
  write_file("config.json", config, strlen(config));
}

static void end(void) {
  GDir *dir = g_dir_open(folder, 0, NULL);
  for (const char *name; (name = g_dir_read_name(dir));) {
    g_autofree char *path = g_build_filename(folder, name, NULL);
    g_assert_cmpint(g_unlink(path), ==, 0);
  }
  g_dir_close(dir);
  g_assert_cmpint(g_rmdir(folder), ==, 0);
  g_clear_pointer(&folder, g_free);
}

/* A safetensors file with that header and bytes. */
static void write_tensors(const char *name, const char *header, const void *bytes, gsize length) {
  GByteArray *file = g_byte_array_new();
  guint64 size = GUINT64_TO_LE(strlen(header));
  g_byte_array_append(file, (const guint8 *)&size, 8);
  g_byte_array_append(file, (const guint8 *)header, (guint)strlen(header));
  g_byte_array_append(file, bytes, (guint)length);
  write_file(name, file->data, file->len);
  g_byte_array_unref(file);
}

static KvCheckpoint *open_it(void) {
  g_autoptr(GError) error = NULL;
  KvCheckpoint *checkpoint = kv_checkpoint_open(folder, &error);
  g_assert_no_error(error);
  return checkpoint;
}

static void assert_refused(const char *part) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_checkpoint_open(folder, &error));
  g_assert_nonnull(error);
  if (!strstr(error->message, part))
    g_test_fail_printf("'%s' does not say '%s'", error->message, part);
}

static void test_types(void) {
  /* 1, -2.5, and a subnormal of each small type */
  const guint16 bytes[] = {0x3f80, 0xc020, 0x0001, 0x3c00, 0xc100, 0x0001};
  begin("{\"rms_norm_eps\": 1e-6, \"rope_theta\": 500000}");
  write_tensors("model.safetensors",
                "{\"b\": {\"dtype\": \"BF16\", \"shape\": [3], \"data_offsets\": [0, 6]},"
                " \"h\": {\"dtype\": \"F16\", \"shape\": [3, 1], \"data_offsets\": [6, 12]},"
                " \"__metadata__\": {\"format\": \"pt\"}}",
                bytes, sizeof bytes);
  g_assert_true(kv_checkpoint_exists(folder));
  g_autoptr(KvCheckpoint) checkpoint = open_it();
  g_autoptr(GError) error = NULL;
  KvTensor tensor;
  float x[3];
  guint16 halves[3];
  g_assert_true(kv_checkpoint_has(checkpoint, "b"));
  g_assert_false(kv_checkpoint_has(checkpoint, "__metadata__"));
  g_assert_true(kv_checkpoint_tensor(checkpoint, "b", 1, 3, &tensor, &error));
  kv_tensor_to_f32(&tensor, 0, 3, x);
  kv_tensor_to_bf16(&tensor, 1, 2, halves);
  g_assert_cmpfloat(x[0], ==, 1.0f);
  g_assert_cmpfloat(x[1], ==, -2.5f);
  g_assert_cmpuint(halves[0], ==, 0xc020);
  g_assert_cmpuint(halves[1], ==, 1);
  g_assert_true(kv_checkpoint_tensor(checkpoint, "h", 3, 1, &tensor, &error));
  kv_tensor_to_f32(&tensor, 0, 3, x);
  g_assert_cmpfloat(x[0], ==, 1.0f);
  g_assert_cmpfloat(x[1], ==, -2.5f);
  g_assert_cmpfloat(x[2], ==, 0x1p-24f);
  g_assert_cmpfloat_with_epsilon(kv_checkpoint_epsilon(checkpoint), 1e-6f, 1e-12);
  g_assert_cmpfloat(kv_checkpoint_rotary(checkpoint)->theta, ==, 500000.0);
  g_assert_false(kv_checkpoint_tensor(checkpoint, "b", 3, 1, &tensor, &error));
  g_assert_nonnull(strstr(error->message, "[3][1]"));
  end();
}

static void test_bf16_rounds_to_even(void) {
  g_assert_cmpuint(kv_bf16_from_float(1.0f), ==, 0x3f80);
  g_assert_cmpuint(kv_bf16_from_float(1.0f + 0x1p-8f), ==, 0x3f80);           /* a tie: down */
  g_assert_cmpuint(kv_bf16_from_float(1.0f + 0x1p-7f + 0x1p-8f), ==, 0x3f82); /* a tie: up */
  g_assert_cmpuint(kv_bf16_from_float(1.0f + 0x1p-8f + 0x1p-16f), ==, 0x3f81);
  g_assert_cmpuint(kv_bf16_from_float(-INFINITY), ==, 0xff80);
  g_assert_true(kv_bf16_from_float(NAN) > 0x7f80);
}

static void test_scaling(void) {
  static const char config[] =
      "{\"rope_theta\": 500000, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8,"
      " \"low_freq_factor\": 1, \"high_freq_factor\": 4, \"original_max_position_embeddings\": "
      "8192}}";
  begin(config);
  write_tensors("model.safetensors", "{}", "", 0);
  g_autoptr(KvCheckpoint) checkpoint = open_it();
  enum { D = 128, P = 10000 };
  float cosine[D / 2], sine[D / 2];
  kv_host_rotary_angles(cosine, sine, P, D, kv_checkpoint_rotary(checkpoint));
  for (guint i = 0; i < D / 2; i++) { /* written down anew, by wavelength */
    double f = pow(500000.0, -2.0 * i / D), wave = 2.0 * G_PI / f;
    double smooth = (8192.0 / wave - 1.0) / 3.0;
    double scaled = wave > 8192.0   ? f / 8.0
                    : wave < 2048.0 ? f
                                    : (1.0 - smooth) * f / 8.0 + smooth * f;
    g_assert_cmpfloat_with_epsilon(cosine[i], (float)cos(P * scaled), 1e-6);
    g_assert_cmpfloat_with_epsilon(sine[i], (float)sin(P * scaled), 1e-6);
  }
  end();
}

/* DeepSeek-V2-Lite's scaling, written down anew: which pair turns how far. */
static void test_yarn(void) {
  static const char config[] =
      "{\"kv_lora_rank\": 512, \"rope_theta\": 10000, \"rope_scaling\": {\"type\": \"yarn\","
      " \"factor\": 40, \"beta_fast\": 32, \"beta_slow\": 1, \"mscale\": 1.4,"
      " \"mscale_all_dim\": 0.707, \"original_max_position_embeddings\": 4096}}";
  begin(config);
  write_tensors("model.safetensors", "{}", "", 0);
  g_autoptr(KvCheckpoint) checkpoint = open_it();
  const KvHostRotary *rotary = kv_checkpoint_rotary(checkpoint);
  enum { D = 64, P = 1000 };
  float cosine[D / 2], sine[D / 2];
  double all = 0.1 * 0.707 * log(40.0) + 1.0, magnitude = (0.1 * 1.4 * log(40.0) + 1.0) / all;
  g_assert_cmpfloat_with_epsilon(rotary->score_scale, all * all, 1e-12);
  kv_host_rotary_angles(cosine, sine, P, D, rotary);
  for (guint i = 0; i < D / 2; i++) {
    /* 32 turns in 4096 tokens: pair 10.5; one turn: pair 22.5 */
    double f = pow(10000.0, -2.0 * i / D), kept = i <= 10 ? 1.0 : i >= 23 ? 0.0 : (23.0 - i) / 13.0;
    double angle = P * (kept * f + (1.0 - kept) * f / 40.0);
    g_assert_cmpfloat_with_epsilon(cosine[i], (float)(magnitude * cos(angle)), 1e-5);
    g_assert_cmpfloat_with_epsilon(sine[i], (float)(magnitude * sin(angle)), 1e-5);
  }
  end();
}

static void test_routing_refused(void) {
  static const char *const configs[][2] = {
      {"{\"n_routed_experts\": 8, \"scoring_func\": \"sigmoid\"}", "sigmoid"},
      {"{\"n_routed_experts\": 8, \"topk_method\": \"noaux_tc\"}", "noaux_tc"},
      {"{\"n_routed_experts\": 8, \"topk_method\": \"group_limited_greedy\"}", "n_group"},
      {"{\"num_experts\": 8, \"model_type\": \"qwen2_moe\"}", "behind a gate"},
      {"{\"kv_lora_rank\": 8, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2,"
       " \"attention_factor\": 2, \"original_max_position_embeddings\": 9}}",
       "attention_factor"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(configs); i++) {
    begin(configs[i][0]);
    write_tensors("model.safetensors", "{}", "", 0);
    assert_refused(configs[i][1]);
    end();
  }
}

static void test_broken_folders(void) {
  const guint64 huge = GUINT64_TO_LE(1000000);
  begin("{}");
  assert_refused("model.safetensors.index.json");
  write_file("model.safetensors", "abc", 3);
  assert_refused("whole safetensors file");
  write_file("model.safetensors", &huge, 8);
  assert_refused("whole safetensors file");
  write_tensors("model.safetensors", "[1]", "", 0);
  assert_refused("not an object");
  write_tensors("model.safetensors", "{\"x\": ", "", 0);
  assert_refused("model.safetensors");
  end();
  begin("{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}}");
  write_tensors("model.safetensors", "{}", "", 0);
  assert_refused("yarn");
  end();
  begin("{}");
  const char index[] = "{\"weight_map\": {\"x\": \"absent.safetensors\"}}";
  write_file("model.safetensors.index.json", index, strlen(index));
  assert_refused("absent.safetensors");
  const char outside[] = "{\"weight_map\": {\"x\": \"../absent.safetensors\"}}";
  write_file("model.safetensors.index.json", outside, strlen(outside));
  assert_refused("in this folder");
  end();
}

static void test_tensors_outside_their_file(void) {
  const float x = 1.0f;
  static const char *const headers[] = {
      "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
      "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 4]}}",
      "{\"x\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [-4, 4]}}",
      "{\"x\": {\"dtype\": \"I8\", \"shape\": [2], \"data_offsets\": [0, 2]}}",
      "{\"x\": {\"dtype\": \"F32\", \"shape\": [1, 2, 1], \"data_offsets\": [0, 8]}}",
      "{\"x\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}",
      "{\"x\": {\"dtype\": \"F32\"}}",
      "{\"x\": 3}",
      "{}",
  };
  for (guint i = 0; i < G_N_ELEMENTS(headers); i++) {
    begin("{}");
    write_tensors("model.safetensors", headers[i], &x, sizeof x);
    g_autoptr(KvCheckpoint) checkpoint = open_it();
    g_autoptr(GError) error = NULL;
    KvTensor tensor;
    g_assert_false(kv_checkpoint_tensor(checkpoint, "x", 1, 2, &tensor, &error));
    g_assert_nonnull(error);
    end();
  }
}

/* A one-layer model in two files: every matrix lands transposed, OPT's positions skip two rows. */
static void test_weights_of_a_model(void) {
  static const char config[] =
      "{\"model_type\": \"opt\", \"hidden_size\": 2, \"num_attention_heads\": 1, "
      "\"num_hidden_layers\": 1, \"ffn_dim\": 3, \"vocab_size\": 2, \"max_position_embeddings\": 1,"
      " \"word_embed_proj_dim\": 2}";
  begin(config);
  g_autoptr(GError) error = NULL;
  g_autoptr(KvModel) model = kv_model_load(folder, &error);
  g_assert_no_error(error);
  GString *index = g_string_new("{\"weight_map\": {"), *headers[2];
  GByteArray *bytes[2];
  float number = 0.0f;
  for (guint f = 0; f < 2; f++) {
    headers[f] = g_string_new("{");
    bytes[f] = g_byte_array_new();
  }
  for (guint id = 0; id < KV_N_TENSORS; id++) {
    KvTensorShape shape =
        kv_tensor_shape(model, &model->groups[0].attention, &model->groups[0].mlp, id);
    g_autofree char *name = kv_tensor_name(model, id, 0);
    guint64 rows = shape.rows + kv_tensor_skipped_rows(model, id), n = rows * shape.columns;
    if (!name || !(shape.present || shape.open) || id == KV_TENSOR_OUTPUT_BIAS)
      continue;
    guint f = id % 2, at = bytes[f]->len;
    for (guint64 i = 0; i < n; i++) {
      g_byte_array_append(bytes[f], (const guint8 *)&number, sizeof number);
      number += 1.0f;
    }
    g_string_append_printf(index, "%s\"%s\": \"part-%u.safetensors\"", number > (float)n ? "," : "",
                           name, f);
    g_string_append_printf(headers[f],
                           "%s\"%s\": {\"dtype\": \"F32\", \"shape\": [%" G_GUINT64_FORMAT
                           ", %" G_GUINT64_FORMAT "], \"data_offsets\": [%u, %u]}",
                           headers[f]->len > 1 ? "," : "", name, rows, shape.columns, at,
                           bytes[f]->len);
  }
  g_string_append(index, "}}");
  write_file("model.safetensors.index.json", index->str, index->len);
  for (guint f = 0; f < 2; f++) {
    g_autofree char *name = g_strdup_printf("part-%u.safetensors", f);
    g_string_append(headers[f], "}");
    write_tensors(name, headers[f]->str, bytes[f]->data, bytes[f]->len);
    g_string_free(headers[f], TRUE);
    g_byte_array_unref(bytes[f]);
  }
  g_string_free(index, TRUE);
  g_autoptr(KvHostWeights) weights = kv_host_weights_load(model, folder, &error);
  g_assert_no_error(error);
  const float *e = weights->embedding, *q = weights->layers[0].query;
  g_assert_cmpfloat(e[0], ==, 0.0f);
  g_assert_cmpfloat(e[3], ==, 3.0f);
  g_assert_cmpfloat(weights->positions[0], ==, 8.0f); /* 4 + two rows of two */
  g_assert_cmpfloat(q[1], ==, q[0] + 2.0f);           /* [in][out] of an [out][in] */
  g_assert_cmpfloat(q[2], ==, q[0] + 1.0f);
  g_assert_null(weights->layers[0].output_bias); /* the checkpoint decides */
  g_assert_nonnull(weights->layers[0].query_bias);
  end();
}

/* A tensor in a folder under the name that its authors give it; %u: the expert. */
typedef struct {
  const char *name;
  guint rows, columns, copies;
} Named;

/* A file of tensors whose elements count up from one tensor to the next. */
static void write_named(const Named *named, guint n) {
  g_autoptr(GString) header = g_string_new("{");
  GByteArray *bytes = g_byte_array_new();
  float number = 0.0f;
  for (guint i = 0; i < n; i++)
    for (guint copy = 0; copy < MAX(named[i].copies, 1); copy++) {
      g_auto(GStrv) parts = g_strsplit(named[i].name, "%u", 2);
      guint at = bytes->len, elements = named[i].rows * named[i].columns;
      for (guint e = 0; e < elements; e++) {
        g_byte_array_append(bytes, (const guint8 *)&number, sizeof number);
        number += 1.0f;
      }
      g_string_append_printf(header, "%s\"%s", header->len > 1 ? "," : "", parts[0]);
      if (parts[1])
        g_string_append_printf(header, "%u%s", copy, parts[1]);
      g_string_append_printf(
          header, "\": {\"dtype\": \"F32\", \"shape\": [%u, %u], \"data_offsets\": [%u, %u]}",
          named[i].rows, named[i].columns, at, bytes->len);
    }
  g_string_append(header, "}");
  write_tensors("model.safetensors", header->str, bytes->data, bytes->len);
  g_byte_array_unref(bytes);
}

static KvHostWeights *load_folder(GError **error) {
  g_autoptr(KvModel) model = kv_model_load(folder, error);
  return model ? kv_host_weights_load(model, folder, error) : NULL;
}

#define COMMON_TENSORS                                                                             \
  {"model.embed_tokens.weight", 2, 4, 1}, {"model.norm.weight", 1, 4, 1},                          \
      {"lm_head.weight", 2, 4, 1}, {"model.layers.0.input_layernorm.weight", 1, 4, 1}, {           \
    "model.layers.0.post_attention_layernorm.weight", 1, 4, 1                                      \
  }

/* One layer of DeepSeek-V2's shape: every tensor is found, and lands transposed. */
static void test_a_deepseek_folder(void) {
  static const char config[] =
      "{\"model_type\": \"deepseek_v2\", \"hidden_size\": 4, \"num_attention_heads\": 2,"
      " \"num_hidden_layers\": 1, \"intermediate_size\": 8, \"vocab_size\": 2,"
      " \"max_position_embeddings\": 64, \"kv_lora_rank\": 3, \"q_lora_rank\": null,"
      " \"qk_rope_head_dim\": 2, \"qk_nope_head_dim\": 3, \"v_head_dim\": 1,"
      " \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 3,"
      " \"n_shared_experts\": 2, \"first_k_dense_replace\": 0, \"norm_topk_prob\": false,"
      " \"routed_scaling_factor\": 16, \"topk_method\": \"group_limited_greedy\","
      " \"n_group\": 2, \"topk_group\": 1}";
  static const Named named[] = {
      COMMON_TENSORS,
      {"model.layers.0.self_attn.q_proj.weight", 10, 4, 1},
      {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 5, 4, 1},
      {"model.layers.0.self_attn.kv_a_layernorm.weight", 1, 3, 1},
      {"model.layers.0.self_attn.kv_b_proj.weight", 8, 3, 1},
      {"model.layers.0.self_attn.o_proj.weight", 4, 2, 1},
      {"model.layers.0.mlp.gate.weight", 4, 4, 1},
      {"model.layers.0.mlp.shared_experts.gate_proj.weight", 6, 4, 1},
      {"model.layers.0.mlp.shared_experts.up_proj.weight", 6, 4, 1},
      {"model.layers.0.mlp.shared_experts.down_proj.weight", 4, 6, 1},
      {"model.layers.0.mlp.experts.%u.gate_proj.weight", 3, 4, 4},
      {"model.layers.0.mlp.experts.%u.up_proj.weight", 3, 4, 4},
      {"model.layers.0.mlp.experts.%u.down_proj.weight", 4, 3, 4},
  };
  g_autoptr(GError) error = NULL;
  begin(config);
  write_named(named, G_N_ELEMENTS(named));
  g_autoptr(KvHostWeights) weights = load_folder(&error);
  g_assert_no_error(error);
  const KvHostLayer *layer = &weights->layers[0];
  const float *latent = layer->latent, *up = layer->latent_up, *down = layer->expert_down;
  g_assert_cmpfloat(latent[0], ==, 28 + 40); /* after the common ones and the queries */
  g_assert_cmpfloat(latent[1], ==, latent[0] + 4.0f);
  g_assert_cmpfloat(latent[5], ==, latent[0] + 1.0f);
  g_assert_cmpfloat(up[8], ==, up[0] + 1.0f); /* [rank][H (nope + value)] */
  g_assert_cmpfloat(layer->output[1], ==, layer->output[0] + 2.0f);
  g_assert_cmpfloat(down[12], ==, down[0] + 12.0f); /* the second expert's */
  g_assert_cmpfloat(down[12 + 1], ==, down[12] + 3.0f);
  g_assert_cmpfloat(layer->expert_up[0], ==, layer->expert_gate[0] + 48.0f);
  g_assert_cmpfloat(weights->routing.scale, ==, 16.0f);
  g_assert_cmpuint(weights->routing.groups_kept, ==, 1);
  g_assert_false(weights->routing.normalized);
  gsize held = 28 + 40 + 20 + 3 + 24 + 8 + 16 + 3 * 24 + 3 * 48;
  g_assert_cmpuint(weights->n_parameters, ==, held);
  g_clear_pointer(&weights, kv_host_weights_free);
  write_named(named, G_N_ELEMENTS(named) - 1); /* an expert's matrices are missing */
  g_assert_null(load_folder(&error));
  g_assert_nonnull(strstr(error->message, "mlp.experts.0.down_proj"));
  end();
}

/* Mixtral's own names of the same matrices. */
static void test_a_mixtral_folder(void) {
  static const char config[] =
      "{\"model_type\": \"mixtral\", \"hidden_size\": 4, \"num_attention_heads\": 2,"
      " \"num_key_value_heads\": 1, \"num_hidden_layers\": 1, \"intermediate_size\": 3,"
      " \"vocab_size\": 2, \"max_position_embeddings\": 64, \"num_local_experts\": 3,"
      " \"num_experts_per_tok\": 2}";
  static const Named named[] = {
      COMMON_TENSORS,
      {"model.layers.0.self_attn.q_proj.weight", 4, 4, 1},
      {"model.layers.0.self_attn.k_proj.weight", 2, 4, 1},
      {"model.layers.0.self_attn.v_proj.weight", 2, 4, 1},
      {"model.layers.0.self_attn.o_proj.weight", 4, 4, 1},
      {"model.layers.0.block_sparse_moe.gate.weight", 3, 4, 1},
      {"model.layers.0.block_sparse_moe.experts.%u.w1.weight", 3, 4, 3},
      {"model.layers.0.block_sparse_moe.experts.%u.w2.weight", 4, 3, 3},
      {"model.layers.0.block_sparse_moe.experts.%u.w3.weight", 3, 4, 3},
  };
  g_autoptr(GError) error = NULL;
  begin(config);
  write_named(named, G_N_ELEMENTS(named));
  g_autoptr(KvHostWeights) weights = load_folder(&error);
  g_assert_no_error(error);
  const KvHostLayer *layer = &weights->layers[0];
  g_assert_cmpfloat(layer->expert_gate[0], ==, 28 + 48 + 12);
  g_assert_cmpfloat(layer->expert_down[0], ==, layer->expert_gate[0] + 36.0f);
  g_assert_cmpfloat(layer->expert_up[0], ==, layer->expert_gate[0] + 72.0f);
  g_assert_true(weights->routing.normalized);
  end();
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/checkpoint/types", test_types);
  g_test_add_func("/reference/checkpoint/bf16", test_bf16_rounds_to_even);
  g_test_add_func("/reference/checkpoint/scaling", test_scaling);
  g_test_add_func("/reference/checkpoint/broken-folders", test_broken_folders);
  g_test_add_func("/reference/checkpoint/broken-tensors", test_tensors_outside_their_file);
  g_test_add_func("/reference/checkpoint/yarn", test_yarn);
  g_test_add_func("/reference/checkpoint/routing-refused", test_routing_refused);
  g_test_add_func("/reference/checkpoint/deepseek", test_a_deepseek_folder);
  g_test_add_func("/reference/checkpoint/mixtral", test_a_mixtral_folder);
  g_test_add_func("/reference/checkpoint/weights", test_weights_of_a_model);
  return g_test_run();
}
