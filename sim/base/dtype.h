/* Element types of weights, activations and caches. */
#ifndef KV_SIM_BASE_DTYPE_H
#define KV_SIM_BASE_DTYPE_H

#include <glib.h>

typedef enum {
  KV_DTYPE_FP32,
  KV_DTYPE_BF16,
  KV_DTYPE_FP16,
  KV_DTYPE_FP8,
  KV_DTYPE_INT8,
  KV_DTYPE_FP4,
  KV_DTYPE_INT4,
  KV_DTYPE_MXFP4,     /* 32 elements share an exponent; multiplied widened to 16 bits */
  KV_DTYPE_MXFP4_FP8, /* the same weights, multiplied with 8-bit activations */
  KV_DTYPE_FP8_BLOCK, /* fp8 weights with a scale for 128 x 128 of them */
  KV_N_DTYPES,
} KvDtype;

/* "fp32", "bf16" ..., NULL-terminated, in the order of the enumeration. */
extern const char *const kv_dtype_names[];

/* Bytes of one element, without scales. */
double kv_dtype_bytes(KvDtype dtype);

/* ... of a weight, with its share of the scales that quantized checkpoints store: nvfp4 (fp4) one
 * byte for 16 elements, mxfp4 one for 32, int4 two for 128. */
double kv_dtype_weight_bytes(KvDtype dtype);

#endif
