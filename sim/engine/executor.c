#include "sim/engine/executor.h"

const char *const kv_component_names[] = {
    "qkv projection",
    "prefill attention",
    "decode attention",
    "output projection",
    "MLP",
    "element-wise",
    "LM head",
    "sampling",
    "communication",
    "technique",
    "transfers",
    "launches",
    NULL,
};
G_STATIC_ASSERT(G_N_ELEMENTS(kv_component_names) == KV_N_COMPONENTS + 1);
