/* What a technique does to a model's answers: next-token distributions beside those of the whole
 * cache (reference/host/agreement.h), by the scenario's real executor, on the first requests of a
 * trace.
 *
 * Each request is computed alone: its prompt in chunks of the engine's token budget, then as many
 * tokens as its answer has, which both caches are fed alike. Requests longer than the engine takes
 * are passed over.
 */
#ifndef KV_SIM_VALIDATE_ANSWERS_H
#define KV_SIM_VALIDATE_ANSWERS_H

#include <glib.h>
#include <jansson.h>

#include "reference/host/agreement.h"
#include "sim/scenario.h"

#define KV_ANSWERS_REQUESTS 8 /* most that are compared */
#define KV_ANSWERS_DECODED 64 /* most tokens of an answer */

typedef struct {
  guint index; /* of the trace, from 0 */
  guint32 prompt_tokens;
  KvHostAgreement agreement;
} KvAnswerAgreement;

typedef struct {
  char *executor, *model, *use, *cache;
  GArray *requests; /* of KvAnswerAgreement */
  KvHostAgreement all;
} KvAnswers;

/* FALSE with *error set if there is nothing to compare: not a real executor, or the whole cache. */
gboolean kv_answers_check(const KvScenario *scenario, GError **error);

/* `format`: of the trace, or NULL: by content. NULL with *error set, also if interrupted. */
KvAnswers *kv_answers_new(const KvScenario *scenario, const char *trace, const char *format,
                          GError **error);
void kv_answers_free(KvAnswers *answers);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvAnswers, kv_answers_free)

char *kv_answers_table(const KvAnswers *answers);     /* newly allocated */
json_t *kv_answers_to_json(const KvAnswers *answers); /* a new reference */
gboolean kv_answers_write(const KvAnswers *answers, const char *path, GError **error);

#endif
