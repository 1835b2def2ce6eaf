#include "sim/base/dtype.h"

const char *const kv_dtype_names[] = {"fp32", "bf16",  "fp16",      "fp8",       "int8", "fp4",
                                      "int4", "mxfp4", "mxfp4-fp8", "fp8-block", NULL};

double kv_dtype_bytes(KvDtype dtype) {
  static const double bytes[] = {4, 2, 2, 1, 1, 0.5, 0.5, 0.5, 0.5, 1};
  return bytes[dtype];
}

double kv_dtype_weight_bytes(KvDtype dtype) {
  static const double scales[KV_N_DTYPES] = {[KV_DTYPE_FP4] = 1. / 16,
                                             [KV_DTYPE_MXFP4] = 1. / 32,
                                             [KV_DTYPE_MXFP4_FP8] = 1. / 32,
                                             [KV_DTYPE_INT4] = 2. / 128};
  return kv_dtype_bytes(dtype) + scales[dtype];
}
