#include "models/llm/llm.h"

#include <math.h>
#include <string.h>

static KvModel *load(const char *name) {
  g_autoptr(GError) error = NULL;
  KvModel *model = kv_model_load(name, &error);
  g_assert_no_error(error);
  return model;
}

/* The sum over all the layer's matrices is what catches a wrong hidden size, head count or expert width. */
static void test_parameters_match_published(void) {
  guint n = 0;
  for (const char *const *id = kv_model_ids(); *id; id++, n++) {
    g_autoptr(KvModel) model = load(*id);
    g_assert_cmpuint(model->published_parameters, >, 0);
    double ratio = (double)kv_model_parameters(model) / (double)model->published_parameters;
    if (fabs(ratio - 1) > 0.015)
      g_test_message("%s: %" G_GUINT64_FORMAT " parameters, published %" G_GUINT64_FORMAT " (%+.2f %%)",
                     *id, kv_model_parameters(model), model->published_parameters,
                     100 * (ratio - 1));
    g_assert_cmpfloat_with_epsilon(ratio, 1, 0.015);
    g_assert_cmpstr(model->id, ==, *id);
    g_assert_cmpuint(strlen(model->source), >, 0);
  }
  g_assert_cmpuint(n, >=, 90);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/llm/parameters-match-published", test_parameters_match_published);
  return g_test_run();
}
