/* kvsim COMMAND ..., or kvsim TRACE, which means kvsim run TRACE. */
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
  g_atomic_int_set(&kv_cli_interrupted, 1);
}

static void print_usage(FILE *to) {
  fprintf(to,
          "kvsim %s: what a trace would cost if the KV cache were managed another way\n\n"
          "  kvsim TRACE            replay TRACE with the default scenario\n",
          KVSIM_VERSION);
  for (const KvCommand *c = kv_commands; c->name; c++) {
    g_autofree char *line =
        g_strdup_printf("%s %s", c->name, strlen(c->arguments) > 12 ? "..." : c->arguments);
    fprintf(to, "  kvsim %-16s %s\n", line, c->summary);
  }
  fprintf(to, "\n'kvsim COMMAND --help' tells more, with an example.\n");
}

/* The command, or `run` if the first argument is a trace; NULL with *error set. */
static const KvCommand *choose(int argc, char **argv, GError **error) {
  const KvCommand *command = kv_command_find(argv[1]);
  gboolean trace =
      argv[1][0] == '-' || g_file_test(argv[1], G_FILE_TEST_EXISTS) || strpbrk(argv[1], "./");
  if (command || trace)
    return command ? command : kv_command_find("run");
  g_autoptr(GPtrArray) names = g_ptr_array_new();
  for (const KvCommand *c = kv_commands; c->name; c++)
    g_ptr_array_add(names, (gpointer)c->name);
  g_ptr_array_add(names, NULL);
  g_autofree char *unknown =
      kv_names_unknown("command or trace", argv[1], (const char *const *)names->pdata);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see 'kvsim --help')", unknown);
  return NULL;
}

int main(int argc, char **argv) {
  setlocale(LC_ALL, "C.UTF-8");
  if (argc < 2) {
    print_usage(stderr);
    return 2;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    print_usage(stdout);
    return 0;
  }
  if (!strcmp(argv[1], "--version")) {
    printf("kvsim %s\n", KVSIM_VERSION);
    return 0;
  }
  struct sigaction action = {.sa_handler = interrupt};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  g_autoptr(GError) error = NULL;
  const KvCommand *command = choose(argc, argv, &error);
  gboolean named = command && kv_command_find(argv[1]) == command;
  if (command && command->run(named ? argc - 1 : argc, named ? argv + 1 : argv, &error))
    return 0;
  kv_output_discard_all();
  fprintf(stderr, "kvsim: %s\n", error->message);
  return kv_error_exit_status(error);
}
