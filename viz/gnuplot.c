#include "viz/gnuplot.h"

#include <gio/gio.h>
#include <signal.h>
#include <string.h>

enum { TIMEOUT_SECONDS = 60 };

#define FONTS                                                                                      \
  "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Helvetica, Arial, sans-serif"

/* Okabe and Ito, "Color Universal Design", 2008; black, which axes use, is left out and grey stands
 * in its place. */
const char *const kv_colours[KV_N_COLOURS] = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8f98", "#b8a800",
};

/* One gnuplot under way. */
typedef struct {
  GSubprocess *process;
  KvDrawing *drawing;
  guint *pending;
} Task;

static char *first_line(const char *text) {
  /* gnuplot echoes the line and marks the place before it says what is wrong: take the last line.
   */
  g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
  for (guint i = g_strv_length(lines); i-- > 0;)
    if (*g_strstrip(lines[i]))
      return g_strdup(lines[i]);
  return NULL;
}

static void finish(GObject *source, GAsyncResult *result, gpointer user) {
  Task *task = user;
  g_autofree char *svg = NULL, *said = NULL;
  g_autoptr(GError) error = NULL;
  gboolean done = g_subprocess_communicate_utf8_finish(task->process, result, &svg, &said, &error);
  gboolean good =
      done && g_subprocess_get_successful(task->process) && svg && strstr(svg, "</svg>");
  if (good) {
    task->drawing->svg = g_steal_pointer(&svg);
  } else {
    g_autofree char *line = first_line(said);
    if (!done)
      g_subprocess_force_exit(task->process);
    task->drawing->reason = g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CANCELLED)
                                ? g_strdup_printf("gnuplot took more than %d s", TIMEOUT_SECONDS)
                                : g_strdup_printf("gnuplot failed: %s", error  ? error->message
                                                                        : line ? line
                                                                               : "it said nothing");
  }
  g_object_unref(task->process);
  --*task->pending;
}

static gboolean give_up(gpointer cancellable) {
  g_cancellable_cancel(cancellable);
  return G_SOURCE_REMOVE;
}

static void start(const char *program, const char *script, Task *task, GCancellable *cancellable) {
  g_autoptr(GError) error = NULL;
  g_autoptr(GSubprocessLauncher) launcher =
      g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE |
                                G_SUBPROCESS_FLAGS_STDERR_PIPE);
  g_subprocess_launcher_setenv(launcher, "LC_ALL", "C.UTF-8",
                               TRUE);              /* decimal points, whatever the user's */
  const char *argv[] = {program, "-d", "-", NULL}; /* -d: not the user's ~/.gnuplot */
  task->process = g_subprocess_launcher_spawnv(launcher, argv, &error);
  if (!task->process) {
    task->drawing->reason = g_strdup_printf("gnuplot cannot be started: %s", error->message);
    return;
  }
  ++*task->pending;
  g_subprocess_communicate_utf8_async(task->process, script, cancellable, finish, task);
}

void kv_gnuplot_draw(const char *const *scripts, guint n, KvDrawing *drawings) {
  g_autofree char *program = g_find_program_in_path("gnuplot");
  for (guint i = 0; i < n; i++)
    drawings[i] = (KvDrawing){.reason = program ? NULL : g_strdup("gnuplot was not found")};
  if (!program || n == 0)
    return;
  g_autoptr(GMainContext) context = g_main_context_new();
  g_autoptr(GCancellable) cancellable = g_cancellable_new();
  g_autoptr(GSource) timer = g_timeout_source_new_seconds(TIMEOUT_SECONDS);
  g_autofree Task *tasks = g_new0(Task, n);
  guint pending = 0;
  /* A gnuplot that dies leaves a pipe that nobody reads: an error of its drawing, not the end of
   * us. */
  struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
  sigaction(SIGPIPE, &ignore, &before);
  g_main_context_push_thread_default(context);
  g_source_set_callback(timer, give_up, cancellable, NULL);
  g_source_attach(timer, context);
  for (guint i = 0; i < n; i++) {
    tasks[i] = (Task){.drawing = &drawings[i], .pending = &pending};
    start(program, scripts[i], &tasks[i], cancellable);
  }
  while (pending)
    g_main_context_iteration(context, TRUE);
  g_source_destroy(timer);
  g_main_context_pop_thread_default(context);
  sigaction(SIGPIPE, &before, NULL);
}

void kv_gnuplot_style(GString *script) {
  g_string_append(script, "set border 3 lc rgb '" KV_INK "' lw 1\n"
                          "set tics nomirror out scale 0.6 textcolor rgb '" KV_INK "'\n"
                          "set grid back lt 1 lc rgb '" KV_GRID "' lw 0.8\n"
                          "set key inside bottom right vertical Left reverse textcolor rgb '" KV_INK
                          "' samplen 1.4 spacing 1.1 noenhanced\n"
                          "set title offset 0,-0.4 textcolor rgb '" KV_INK "' noenhanced\n"
                          "set xlabel offset 0,0.3 textcolor rgb '" KV_INK "' noenhanced\n"
                          "set ylabel textcolor rgb '" KV_INK "' noenhanced\n"
                          "set style fill solid 0.85 noborder\n");
}

void kv_gnuplot_begin(GString *script, guint width, guint height) {
  g_string_append_printf(
      script,
      "set terminal svg size %u,%u dynamic enhanced font 'Helvetica,13' linewidth 1.0\n"
      "set encoding utf8\nset datafile missing '?'\n",
      width, height);
  kv_gnuplot_style(script);
}

void kv_gnuplot_panels(GString *script, guint rows, guint columns, double width, double height,
                       const KvMargins *margins) {
  g_string_append_printf(
      script,
      "set multiplot layout %u,%u margins screen %.4f,%.4f,%.4f,%.4f spacing screen %.4f,%.4f\n",
      rows, columns, margins->left / width, 1 - margins->right / width, margins->bottom / height,
      1 - margins->top / height, margins->across / width, margins->down / height);
}

/* Labels and objects with tags from here on are the key's. */
enum { KEY_TAG = 900, KEY_ROW = 22, KEY_SWATCH = 14, KEY_GAP = 26 };

double kv_gnuplot_key(GString *script, double left, double width, double height,
                      const char *const *names, const char *const *colours, guint n) {
  const double character = 7.1; /* about the mean width of a letter in the 13-point font */
  double x = left, y = 14;
  for (guint i = 0; i < n; i++) {
    double needs = KEY_SWATCH + 7 + character * (double)g_utf8_strlen(names[i], -1);
    if (x > left && x + needs > width - 10)
      x = left, y += KEY_ROW;
    if (script) {
      g_autofree char *name = kv_gnuplot_quote(names[i]);
      g_string_append_printf(
          script,
          "set object %u rect from screen %.4f,%.4f to screen %.4f,%.4f fc rgb '%s' fs solid 0.9 noborder\n"
          "set label %u %s at screen %.4f,%.4f left noenhanced textcolor rgb '" KV_INK "'\n",
          KEY_TAG + i, x / width, 1 - (y + 5) / height, (x + KEY_SWATCH) / width,
          1 - (y - 5) / height, colours[i], KEY_TAG + i, name, (x + KEY_SWATCH + 7) / width,
          1 - y / height);
    }
    x += needs + KEY_GAP;
  }
  return y + KEY_ROW / 2.0;
}

void kv_gnuplot_end_key(GString *script, guint n) {
  for (guint i = 0; i < n; i++)
    g_string_append_printf(script, "unset object %u\nunset label %u\n", KEY_TAG + i, KEY_TAG + i);
}

char *kv_gnuplot_quote(const char *text) {
  GString *quoted = g_string_new("'");
  for (const char *c = text; *c; c++) {
    const char *safe = *c == '\''  ? "\342\200\231"
                       : *c == '`' ? "\342\200\230"
                                   : NULL; /* ’ and ‘ */
    if (safe)
      g_string_append(quoted, safe);
    else
      g_string_append_c(quoted, (guchar)*c < ' ' ? ' ' : *c);
  }
  g_string_append_c(quoted, '\'');
  return g_string_free(quoted, FALSE);
}

static void replace_all(GString *text, const char *from, const char *to) {
  g_string_replace(text, from, to, 0);
}

/* Remove everything from `from` to the end of the next `to`. */
static void cut(GString *text, const char *from, const char *to) {
  char *start = strstr(text->str, from);
  char *end = start ? strstr(start, to) : NULL;
  if (end)
    g_string_erase(text, start - text->str, end + strlen(to) - start);
}

char *kv_gnuplot_tidy(const char *svg, const char *id, const char *title) {
  static const char *const names[] = {"gnuplot_", "gpDot", "gpPt", "textbox", "greybox"};
  const char *root = strstr(svg, "<svg");
  g_return_val_if_fail(root, NULL);
  GString *text = g_string_new(root);
  cut(text, "<title>", "</title>");
  cut(text, "<desc>", "</desc>");
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    g_autofree char *own = g_strconcat(id, "-", names[i], NULL);
    replace_all(text, names[i], own);
  }
  /* The family is said once, at the root, with what stands in where it is missing. */
  replace_all(text, " font-family=\"Helvetica\"", "");
  g_string_insert(text, strlen("<svg"), " font-family=\"" FONTS "\"");
  g_autofree char *escaped = g_markup_escape_text(title, -1);
  g_autofree char *element = g_strdup_printf("\n<title>%s</title>", escaped);
  g_string_insert(text, strchr(text->str, '>') - text->str + 1, element);
  return g_string_free(text, FALSE);
}
