/* Mixtures of experts: a router's softmax chooses a few MLPs for each token, as in DeepSeek-V2
 * (2024), section 2.2, and Jiang et al., "Mixtral of Experts" (2024), section 2.1. */
#include <math.h>
#include <string.h>

#include "reference/host/kernels.h"

gboolean kv_host_routing_fits(const KvHostRouting *routing, guint n_experts, guint chosen) {
  guint groups = routing->groups;
  return groups == 0 || (n_experts % groups == 0 && routing->groups_kept <= groups &&
                         n_experts / groups * routing->groups_kept >= chosen);
}

static void softmax(float *scores, const float *logits, guint n) {
  float largest = -INFINITY, total = 0.0f;
  for (guint i = 0; i < n; i++)
    largest = MAX(largest, logits[i]);
  for (guint i = 0; i < n; i++) {
    scores[i] = expf(logits[i] - largest);
    total += scores[i];
  }
  for (guint i = 0; i < n; i++)
    scores[i] /= total;
}

/* The first index of the largest number. */
static guint best_of(const float *x, guint n) {
  guint best = 0;
  for (guint i = 1; i < n; i++)
    if (x[i] > x[best])
      best = i;
  return best;
}

/* Give the experts of all groups but the best a score that is never chosen. */
static void limit_to_groups(float *scores, guint n, const KvHostRouting *routing) {
  guint size = n / routing->groups;
  for (guint dropped = routing->groups - routing->groups_kept; dropped > 0; dropped--) {
    guint worst = routing->groups - 1;
    float least = INFINITY;
    for (guint g = 0; g < routing->groups; g++) {
      float greatest = scores[(gsize)g * size + best_of(scores + (gsize)g * size, size)];
      if (greatest >= 0.0f && greatest <= least) { /* of equals the last goes first */
        least = greatest;
        worst = g;
      }
    }
    for (guint i = 0; i < size; i++)
      scores[worst * size + i] = -1.0f;
  }
}

void kv_host_route(guint32 *experts, float *shares, const float *logits, guint n_experts,
                   guint chosen, const KvHostRouting *routing, float *scores) {
  float total = 0.0f;
  softmax(scores, logits, n_experts);
  if (routing->groups)
    limit_to_groups(scores, n_experts, routing);
  for (guint k = 0; k < chosen; k++) {
    experts[k] = best_of(scores, n_experts);
    shares[k] = scores[experts[k]];
    scores[experts[k]] = -2.0f;
    total += shares[k];
  }
  for (guint k = 0; k < chosen; k++)
    shares[k] = (routing->normalized ? shares[k] / total : shares[k]) * routing->scale;
}

void kv_host_mix_experts(float *restrict out, const float *restrict x, const KvHostExperts *all,
                         const guint32 *experts, const float *shares, guint chosen,
                         float *restrict scratch) {
  guint D = all->hidden, E = all->intermediate;
  float *gate = scratch, *up = gate + E, *down = up + E;
  memset(out, 0, D * sizeof *out);
  for (guint k = 0; k < chosen; k++) {
    gsize matrix = (gsize)experts[k] * D * E;
    kv_host_linear(gate, x, all->gate + matrix, NULL, 1, D, E);
    kv_host_linear(up, x, all->up + matrix, NULL, 1, D, E);
    kv_host_swiglu(gate, up, E);
    kv_host_linear(down, gate, all->down + matrix, NULL, 1, E, D);
    for (guint i = 0; i < D; i++)
      out[i] += shares[k] * down[i];
  }
}
