#include "reference/host/kernels.h"

guint32 kv_host_argmax(const float *logits, guint vocab) {
  guint32 best = 0;
  for (guint v = 1; v < vocab; v++)
    if (logits[v] > logits[best])
      best = v;
  return best;
}
