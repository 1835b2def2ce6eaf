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

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/checkpoint/types", test_types);
  g_test_add_func("/reference/checkpoint/bf16", test_bf16_rounds_to_even);
  g_test_add_func("/reference/checkpoint/scaling", test_scaling);
  g_test_add_func("/reference/checkpoint/broken-folders", test_broken_folders);
  g_test_add_func("/reference/checkpoint/broken-tensors", test_tensors_outside_their_file);
  g_test_add_func("/reference/checkpoint/weights", test_weights_of_a_model);
  return g_test_run();
}
