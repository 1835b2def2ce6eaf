#include "viz/plots.h"

#include <string.h>

#include "sim/base/output.h"

const KvPlot *const kv_plots[] = {
    &kv_plot_comparison,   &kv_plot_latency_cdf,
    &kv_plot_latency_time, &kv_plot_sequences,
    &kv_plot_blocks,       &kv_plot_throughput,
    &kv_plot_components,   &kv_plot_roofline,
    &kv_plot_utilization,  NULL,
};

char *kv_plot_run_name(const KvSummary *run, guint width) {
  const char *label = run->label && *run->label ? run->label : "default";
  g_autofree char *valid = g_utf8_make_valid(label, -1);
  if (g_utf8_strlen(valid, -1) <= (glong)width)
    return g_steal_pointer(&valid);
  g_autofree char *head = g_utf8_substring(valid, 0, (glong)width - 1);
  return g_strconcat(head, "\342\200\246", NULL);
}

double kv_plot_runs_key(GString *script, double left, double width, double height,
                        const KvSummary *const *runs, guint n_runs) {
  g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
  if (n_runs < 2)
    return 0;
  for (guint r = 0; r < n_runs; r++)
    g_ptr_array_add(names, kv_plot_run_name(runs[r], n_runs > 3 ? 30 : 56));
  return kv_gnuplot_key(script, left, width, height, (const char *const *)names->pdata, kv_colours,
                        n_runs);
}

void kv_plot_note(GString *script, const char *title, const char *note) {
  g_autofree char *quoted_title = kv_gnuplot_quote(title), *quoted_note = kv_gnuplot_quote(note);
  kv_say(
      script,
      "set title %s\nunset xlabel\nunset ylabel\nunset tics\nunset key\nunset logscale\n"
      "set border 0\nset xrange [0:1]\nset yrange [0:1]\n"
      "set label 1 %s at graph 0.5,0.5 center textcolor rgb '" KV_INK "' noenhanced\n"
      "plot NaN notitle\nunset label 1\nset autoscale\nset xtics nomirror autofreq\nset ytics nomirror autofreq\n",
      quoted_title, quoted_note);
  kv_gnuplot_style(script);
}

/* Write one picture, or say why not. */
static char *keep(const KvRunDirectory *directory, const KvPlot *plot, const KvDrawing *drawing) {
  if (!drawing->svg)
    return g_strdup(drawing->reason);
  g_autofree char *name = g_strconcat(plot->id, ".svg", NULL);
  g_autofree char *path = kv_run_directory_file(directory, name);
  g_autofree char *svg = kv_gnuplot_tidy(drawing->svg, plot->id, plot->title);
  g_autoptr(GError) error = NULL;
  return kv_output_write_file(path, svg, -1, &error) ? NULL : g_strdup(error->message);
}

char **kv_plots_draw(const KvRunDirectory *directory, const KvSummary *const *runs, guint n_runs,
                     char **reason) {
  g_autoptr(GPtrArray) scripts = g_ptr_array_new_with_free_func(g_free);
  g_autoptr(GPtrArray) drawn = g_ptr_array_new(); /* the plots that the scripts are of */
  GPtrArray *missing = g_ptr_array_new();
  *reason = NULL;
  for (guint i = 0; kv_plots[i]; i++) {
    GString *script = g_string_new(NULL);
    if (kv_plots[i]->script(script, runs, n_runs)) {
      g_ptr_array_add(scripts, g_string_free(script, FALSE));
      g_ptr_array_add(drawn, (gpointer)kv_plots[i]);
    } else {
      g_string_free(script, TRUE);
    }
  }
  g_autofree KvDrawing *drawings = g_new0(KvDrawing, drawn->len + 1);
  kv_gnuplot_draw((const char *const *)scripts->pdata, drawn->len, drawings);
  for (guint i = 0; i < drawn->len; i++) {
    const KvPlot *plot = g_ptr_array_index(drawn, i);
    g_autofree char *problem = keep(directory, plot, &drawings[i]);
    if (problem)
      g_ptr_array_add(missing, g_strdup(plot->id));
    if (problem && !*reason)
      *reason = g_steal_pointer(&problem);
    g_free(drawings[i].svg);
    g_free(drawings[i].reason);
  }
  g_ptr_array_add(missing, NULL);
  return (char **)g_ptr_array_free(missing, FALSE);
}
