#include "sim/base/dtype.h"

const char *const kv_dtype_names[] = {"fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4", NULL};

double kv_dtype_bytes(KvDtype dtype) {
  static const double bytes[] = {4, 2, 2, 1, 1, 0.5, 0.5};
  return bytes[dtype];
}
