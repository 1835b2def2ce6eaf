/* How fast and how small the simulator is: whole processes, from opening the trace to the written
 * summary.
 *
 *     bench_replay KVSIM [--traces DIR] [--markdown FILE]
 *
 * With --traces, the real traces Azure 2023 (conversation) and Mooncake in their published folders
 * below DIR; without, made ones of the same statistics. Each case runs once for warming and three
 * times counted; the median of the processor time (user and system) and the largest peak memory are
 * printed. --markdown rewrites the table of docs/performance.md. Plots are left out: gnuplot is a
 * program of its own.
 */
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { COUNTED = 3 };

typedef struct {
  double cpu_seconds, wall_seconds, peak_MB;
} Reading;

static char *folder; /* for traces made here and run directories */

static Reading run_once(char *const *argv) {
  Reading reading = {0};
  gint64 began = g_get_monotonic_time();
  pid_t child = fork();
  if (child == 0) {
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, STDOUT_FILENO);
    execv(argv[0], argv);
    _exit(127);
  }
  int status;
  struct rusage usage;
  if (child < 0 || wait4(child, &status, 0, &usage) < 0 || !WIFEXITED(status) ||
      WEXITSTATUS(status) != 0) {
    fprintf(stderr, "bench_replay: %s did not succeed\n", argv[0]);
    exit(1);
  }
  reading.wall_seconds = (double)(g_get_monotonic_time() - began) * 1e-6;
  reading.cpu_seconds = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                        ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) * 1e-6;
  reading.peak_MB = (double)usage.ru_maxrss / 1024.0;
  return reading;
}

static int by_cpu(const void *a, const void *b) {
  double x = ((const Reading *)a)->cpu_seconds, y = ((const Reading *)b)->cpu_seconds;
  return (x > y) - (x < y);
}

static Reading median_of(char *const *argv) {
  Reading readings[COUNTED];
  run_once(argv);
  for (guint i = 0; i < COUNTED; i++)
    readings[i] = run_once(argv);
  qsort(readings, COUNTED, sizeof *readings, by_cpu);
  Reading median = readings[COUNTED / 2];
  for (guint i = 0; i < COUNTED; i++)
    median.peak_MB = MAX(median.peak_MB, readings[i].peak_MB);
  return median;
}

typedef struct {
  const char *name, *trace; /* trace: a key of make_trace() */
  double requests;
  const char *options;
  const char *against; /* name of the case whose time per request is the unit, or NULL */
} Case;

/* The trace's times come in ticks of 3 s, which are not when requests came. */
#define SMEARED "--set arrivals.smear_seconds=3"

static const Case cases[] = {
    {"Azure conversation, 1 M requests", "azure", 1e6, "", NULL},
    {"the same, every output twice as long", "azure", 1e6, "--set arrivals.output_scale=2",
     "Azure conversation, 1 M requests"},
    {"the same, an idle DRAM tier configured", "azure", 1e6, "--set prefix_cache.tier=dram",
     "Azure conversation, 1 M requests"},
    {"Mooncake, 20 times over, ticks smeared, a fifth of its rate", "mooncake", 114380,
     SMEARED " --rate-scale 0.2", NULL},
    {"the same at 8 times the rate, 8 replicas behind the prefix router", "mooncake", 114380,
     SMEARED " --rate-scale 1.6 -p 8xh200 --replicas 8 --set deployment.router=prefix",
     "Mooncake, 20 times over, ticks smeared, a fifth of its rate"},
    {"Mooncake, saturated: at its own rate on one GPU", "mooncake", 114380, SMEARED, NULL},
    {"Azure, step by step, 20,000 requests", "azure", 20000, "--requests 20000 --step-by-step",
     NULL},
};

static void must(const char *command) {
  int status;
  g_autoptr(GError) error = NULL;
  if (!g_spawn_command_line_sync(command, NULL, NULL, &status, &error) ||
      !g_spawn_check_wait_status(status, &error)) {
    fprintf(stderr, "bench_replay: %s: %s\n", command, error->message);
    exit(1);
  }
}

/* The file of a case's trace, made on first use. */
static const char *make_trace(const char *kvsim, const char *traces, const char *key) {
  static char *azure, *mooncake;
  gboolean is_azure = strcmp(key, "azure") == 0;
  char **file = is_azure ? &azure : &mooncake;
  if (*file)
    return *file;
  *file = g_build_filename(folder, is_azure ? "azure.jsonl" : "mooncake.jsonl", NULL);
  g_autofree char *command = NULL;
  if (traces)
    command = g_strdup_printf("'%s' trace repeat --times=%d --fresh '%s/%s' -o '%s'", kvsim,
                              is_azure ? 52 : 20, traces,
                              is_azure ? "azure2023/AzureLLMInferenceTrace_conv.csv"
                                       : "mooncake/conversation_first30min.jsonl.gz",
                              *file);
  else
    command = g_strdup_printf("'%s' trace generate --preset=%s -n %d -o '%s'", kvsim,
                              is_azure ? "azure-conv" : "mooncake-conversation",
                              is_azure ? 1000000 : 114380, *file);
  must(command);
  return *file;
}

static void add_row(GString *table, const Case *c, const Reading *r, const Reading *unit) {
  g_autofree char *relative =
      unit ? g_strdup_printf("%.2f", r->cpu_seconds / unit->cpu_seconds) : g_strdup("");
  g_string_append_printf(table, "| %s | %.2f | %.2f | %.0f | %.2f | %.0f | %s |\n", c->name,
                         r->cpu_seconds, r->wall_seconds, c->requests / r->cpu_seconds,
                         r->cpu_seconds / c->requests * 1e6, r->peak_MB, relative);
}

/* Replace what stands between the markers of the page. */
static void rewrite_page(const char *path, const char *table) {
  static const char begin[] = "<!-- begin: tests/bench/bench_replay -->\n";
  static const char end[] = "<!-- end -->";
  g_autofree char *page = NULL;
  if (!g_file_get_contents(path, &page, NULL, NULL))
    page = g_strconcat(begin, end, "\n", NULL);
  char *from = strstr(page, begin), *to = strstr(page, end);
  if (!from || !to) {
    fprintf(stderr, "bench_replay: %s has no markers\n", path);
    exit(1);
  }
  *from = '\0';
  g_autofree char *whole = g_strconcat(page, begin, table, to, NULL);
  if (!g_file_set_contents(path, whole, -1, NULL)) {
    fprintf(stderr, "bench_replay: %s cannot be written\n", path);
    exit(1);
  }
}

static char *processor_name(void) {
  g_autofree char *text = NULL;
  if (g_file_get_contents("/proc/cpuinfo", &text, NULL, NULL)) {
    const char *line = strstr(text, "model name");
    const char *colon = line ? strchr(line, ':') : NULL;
    if (colon)
      return g_strndup(colon + 2, strcspn(colon + 2, "\n"));
  }
  return g_strdup("unknown processor");
}

int main(int argc, char **argv) {
  g_autofree char *traces = NULL;
  g_autofree char *markdown = NULL;
  const GOptionEntry entries[] = {
      {"traces", 0, 0, G_OPTION_ARG_FILENAME, &traces, "folder of real traces", "DIR"},
      {"markdown", 0, 0, G_OPTION_ARG_FILENAME, &markdown, "page whose table to rewrite", "FILE"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL},
  };
  g_autoptr(GOptionContext) context = g_option_context_new("KVSIM");
  g_option_context_add_main_entries(context, entries, NULL);
  g_autoptr(GError) error = NULL;
  if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 2) {
    fprintf(stderr, "bench_replay: %s\n", error ? error->message : "expected the program kvsim");
    return 2;
  }
  if (traces && !g_file_test(traces, G_FILE_TEST_IS_DIR))
    g_clear_pointer(&traces, g_free);
  folder = g_dir_make_tmp("kvsim-bench-XXXXXX", NULL);
  g_autofree char *processor = processor_name();
  g_autoptr(GDateTime) now = g_date_time_new_now_utc();
  g_autofree char *date = g_date_time_format(now, "%Y-%m-%d");
  g_autoptr(GString) table = g_string_new(NULL);
  g_string_append_printf(
      table,
      "One core of a %s, %s, %s traces, Llama-3.1-8B on one H200 unless said "
      "otherwise.\n\n| case | CPU s | wall s | requests/s | us/request | peak MB "
      "| time against |\n|---|---|---|---|---|---|---|\n",
      processor, date, traces ? "real" : "made");
  Reading readings[G_N_ELEMENTS(cases)];
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    const Case *c = &cases[i];
    const Reading *unit = NULL;
    g_autofree char *command =
        g_strdup_printf("'%s' run '%s' -o '%s/run' --no-plots %s", argv[1],
                        make_trace(argv[1], traces, c->trace), folder, c->options);
    g_auto(GStrv) words = NULL;
    g_shell_parse_argv(command, NULL, &words, NULL);
    readings[i] = median_of(words);
    for (guint j = 0; j < i && c->against; j++)
      if (strcmp(cases[j].name, c->against) == 0)
        unit = &readings[j];
    add_row(table, c, &readings[i], unit);
    fprintf(stderr, "%-70s %.2f s\n", c->name, readings[i].cpu_seconds);
  }
  fputs(table->str, stdout);
  if (markdown)
    rewrite_page(markdown, table->str);
  g_autofree char *remove = g_strdup_printf("rm -rf '%s'", folder);
  must(remove);
  return 0;
}
