/* A Hugging Face checkpoint folder: config.json and safetensors, one file or a sharded set with its
 * model.safetensors.index.json.
 *
 * The files are mapped, not read: a tensor's numbers are touched when they are converted. Whatever
 * is wrong with the folder (a file cut short, a tensor missing, of another shape or type) is one
 * line that names the file. Format: https://huggingface.co/docs/safetensors: 8 bytes with the
 * header's length, the header in JSON, the tensors' bytes; all little-endian.
 */
#ifndef KV_REFERENCE_HOST_CHECKPOINT_H
#define KV_REFERENCE_HOST_CHECKPOINT_H

#include <glib.h>

#include "reference/host/kernels.h"

typedef struct KvCheckpoint KvCheckpoint;

typedef enum { KV_TENSOR_BF16, KV_TENSOR_F16, KV_TENSOR_F32 } KvTensorType;

typedef struct {
  KvTensorType type;
  guint64 rows, columns; /* a vector has one row; [out][in] of a matrix */
  const void *bytes;     /* mapped; not aligned */
} KvTensor;

/* Whether `path` is a folder with weights in it. */
gboolean kv_checkpoint_exists(const char *path);

KvCheckpoint *kv_checkpoint_open(const char *folder, GError **error);
void kv_checkpoint_free(KvCheckpoint *checkpoint);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvCheckpoint, kv_checkpoint_free)

/* What config.json says of the arithmetic. */
float kv_checkpoint_epsilon(const KvCheckpoint *checkpoint);
const KvHostRotary *kv_checkpoint_rotary(const KvCheckpoint *checkpoint);
const KvHostRouting *kv_checkpoint_routing(const KvCheckpoint *checkpoint);

gboolean kv_checkpoint_has(const KvCheckpoint *checkpoint, const char *name);
/* The tensor `name`, which must be of that shape. */
gboolean kv_checkpoint_tensor(const KvCheckpoint *checkpoint, const char *name, guint64 rows,
                              guint64 columns, KvTensor *tensor, GError **error);

/* Convert elements first .. first + n - 1; bf16 is rounded to nearest, ties to even. */
void kv_tensor_to_f32(const KvTensor *tensor, guint64 first, guint64 n, float *out);
void kv_tensor_to_bf16(const KvTensor *tensor, guint64 first, guint64 n, guint16 *out);

/* A float rounded to bf16, or n of them. */
guint16 kv_bf16_from_float(float x);
void kv_bf16_from_floats(guint16 *out, const float *x, gsize n);

#endif
