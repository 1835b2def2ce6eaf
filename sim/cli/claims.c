/* kvsim claims: papers' own figures, replayed: claimed beside simulated. */
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/output.h"
#include "sim/cli/cli.h"
#include "sim/validate/claims.h"
#include "viz/plots_claims.h"

typedef struct {
  char *match, *directory;
  gboolean as_json, markdown, details;
} Options;

static void options_clear(Options *o) {
  g_free(o->match);
  g_free(o->directory);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* The claims of every argument: a file, or the id of a technique; of all techniques if there is
 * none. */
static gboolean load(char **names, GPtrArray *claims, GError **error) {
  g_auto(GStrv) all = *names ? NULL : kv_claims_techniques();
  for (char **name = all ? all : names; *name; name++) {
    gboolean is_file = strchr(*name, '/') || g_str_has_suffix(*name, ".json");
    if (!(is_file ? kv_claims_load(*name, claims, error) : kv_claims_builtin(*name, claims, error)))
      return FALSE;
  }
  return TRUE;
}

static gboolean replay_all(const Options *o, const GPtrArray *claims, GArray *results,
                           GError **error) {
  gboolean shows = isatty(fileno(stderr));
  for (guint i = 0; i < claims->len; i++) {
    const KvClaim *claim = g_ptr_array_index(claims, i);
    if (o->match && !strstr(claim->id, o->match))
      continue;
    if (shows)
      fprintf(stderr, "\r\033[K%u of %u: %s, %s", i + 1, claims->len, claim->technique, claim->id);
    KvClaimResult result;
    gboolean ok = kv_claim_replay(claim, &kv_interrupted, &result, error);
    if (ok)
      g_array_append_val(results, result);
    if (!ok && shows)
      fputs("\r\033[K", stderr);
    if (!ok)
      return FALSE;
  }
  if (shows)
    fputs("\r\033[K", stderr);
  return TRUE;
}

static gboolean write_report(const char *path, const GArray *results, GError **error) {
  g_autoptr(KvRunDirectory) directory = kv_run_directory_begin(path, error);
  if (!directory)
    return FALSE;
  /* An earlier report in its place is known by the two files together. */
  g_autofree char *scenario = kv_run_directory_file(directory, "scenario.json");
  return kv_output_write_file(scenario, "{}\n", -1, error) &&
         kv_claims_report_write(directory, results, error) &&
         kv_run_directory_commit(g_steal_pointer(&directory), error);
}

static void print(const Options *o, const GArray *results) {
  if (o->as_json) {
    json_t *document = kv_claims_to_json(results);
    char *text = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    puts(text);
    free(text);
    json_decref(document);
    return;
  }
  g_autofree char *text =
      o->markdown ? kv_claims_markdown(results) : kv_claims_table(results, o->details);
  fputs(text, stdout);
}

gboolean kv_command_claims(int argc, char **argv, GError **error) {
  g_auto(Options) o = {0};
  const GOptionEntry entries[] = {
      {"match", 0, 0, G_OPTION_ARG_STRING, &o.match, "only claims whose id holds this", "TEXT"},
      {"details", 0, 0, G_OPTION_ARG_NONE, &o.details,
       "with each claim its source, what the paper leaves unsaid, what was assumed and found",
       NULL},
      {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o.directory,
       "folder for report.html, claims.svg and claims.json", "DIR"},
      {"markdown", 0, 0, G_OPTION_ARG_NONE, &o.markdown, "print the table of docs/claims.md", NULL},
      {"json", 0, 0, G_OPTION_ARG_NONE, &o.as_json, "print JSON", NULL},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  if (!kv_cli_parse(kv_command_find("claims"), entries, &argc, &argv, error))
    return FALSE;
  g_autoptr(GPtrArray) claims = g_ptr_array_new_with_free_func((GDestroyNotify)kv_claim_free);
  g_autoptr(GArray) results = g_array_new(FALSE, FALSE, sizeof(KvClaimResult));
  g_array_set_clear_func(results, (GDestroyNotify)kv_claim_result_clear);
  if (!load(argv + 1, claims, error) || !replay_all(&o, claims, results, error))
    return FALSE;
  if (results->len == 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "claims: no claim matches '%s', expected part of a claim's id", o.match);
    return FALSE;
  }
  if (o.directory && !write_report(o.directory, results, error))
    return FALSE;
  print(&o, results);
  return TRUE;
}
