/* What routing leaves to the experts of a GPU. */
#include <math.h>

#include "models/kernels/moe.h"

const double kv_moe_tile_rows[KV_MOE_TILES] = {8, 16, 32, 64, 128};

/* Each of `tokens` tokens picks k of E experts: an expert stays untouched with probability (1 -
 * k/E)^tokens. */
double kv_kernel_experts_touched(double tokens, double n_experts, double n_experts_per_token) {
  if (n_experts_per_token >= n_experts)
    return tokens > 0 ? n_experts : 0;
  return n_experts * -expm1(tokens * log1p(-n_experts_per_token / n_experts));
}

void kv_moe_add_experts(KvExpertLoad *load, double experts, double rows) {
  if (rows <= 0)
    return;
  load->touched += experts * MIN(rows, 1);
  load->rows += experts * rows;
  for (guint i = 0; i < KV_MOE_TILES; i++)
    load->tiles[i] += experts * (rows < 1 ? rows : ceil(rows / kv_moe_tile_rows[i]));
}

/* The rows of an expert are nearly Poisson's: E[ceil(c / t)] = P(c > 0) + P(c > t) + P(c > 2t) ...
 * From a mean of many tiles on it is c / t and a half. */
KvExpertLoad kv_moe_uniform_load(double tokens, double n_experts, double n_experts_per_token) {
  enum { LONGEST = 512 };
  KvExpertLoad load = {
      .touched = kv_kernel_experts_touched(tokens, n_experts, n_experts_per_token),
      .rows = tokens * n_experts_per_token,
  };
  double mean = load.rows / n_experts, at_least[LONGEST + 1];
  double highest = MIN(LONGEST, ceil(mean + 8 * sqrt(mean) + 8));
  if (mean > 0.5 * LONGEST) {
    for (guint i = 0; i < KV_MOE_TILES; i++)
      load.tiles[i] = n_experts * (mean / kv_moe_tile_rows[i] + 0.5);
    return load;
  }
  /* at_least[c]: probability of more than c rows. */
  double probability = exp(-mean), below = 0;
  for (guint c = 0; c <= highest; c++) {
    below += probability;
    at_least[c] = MAX(1 - below, 0);
    probability *= mean / (c + 1);
  }
  double correction = load.touched / MAX(n_experts * at_least[0], 1e-300);
  for (guint i = 0; i < KV_MOE_TILES; i++) {
    for (guint c = 0; c <= highest; c += (guint)kv_moe_tile_rows[i])
      load.tiles[i] += n_experts * at_least[c];
    load.tiles[i] *= correction;
  }
  return load;
}

/* Round robin: as even as whole rows can be. */
KvExpertLoad kv_moe_balanced_load(double tokens, double n_experts, double n_experts_per_token) {
  KvExpertLoad load = {0};
  double each = tokens * n_experts_per_token / n_experts, whole = floor(each);
  double longer = each - whole; /* share of experts with one row more */
  kv_moe_add_experts(&load, round(n_experts * (1 - longer)), whole);
  kv_moe_add_experts(&load, round(n_experts * longer), whole + 1);
  return load;
}

/* The expected value of x^power where x is distributed as x^-exponent between low and high. */
static double power_law_moment(double exponent, double low, double high, double power) {
  double a = 1 - exponent, b = a + power;
  double grown = fabs(b) > 1e-9 ? (pow(high, b) - pow(low, b)) / b : log(high / low);
  return a * grown / (pow(high, a) - pow(low, a));
}

/* Whole rows that add up to `total`: rounded, and what is missing or over given to, or taken from,
 * the fullest. `rows` falls. */
static void make_whole(double *rows, guint n, double total) {
  double sum = 0;
  for (guint i = 0; i < n; i++)
    sum += rows[i] = round(rows[i]);
  gint64 missing = llround(total - sum);
  for (gint64 i = 0; i < missing; i++)
    rows[i % n]++;
  for (guint i = 0; missing < 0; i = (i + 1) % n) {
    double taken = MIN(rows[i], 1);
    rows[i] -= taken;
    missing += (gint64)taken;
  }
}

/* Experts at the middles of n equal parts of the distribution. The fullest of `ranks` groups has
 * more than its share: about sqrt(2 ln ranks) - 0.6 standard deviations of a group's sum, the
 * expected largest of so many normal variables. */
KvExpertLoad kv_moe_power_law_load(double tokens, double n_experts, double n_experts_per_token,
                                   double exponent, double ranks) {
  double all_rows = tokens * n_experts_per_token;
  gboolean few = all_rows <= n_experts;
  double low = few ? 0.01 : 1, high = few ? 2 : 0.8 * tokens;
  guint n = (guint)MAX(n_experts / ranks, 1);
  KvExpertLoad load = {0};
  if (high <= low)
    return kv_moe_balanced_load(tokens, n_experts, n_experts_per_token);
  double mean = power_law_moment(exponent, low, high, 1);
  double variance = power_law_moment(exponent, low, high, 2) / (mean * mean) - 1;
  double above = ranks > 1 ? (sqrt(2 * log(ranks)) - 0.6) * sqrt(variance / n) : 0;
  double total = round(MIN(all_rows / ranks * (1 + above), all_rows)), sum = 0;
  g_autofree double *rows = g_new(double, n);
  double a = 1 - exponent, from = pow(low, a), to = pow(high, a);
  for (guint i = 0; i < n; i++)
    sum += rows[i] = pow(from + (to - from) * (1 - (i + 0.5) / n), 1 / a);
  for (guint i = 0; i < n; i++)
    rows[i] *= total / sum;
  make_whole(rows, n, MAX(total, 1));
  for (guint i = 0; i < n; i++)
    kv_moe_add_experts(&load, 1, rows[i]);
  return load;
}
