/* Techniques: transformations of the architecture, of the KV plan, and of the engine's
 * configuration.
 *
 * A technique is one entry of kv_techniques, defined in its survey family's file, with up to three
 * functions. A stack is a list of techniques with parameters, written
 * id:param=value:param=value,id,... and applied left to right:
 *
 *     --use gqa:num_kv_heads=8,snapkv:budget=1024,kivi:bits=2,vllm
 *
 * Everything that prints, parses, documents or tests techniques reads this table.
 */
#ifndef KV_MODELS_TECHNIQUES_TECHNIQUE_H
#define KV_MODELS_TECHNIQUES_TECHNIQUE_H

#include <glib.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/plan.h"
#include "sim/engine/config.h"

typedef enum { KV_PARAM_INTEGER, KV_PARAM_REAL, KV_PARAM_CHOICE, KV_PARAM_FLAG } KvParamKind;

typedef struct {
  const char *name;
  KvParamKind kind;
  double fallback, min, max; /* a choice's fallback is its index */
  const char *const *choices;
  const char *unit, *help;
} KvParam;

/* One published quality result at one setting. value and baseline in the task's own unit; of a
 * perplexity less is better, of everything else more. Points of the same model, task and part whose
 * `knob` is the same parameter form a curve along it, on which a setting between two of them is
 * interpolated; a point without a knob stands for its own setting only. */
typedef struct {
  const char *model, *task, *setting;
  double baseline, value;
  const char *source; /* with "seen", "recalled" or "unsure" kept */
  const char *knob;   /* the technique's parameter, or NULL */
  double at;          /* its value (a choice's number: 2 of "2") */
  const char *part;   /* "K" or "V" where only keys or values are touched, else NULL */
} KvQualityPoint;

typedef struct {
  const char *symbolic; /* "L*Hkv*d*(nK*(q/8+4/G) + (n-nK)*e)" */
  const char *what;     /* "bytes of keys" */
} KvFormula;

typedef struct KvTechnique KvTechnique;

/* One technique of a stack, with its parameters resolved. */
typedef struct {
  const KvTechnique *technique;
  double *values; /* by the technique's parameter order */
} KvTechniqueUse;

/* The value of the parameter `name`; a programmer's error if there is none. */
double kv_technique_value(const KvTechniqueUse *use, const char *name);

struct KvTechnique {
  const char *id, *name, *title, *paper, *code;
  guint year;
  const char *const *sections;   /* survey rows, NULL-terminated */
  const char *mechanism;         /* paragraphs in our own words */
  const KvParam *params;         /* ends with name NULL */
  const KvFormula *formulas;     /* ends with symbolic NULL */
  const KvQualityPoint *quality; /* ends with model NULL */
  const char *quality_note;      /* what is known without a figure; NULL and no points: exact */
  const char *composes;          /* what it goes with and what it excludes, in words */
  const char *pitfalls;
  const char *confidence;
  gboolean executed; /* the real executors carry its plan out; without a plan there is nothing to */
  /* Whether these settings leave every answer as it is, although others do not; may be NULL. */
  gboolean (*exact)(const KvTechniqueUse *use);
  /* Settle parameters that depend on the platform (placement, batch sizes) before the rest; may be
   * NULL. */
  gboolean (*tune)(KvTechniqueUse *use, const KvModel *model, const KvPlatform *platform,
                   GError **error);
  gboolean (*arch)(const KvTechniqueUse *use, KvModel *model, GError **error);
  gboolean (*plan)(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan, GError **error);
  gboolean (*engine)(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                     GError **error);
};

/* Every technique, sorted by id, NULL-terminated. */
extern const KvTechnique *const kv_techniques[];
const KvTechnique *kv_technique_find(const char *id, GError **error);

typedef struct {
  char *text;   /* as the user wrote it, "" for none */
  GArray *uses; /* of KvTechniqueUse, in order */
} KvStack;

/* Parse `text` ("" or NULL: nothing). Unknown ids and parameters are errors that suggest the
 * nearest name; a value out of its range says the range and the unit. */
KvStack *kv_stack_parse(const char *text, GError **error);
void kv_stack_free(KvStack *stack);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvStack, kv_stack_free)

/* Let every technique settle what depends on the platform. */
gboolean kv_stack_tune(KvStack *stack, const KvModel *model, const KvPlatform *platform,
                       GError **error);

/* Apply every `arch` to `model`, build the plan with cache elements `dtype`, apply every `plan`,
 * then every `engine`. A composition that makes no sense is an error that says why ("kivi: the keys
 * of ... are already quantized by ..."). */
KvPlan *kv_stack_apply(const KvStack *stack, KvModel *model, KvDtype dtype, KvEngineConfig *config,
                       GError **error);

/* The page of `kvsim show ID` and of docs/techniques/ID.md, as Markdown; newly allocated. */
char *kv_technique_page(const KvTechnique *technique);

#endif
