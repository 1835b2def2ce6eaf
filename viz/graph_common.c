#include "viz/graph_common.h"

#include <gio/gio.h>
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "viz/graph.h"

static void set(void *object, const char *name, const char *value) {
  agsafeset(object, (char *)name, (char *)value, (char *)"");
}

Agraph_t *kv_graph_new(const char *title, const char *rank_direction) {
  static const struct {
    const char *name, *value;
  } of_nodes[] = {{"shape", "box"},     {"style", "rounded,filled"}, {"fillcolor", "#f2f5f8"},
                  {"color", "#8a97a3"}, {"fontname", "Helvetica"},   {"fontsize", "11"},
                  {"label", "\\N"}},
    of_edges[] = {{"color", "#5b6670"},
                  {"fontname", "Helvetica"},
                  {"fontsize", "10"},
                  {"label", ""},
                  {"dir", "forward"}},
    of_graph[] = {{"fontname", "Helvetica"}, {"fontsize", "14"}, {"labelloc", "t"},
                  {"nodesep", "0.35"},       {"ranksep", "0.6"}, {"pad", "0.2"}};
  Agraph_t *graph = agopen((char *)"kvsim", Agdirected, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(of_nodes); i++)
    agattr(graph, AGNODE, (char *)of_nodes[i].name, (char *)of_nodes[i].value);
  for (guint i = 0; i < G_N_ELEMENTS(of_edges); i++)
    agattr(graph, AGEDGE, (char *)of_edges[i].name, (char *)of_edges[i].value);
  for (guint i = 0; i < G_N_ELEMENTS(of_graph); i++)
    agattr(graph, AGRAPH, (char *)of_graph[i].name, (char *)of_graph[i].value);
  agattr(graph, AGRAPH, (char *)"style", (char *)"");
  agattr(graph, AGRAPH, (char *)"color", (char *)"");
  agattr(graph, AGRAPH, (char *)"label", (char *)title);
  agattr(graph, AGRAPH, (char *)"rankdir", (char *)rank_direction);
  return graph;
}

Agnode_t *kv_graph_box(Agraph_t *graph, const char *name, const char *label, const char *colour) {
  Agnode_t *node = agnode(graph, (char *)name, TRUE);
  set(node, "label", label);
  set(node, "fillcolor", colour);
  return node;
}

void kv_graph_edge(Agraph_t *graph, Agnode_t *from, Agnode_t *to, const char *label,
                   gboolean both) {
  Agedge_t *edge = agedge(graph, from, to, NULL, TRUE);
  set(edge, "label", label);
  if (both)
    set(edge, "dir", "both");
}

Agraph_t *kv_graph_frame(Agraph_t *graph, const char *name, const char *label) {
  g_autofree char *cluster = g_strconcat("cluster_", name, NULL);
  Agraph_t *frame = agsubg(graph, cluster, TRUE);
  set(frame, "label", label);
  set(frame, "style", "rounded");
  set(frame, "color", "#b6c0c9");
  return frame;
}

char *kv_graph_text(Agraph_t *graph) {
  char *text = NULL;
  size_t length = 0;
  FILE *file = open_memstream(&text, &length);
  agwrite(graph, file);
  fclose(file);
  agclose(graph);
  char *copy = g_strdup(text);
  free(text);
  return copy;
}

GBytes *kv_graph_render(const char *dot, const char *format, GError **error) {
  g_autofree char *type = g_strconcat("-T", format, NULL);
  g_autoptr(GError) problem = NULL;
  g_autoptr(GSubprocess) process =
      g_subprocess_new(G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE |
                           G_SUBPROCESS_FLAGS_STDERR_PIPE,
                       &problem, "dot", type, NULL);
  g_autoptr(GBytes) input = g_bytes_new(dot, strlen(dot));
  g_autoptr(GBytes) output = NULL, complaint = NULL;
  if (!process || !g_subprocess_communicate(process, input, NULL, &output, &complaint, &problem)) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "Graphviz' program dot cannot be run (%s), expected the package graphviz, or an "
                "output that ends in .dot",
                problem->message);
    return NULL;
  }
  if (g_subprocess_get_successful(process))
    return g_steal_pointer(&output);
  gsize length;
  const char *text = g_bytes_get_data(complaint, &length);
  g_autofree char *first = g_strndup(text ? text : "", strcspn(text ? text : "", "\n"));
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "dot -T%s: %s", format, first);
  return NULL;
}
