#include "models/hardware/hardware.h"

#include <string.h>

static KvPlatform *load(const char *name) {
  g_autoptr(GError) error = NULL;
  KvPlatform *platform = kv_platform_load(name, &error);
  g_assert_no_error(error);
  return platform;
}

static void test_every_platform_loads(void) {
  guint n = 0;
  for (const char *const *id = kv_platform_ids(); *id; id++, n++) {
    g_test_message("%s", *id);
    g_autoptr(KvPlatform) p = load(*id);
    g_assert_cmpstr(p->id, ==, *id);
    g_assert_cmpfloat(p->device->memory_bytes, >, 1e9);
    g_assert_nonnull(p->host_link);
    g_assert_nonnull(p->host_memory);
    g_assert_nonnull(p->ssd);
    g_assert_cmpfloat(p->cpu_flops, >, 0);
    g_assert_cmpfloat(p->host_watts, >, 0);
    g_assert_cmpfloat(p->pue, >=, 1);
    g_assert_true((p->gpu_link != NULL) == (p->n_gpus_per_node > 1));
  }
  g_assert_cmpuint(n, >=, 42);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/hardware/every-platform-loads", test_every_platform_loads);
  return g_test_run();
}
