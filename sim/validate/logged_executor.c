#include "sim/validate/logged_executor.h"

#include <string.h>

typedef struct {
  KvExecutor base;
  KvExecutorClass class; /* the real one's name and what it can do */
  KvExecutor *real;
  KvStepLog *log;
  GQueue asked;             /* times at which copies under way were asked for, in their order */
  double link_free_seconds; /* when the last copy that was popped ended */
} Logged;

static void log_step(KvStepLog *log, const KvStep *step, const KvStepCost *cost) {
  KvLoggedStep logged = {.first_chunk = log->chunks->len,
                         .n_chunks = step->n_chunks,
                         .first_context = log->contexts->len,
                         .n_decode = (guint)step->decode.n,
                         .shared_once_tokens = step->decode.shared_once_tokens,
                         .shared_repeated_tokens = step->decode.shared_repeated_tokens,
                         .measured_seconds = cost->seconds};
  memcpy(logged.measured_parts, cost->component_seconds, sizeof logged.measured_parts);
  for (guint i = 0; i < step->n_chunks; i++) {
    KvChunk chunk = step->chunks[i];
    chunk.sequence = NULL; /* it will not outlive the run */
    g_array_append_val(log->chunks, chunk);
  }
  for (guint64 i = 0; i < step->decode.n; i++) {
    guint32 context = step->decode.members[i]->computed_tokens + 1;
    g_array_append_val(log->contexts, context);
  }
  g_array_append_val(log->steps, logged);
}

static gboolean logged_step(KvExecutor *executor, const KvStep *step, KvStepCost *cost,
                            GError **error) {
  Logged *l = (Logged *)executor;
  if (!l->real->class->step(l->real, step, cost, error))
    return FALSE;
  log_step(l->log, step, cost);
  return TRUE;
}

static void logged_copy(KvExecutor *executor, const KvCopy *copy, double now) {
  Logged *l = (Logged *)executor;
  g_queue_push_tail(&l->asked, g_memdup2(&now, sizeof now));
  l->real->class->copy(l->real, copy, now);
}

static double logged_next_copy(KvExecutor *executor) {
  KvExecutor *real = ((Logged *)executor)->real;
  return real->class->next_copy(real);
}

/* Real executors copy one after another in the order in which they were asked. */
static gboolean logged_pop_copy(KvExecutor *executor, double now, KvCopy *copy) {
  Logged *l = (Logged *)executor;
  double done = l->real->class->next_copy(l->real);
  if (!l->real->class->pop_copy(l->real, now, copy))
    return FALSE;
  g_autofree double *asked = g_queue_pop_head(&l->asked);
  KvLoggedCopy logged = {.copy = *copy,
                         .measured_seconds = done - MAX(*asked, l->link_free_seconds)};
  logged.copy.sequence = NULL;
  l->link_free_seconds = done;
  g_array_append_val(l->log->copies, logged);
  return TRUE;
}

static void logged_move_block(KvExecutor *executor, KvTier from_tier, guint32 from, KvTier to_tier,
                              guint32 to) {
  KvExecutor *real = ((Logged *)executor)->real;
  real->class->move_block(real, from_tier, from, to_tier, to);
}

static void logged_forget(KvExecutor *executor, KvSequence *sequence) {
  KvExecutor *real = ((Logged *)executor)->real;
  real->class->forget(real, sequence);
}

static void logged_destroy(KvExecutor *executor) {
  Logged *l = (Logged *)executor;
  l->real->class->destroy(l->real);
  g_queue_clear_full(&l->asked, g_free);
  g_free(l);
}

KvExecutor *kv_logged_executor_new(KvExecutor *real, KvStepLog *log) {
  g_return_val_if_fail(real && log && !real->class->closed_form, NULL);
  Logged *l = g_new0(Logged, 1);
  l->class = (KvExecutorClass){.name = real->class->name,
                               .description = real->class->description,
                               .step = logged_step,
                               .copy = logged_copy,
                               .next_copy = logged_next_copy,
                               .pop_copy = logged_pop_copy,
                               .move_block = real->class->move_block ? logged_move_block : NULL,
                               .forget = real->class->forget ? logged_forget : NULL,
                               .destroy = logged_destroy};
  l->base.class = &l->class;
  l->real = real;
  l->log = log;
  g_queue_init(&l->asked);
  return &l->base;
}
