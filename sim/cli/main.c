/* kvsim COMMAND ..., or kvsim TRACE, which means kvsim run TRACE. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"
#include "sim/base/output.h"
#include "sim/cli/cli.h"

static void interrupt(int signal_number) {
  (void)signal_number;
  g_atomic_int_set(&kv_interrupted, 1);
}

/* What ends a program is noted, and looked at where nothing is half done; a file that may grow no
 * further is an error of the write, like a full disk. */
static void take_signals(void) {
  struct sigaction note = {.sa_handler = interrupt}, ignore = {.sa_handler = SIG_IGN};
  sigaction(SIGINT, &note, NULL);
  sigaction(SIGTERM, &note, NULL);
  sigaction(SIGHUP, &note, NULL);
  sigaction(SIGXFSZ, &ignore, NULL);
}

/* What the library remarks reads like the program's own lines; what a programmer broke stays as
 * GLib has it. */
static void remark(const char *domain, GLogLevelFlags level, const char *message, gpointer user) {
  if (level & (G_LOG_LEVEL_WARNING | G_LOG_LEVEL_MESSAGE))
    fprintf(stderr, "kvsim: %s%s\n", level & G_LOG_LEVEL_WARNING ? "warning: " : "", message);
  else
    g_log_default_handler(domain, level, message, user);
}

static void print_usage(FILE *to) {
  fprintf(to,
          "kvsim %s: what a trace would cost if the KV cache were managed another way\n\n"
          "  kvsim %-18s replay it with the default scenario: Llama-3.1-8B on one H200\n",
          KVSIM_VERSION, "TRACE");
  for (const KvCommand *c = kv_commands; c->name; c++) {
    g_autofree char *line =
        g_strdup_printf("%s %s", c->name, strlen(c->arguments) > 12 ? "..." : c->arguments);
    if (!c->hidden)
      fprintf(to, "  kvsim %-18s %s\n", line, c->summary);
  }
  fprintf(to, "\nTo begin with:\n"
              "  kvsim trace generate --preset=sharegpt-chat -n 2000 --rate=2 -o chat.jsonl\n"
              "  kvsim chat.jsonl\n"
              "  kvsim compare chat.jsonl --use kivi --use snapkv\n"
              "\n'kvsim COMMAND --help' tells more, with an example.\n");
}

static const KvCommand *find_command(const char *name, const char *kind, GError **error) {
  const KvCommand *command = kv_command_find(name);
  if (command)
    return command;
  g_autoptr(GPtrArray) names = g_ptr_array_new();
  for (const KvCommand *c = kv_commands; c->name; c++)
    g_ptr_array_add(names, (gpointer)c->name);
  g_ptr_array_add(names, NULL);
  g_autofree char *unknown = kv_names_unknown(kind, name, (const char *const *)names->pdata);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see 'kvsim --help')", unknown);
  return NULL;
}

/* Whether `name` stands where a command would but is a trace, or an option of `run`. */
static gboolean is_trace(const char *name) {
  return !kv_command_find(name) &&
         (name[0] == '-' || g_file_test(name, G_FILE_TEST_EXISTS) || strpbrk(name, "./"));
}

/* What was printed must have arrived: a table on a full disk is a failure, not a success. */
static gboolean flush_output(GError **error) {
  errno = 0;
  if (fflush(stdout) == 0 && !ferror(stdout))
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "standard output: cannot be written (%s)",
              g_strerror(errno ? errno : EIO));
  return FALSE;
}

/* `help COMMAND ...` is `COMMAND ... --help`. */
static gboolean help(int argc, char **argv, GError **error) {
  const KvCommand *command = find_command(argv[0], "command", error);
  g_autofree char **turned = g_new0(char *, (gsize)argc + 2);
  memcpy(turned, argv, (gsize)argc * sizeof *argv);
  turned[argc] = (char *)"--help";
  return command && command->run(argc + 1, turned, error);
}

static gboolean run(int argc, char **argv, GError **error) {
  if (strcmp(argv[1], "help") == 0)
    return help(argc - 2, argv + 2, error);
  if (is_trace(argv[1]))
    return kv_command_find("run")->run(argc, argv, error);
  const KvCommand *command = find_command(argv[1], "command or trace", error);
  return command && command->run(argc - 1, argv + 1, error);
}

int main(int argc, char **argv) {
  setlocale(LC_ALL, "C.UTF-8");
  if (argc < 2) {
    print_usage(stderr);
    return 2;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ||
      (!strcmp(argv[1], "help") && argc == 2)) {
    print_usage(stdout);
    return 0;
  }
  if (!strcmp(argv[1], "--version")) {
    printf("kvsim %s\n", KVSIM_VERSION);
    return 0;
  }
  take_signals();
  g_log_set_default_handler(remark, NULL);
  g_autoptr(GError) error = NULL;
  if (run(argc, argv, &error) && flush_output(&error))
    return 0;
  kv_output_discard_all();
  fprintf(stderr, "kvsim: %s\n", error->message);
  return kv_error_exit_status(error);
}
