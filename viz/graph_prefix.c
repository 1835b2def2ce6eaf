/* The tree of prefixes that a trace's requests share. */
#include <string.h>

#include "sim/base/error.h"
#include "viz/format.h"
#include "viz/graph.h"
#include "viz/graph_common.h"

typedef struct Node Node;
struct Node {
  guint64 hash;
  guint64 requests; /* whose prompts go through this block */
  guint64 index;    /* order of appearance */
  Node *parent, *child, *next;
};

static Node *node_new(GPtrArray *nodes, guint64 hash, Node *parent) {
  Node *node = g_new0(Node, 1);
  node->hash = hash;
  node->parent = parent;
  node->index = nodes->len;
  g_ptr_array_add(nodes, node);
  if (parent) {
    node->next = parent->child;
    parent->child = node;
  }
  return node;
}

/* Names are of a block and everything before it, so one table finds every node. */
static guint64 grow(KvTraceReader *reader, GPtrArray *nodes, Node *root, GError **error) {
  g_autoptr(GHashTable) known = g_hash_table_new(g_int64_hash, g_int64_equal);
  KvTraceRequest request;
  guint64 requests = 0;
  while (kv_trace_reader_next(reader, &request, error)) {
    Node *at = root;
    requests++;
    root->requests++;
    for (guint32 i = 0; i < request.n_hashes; i++) {
      Node *node = g_hash_table_lookup(known, &request.hashes[i]);
      if (!node) {
        node = node_new(nodes, request.hashes[i], at);
        g_hash_table_insert(known, &node->hash, node);
      }
      node->requests++;
      at = node;
    }
  }
  return requests;
}

/* The last block of the run that begins at `node`: an only child with the same requests. */
static Node *end_of_run(Node *node, guint64 *blocks) {
  *blocks = 1;
  while (node->child && !node->child->next && node->child->requests == node->requests) {
    node = node->child;
    (*blocks)++;
  }
  return node;
}

static int by_requests(const void *a, const void *b) {
  const Node *x = *(const Node *const *)a, *y = *(const Node *const *)b;
  if (x->requests != y->requests)
    return x->requests > y->requests ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

typedef struct {
  Agraph_t *graph;
  guint32 block_tokens;
  guint left; /* boxes that may still be drawn */
} Drawing;

static void draw_children(Drawing *d, Node *node, Agnode_t *box) {
  g_autoptr(GPtrArray) children = g_ptr_array_new();
  guint64 single = 0;
  for (Node *child = node->child; child; child = child->next) {
    if (child->requests > 1)
      g_ptr_array_add(children, child);
    else
      single++;
  }
  if (children->len > 0)
    qsort(children->pdata, children->len, sizeof *children->pdata, by_requests);
  guint64 hidden = 0;
  for (guint i = 0; i < children->len; i++) {
    Node *child = g_ptr_array_index(children, i);
    if (d->left == 0) {
      hidden++;
      continue;
    }
    d->left--;
    guint64 blocks;
    Node *last = end_of_run(child, &blocks);
    g_autofree char *name = g_strdup_printf("prefix %" G_GUINT64_FORMAT, child->index);
    g_autofree char *requests = kv_format_whole(child->requests);
    g_autofree char *tokens = kv_format_whole(blocks * d->block_tokens);
    g_autofree char *label = g_strdup_printf("%s tokens\\n%s requests", tokens, requests);
    Agnode_t *own = kv_graph_box(d->graph, name, label, "#dbeaf7");
    kv_graph_edge(d->graph, box, own, "", FALSE);
    draw_children(d, last, own);
  }
  if (single + hidden == 0)
    return;
  g_autofree char *name = g_strdup_printf("rest of %" G_GUINT64_FORMAT, node->index);
  g_autofree char *ones = kv_format_whole(single), *more = kv_format_whole(hidden);
  g_autofree char *label =
      hidden == 0
          ? g_strdup_printf("%s of one request each", ones)
          : g_strdup_printf("%s of one request each,\\n%s shared ones not drawn", ones, more);
  kv_graph_edge(d->graph, box, kv_graph_box(d->graph, name, label, "#f2f5f8"), "", FALSE);
}

char *kv_graph_prefixes(KvTraceReader *reader, guint most, GError **error) {
  guint32 block_tokens = kv_trace_reader_block_tokens(reader);
  g_autoptr(GPtrArray) nodes = g_ptr_array_new_with_free_func(g_free);
  g_autoptr(GError) problem = NULL;
  Node *root = node_new(nodes, 0, NULL);
  guint64 requests = grow(reader, nodes, root, &problem);
  if (problem) {
    g_propagate_error(error, g_steal_pointer(&problem));
    return NULL;
  }
  if (nodes->len == 1) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "%s: no request names its prefix blocks, expected hash_ids or token ids",
                kv_trace_reader_name(reader));
    return NULL;
  }
  g_autofree char *name = g_path_get_basename(kv_trace_reader_name(reader));
  g_autofree char *blocks = kv_format_whole(nodes->len - 1), *all = kv_format_whole(requests);
  g_autofree char *title = g_strdup_printf("%s: %s requests, %s different blocks of %u tokens",
                                           name, all, blocks, block_tokens);
  Drawing d = {kv_graph_new(title, "LR"), block_tokens, most};
  g_autofree char *label = g_strdup_printf("%s requests", all);
  draw_children(&d, root, kv_graph_box(d.graph, "root", label, "#e3eaf2"));
  return kv_graph_text(d.graph);
}
