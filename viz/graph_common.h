/* What the graphs share: colours, and building with cgraph. Internal to viz/. */
#ifndef KV_VIZ_GRAPH_COMMON_H
#define KV_VIZ_GRAPH_COMMON_H

#include <glib.h>
#include <graphviz/cgraph.h>

/* A directed graph with the pictures' fonts and margins; close with kv_graph_text(). */
Agraph_t *kv_graph_new(const char *title, const char *rank_direction);
/* A box labelled `label` (\n breaks lines) and filled with `colour`. */
Agnode_t *kv_graph_box(Agraph_t *graph, const char *name, const char *label, const char *colour);
/* An edge with a label; `both`: arrows at both ends. */
void kv_graph_edge(Agraph_t *graph, Agnode_t *from, Agnode_t *to, const char *label, gboolean both);
/* A frame around what is made in it. */
Agraph_t *kv_graph_frame(Agraph_t *graph, const char *name, const char *label);
/* The DOT text; the graph is closed. */
char *kv_graph_text(Agraph_t *graph);

#endif
