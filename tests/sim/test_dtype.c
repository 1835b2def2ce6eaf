/* sim/base/dtype.h: every type has a name, and the size that the name says. */
#include "sim/base/dtype.h"

static void size_is_that_of_the_name(void) {
  g_assert_cmpuint(g_strv_length((char **)kv_dtype_names), ==, KV_N_DTYPES);
  for (guint t = 0; t < KV_N_DTYPES; t++) {
    const char *bits = kv_dtype_names[t];
    while (*bits && !g_ascii_isdigit(*bits))
      bits++;
    g_assert_cmpfloat(kv_dtype_bytes((KvDtype)t), ==, g_ascii_strtod(bits, NULL) / 8);
  }
}

static void names_stand_in_the_order_of_the_enumeration(void) {
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_FP32], ==, "fp32");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_BF16], ==, "bf16");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_FP16], ==, "fp16");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_FP8], ==, "fp8");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_INT8], ==, "int8");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_FP4], ==, "fp4");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_INT4], ==, "int4");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_MXFP4], ==, "mxfp4");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_MXFP4_FP8], ==, "mxfp4-fp8");
  g_assert_cmpstr(kv_dtype_names[KV_DTYPE_FP8_BLOCK], ==, "fp8-block");
}

static void weights_are_stored_with_their_scales(void) {
  g_assert_cmpfloat(kv_dtype_weight_bytes(KV_DTYPE_BF16), ==, 2);
  g_assert_cmpfloat(kv_dtype_weight_bytes(KV_DTYPE_FP8), ==, 1);
  g_assert_cmpfloat(kv_dtype_weight_bytes(KV_DTYPE_FP4), ==, 9. / 16);    /* 16 of 4 bits, 8 bits */
  g_assert_cmpfloat(kv_dtype_weight_bytes(KV_DTYPE_MXFP4), ==, 17. / 32); /* 32 and 8 */
  g_assert_cmpfloat(kv_dtype_weight_bytes(KV_DTYPE_INT4), ==, 66. / 128); /* 128 and 16 */
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/dtype/size-is-that-of-the-name", size_is_that_of_the_name);
  g_test_add_func("/dtype/names-stand-in-the-order-of-the-enumeration",
                  names_stand_in_the_order_of_the_enumeration);
  g_test_add_func("/dtype/weights-are-stored-with-their-scales",
                  weights_are_stored_with_their_scales);
  return g_test_run();
}
