/* Loops that run once for each width of registers; which one runs is the processor's. */
#ifndef KV_REFERENCE_HOST_WIDE_H
#define KV_REFERENCE_HOST_WIDE_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KV_FOR_EACH_WIDTH __attribute__((target_clones("avx2", "default")))
#else
#define KV_FOR_EACH_WIDTH
#endif

#endif
