#include "reference/cuda/gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include "sim/base/error.h"

/* CANDIDATES: of the heuristic's algorithms, best guess first, that are timed once a shape. */
enum { WORKSPACE_BYTES = 64 << 20, CANDIDATES = 32, ROUNDS = 3 };
/* More rows are the tensor cores', which then read weights as quickly. */
enum { GEMV_ROWS = 2 };

/* What is used of cuBLASLt. */
#define FUNCTIONS(X)                                                                               \
  X(cublasLtCreate)                                                                                \
  X(cublasLtDestroy)                                                                               \
  X(cublasLtGetStatusString)                                                                       \
  X(cublasLtMatmul)                                                                                \
  X(cublasLtMatmulAlgoGetHeuristic)                                                                \
  X(cublasLtMatmulDescCreate)                                                                      \
  X(cublasLtMatmulDescDestroy)                                                                     \
  X(cublasLtMatmulDescSetAttribute)                                                                \
  X(cublasLtMatmulPreferenceCreate)                                                                \
  X(cublasLtMatmulPreferenceDestroy)                                                               \
  X(cublasLtMatmulPreferenceSetAttribute)                                                          \
  X(cublasLtMatrixLayoutCreate)                                                                    \
  X(cublasLtMatrixLayoutDestroy)

struct KvCudaGemm {
  void *library, *workspace;
  cublasLtHandle_t handle;
  GHashTable *plans; /* of Plan, by its Shape */
#define POINTER(name) __typeof__(name) *name;
  FUNCTIONS(POINTER)
#undef POINTER
};

typedef struct {
  guint rows, inputs, outputs, flags; /* flags: fp32 output, accumulated, biased */
} Shape;

typedef struct {
  Shape shape;
  KvCudaGemm *gemm;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t weight, x, out;
  cublasLtMatmulAlgo_t algorithm;
} Plan;

static guint shape_hash(gconstpointer key) {
  const Shape *s = key;
  return ((s->rows * 31 + s->inputs) * 31 + s->outputs) * 31 + s->flags;
}

static gboolean shape_equal(gconstpointer a, gconstpointer b) {
  const Shape *x = a, *y = b;
  return x->rows == y->rows && x->inputs == y->inputs && x->outputs == y->outputs &&
         x->flags == y->flags;
}

static void plan_free(gpointer data) {
  Plan *plan = data;
  if (plan->operation)
    (void)plan->gemm->cublasLtMatmulDescDestroy(plan->operation);
  cublasLtMatrixLayout_t layouts[] = {plan->weight, plan->x, plan->out};
  for (guint i = 0; i < G_N_ELEMENTS(layouts); i++)
    if (layouts[i])
      (void)plan->gemm->cublasLtMatrixLayoutDestroy(layouts[i]);
  g_free(plan);
}

/* By name where the loader looks, then in the toolkit. */
static void *open_library(void) {
  g_autofree char *name = g_strdup_printf("libcublasLt.so.%d", CUBLAS_VER_MAJOR);
  const char *home = g_getenv("CUDA_HOME");
  g_autofree char *beside = g_build_filename(home ? home : "/usr/local/cuda", "lib64", name, NULL);
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  return library ? library : dlopen(beside, RTLD_NOW | RTLD_LOCAL);
}

static gboolean load(KvCudaGemm *gemm, GError **error) {
  gemm->library = open_library();
  if (!gemm->library) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "cuda executor: %s, expected cuBLASLt %d on LD_LIBRARY_PATH or under CUDA_HOME",
                dlerror(), CUBLAS_VER_MAJOR);
    return FALSE;
  }
  const char *missing = NULL;
#define RESOLVE(name)                                                                              \
  gemm->name = (__typeof__(name) *)dlsym(gemm->library, #name);                                    \
  missing = gemm->name ? missing : #name;
  FUNCTIONS(RESOLVE)
#undef RESOLVE
  if (missing)
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "cuda executor: cuBLASLt has no %s", missing);
  return !missing;
}

static gboolean ok(const KvCudaGemm *gemm, cublasStatus_t status, const char *what,
                   const Shape *shape, GError **error) {
  if (status == CUBLAS_STATUS_SUCCESS)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
              "cuda executor: cuBLASLt: %s: %s (rows %u, inputs %u, outputs %u)", what,
              gemm->cublasLtGetStatusString(status), shape ? shape->rows : 0,
              shape ? shape->inputs : 0, shape ? shape->outputs : 0);
  return FALSE;
}

KvCudaGemm *kv_cuda_gemm_new(GError **error) {
  g_autoptr(KvCudaGemm) gemm = g_new0(KvCudaGemm, 1);
  gemm->plans = g_hash_table_new_full(shape_hash, shape_equal, NULL, plan_free);
  if (!load(gemm, error) ||
      !ok(gemm, gemm->cublasLtCreate(&gemm->handle), "no handle", NULL, error) ||
      !(gemm->workspace = kv_cuda_alloc(WORKSPACE_BYTES, "cuBLASLt's workspace", error)))
    return NULL;
  return g_steal_pointer(&gemm);
}

void kv_cuda_gemm_free(KvCudaGemm *gemm) {
  if (!gemm)
    return;
  g_hash_table_unref(gemm->plans);
  if (gemm->handle)
    (void)gemm->cublasLtDestroy(gemm->handle);
  kv_cuda_free(gemm->workspace);
  if (gemm->library)
    dlclose(gemm->library);
  g_free(gemm);
}

/* cuBLASLt counts columns first: out^T[N x R] = weight^T[K x N]^T x^T[K x R]. */
static gboolean describe(Plan *plan, gboolean out_f32, gboolean biased, GError **error) {
  const KvCudaGemm *g = plan->gemm;
  const Shape *s = &plan->shape;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  cublasStatus_t status =
      g->cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = g->cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA,
                                               &transposed, sizeof transposed);
  if (status == CUBLAS_STATUS_SUCCESS && biased)
    status = g->cublasLtMatmulDescSetAttribute(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                               &epilogue, sizeof epilogue);
  if (status == CUBLAS_STATUS_SUCCESS)
    status =
        g->cublasLtMatrixLayoutCreate(&plan->weight, CUDA_R_16BF, s->inputs, s->outputs, s->inputs);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = g->cublasLtMatrixLayoutCreate(&plan->x, CUDA_R_16BF, s->inputs, s->rows, s->inputs);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = g->cublasLtMatrixLayoutCreate(&plan->out, out_f32 ? CUDA_R_32F : CUDA_R_16BF,
                                           s->outputs, s->rows, s->outputs);
  return ok(g, status, "no description of a product", s, error);
}

/* The heuristic's best guesses that can run, *found of them. */
static gboolean guess(Plan *plan, cublasLtMatmulHeuristicResult_t *results, int wanted, int *found,
                      GError **error) {
  const KvCudaGemm *g = plan->gemm;
  cublasLtMatmulPreference_t preference = NULL;
  const gsize most = WORKSPACE_BYTES;
  *found = 0;
  cublasStatus_t status = g->cublasLtMatmulPreferenceCreate(&preference);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = g->cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
  if (status == CUBLAS_STATUS_SUCCESS)
    status =
        g->cublasLtMatmulAlgoGetHeuristic(g->handle, plan->operation, plan->weight, plan->x,
                                          plan->out, plan->out, preference, wanted, results, found);
  if (status == CUBLAS_STATUS_SUCCESS && *found == 0)
    status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (preference)
    (void)g->cublasLtMatmulPreferenceDestroy(preference);
  return ok(g, status, "no algorithm for a product", &plan->shape, error);
}

static gboolean multiply(const Plan *plan, const cublasLtMatmulAlgo_t *algorithm,
                         const KvCudaProduct *p, void *out, cudaStream_t stream, GError **error) {
  KvCudaGemm *g = plan->gemm;
  const float one = 1.0f, add = p->accumulate ? 1.0f : 0.0f;
  return ok(g,
            g->cublasLtMatmul(g->handle, plan->operation, &one, p->weight, plan->weight, p->x,
                              plan->x, &add, out, plan->out, out, plan->out, algorithm,
                              g->workspace, WORKSPACE_BYTES, stream),
            "a product failed", &plan->shape, error);
}

/* What a timed product works with instead of its own output, and an array whose writing drives the
 * weights out of the second-level cache: in a step they come from memory. */
typedef struct {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  void *out, *other;
  gsize out_bytes, other_bytes;
} Trial;

/* Milliseconds of the fastest of ROUNDS runs; G_MAXFLOAT of an algorithm that does not run. */
static gboolean try_algorithm(const Plan *plan, const cublasLtMatmulAlgo_t *algorithm,
                              const KvCudaProduct *p, const Trial *t, float *best, GError **error) {
  *best = G_MAXFLOAT;
  for (guint r = 0; r < ROUNDS; r++) {
    float milliseconds = 0.0f;
    if (!KV_CUDA_OK(cudaMemsetAsync(t->other, (int)r, t->other_bytes, t->stream), error) ||
        !KV_CUDA_OK(cudaEventRecord(t->begin, t->stream), error))
      return FALSE;
    if (!multiply(plan, algorithm, p, t->out, t->stream, NULL))
      return TRUE;
    if (!KV_CUDA_OK(cudaEventRecord(t->end, t->stream), error) ||
        !KV_CUDA_OK(cudaEventSynchronize(t->end), error) ||
        !KV_CUDA_OK(cudaEventElapsedTime(&milliseconds, t->begin, t->end), error))
      return FALSE;
    *best = MIN(*best, milliseconds);
  }
  return TRUE;
}

static gboolean trial_init(Trial *t, GError **error) {
  return (t->out = kv_cuda_alloc(t->out_bytes, "a timed product", error)) &&
         (t->other = kv_cuda_alloc(t->other_bytes, "a timed product", error)) &&
         KV_CUDA_OK(cudaMemsetAsync(t->out, 0, t->out_bytes, t->stream), error) &&
         KV_CUDA_OK(cudaEventCreate(&t->begin), error) &&
         KV_CUDA_OK(cudaEventCreate(&t->end), error);
}

static void trial_clear(Trial *t) {
  if (t->begin)
    (void)cudaEventDestroy(t->begin);
  if (t->end)
    (void)cudaEventDestroy(t->end);
  kv_cuda_free(t->out);
  kv_cuda_free(t->other);
}

/* The fastest of the guesses. Where there is no memory to time them, the first. */
static gboolean choose(Plan *plan, const KvCudaProduct *p, cudaStream_t stream, GError **error) {
  cublasLtMatmulHeuristicResult_t results[CANDIDATES];
  int found = 0;
  if (!guess(plan, results, CANDIDATES, &found, error))
    return FALSE;
  plan->algorithm = results[0].algo;
  Trial trial = {.stream = stream,
                 .out_bytes = (gsize)p->rows * p->outputs * sizeof(float),
                 .other_bytes = (gsize)128 << 20};
  g_autoptr(GError) ignored = NULL;
  gboolean done = TRUE;
  float fastest = G_MAXFLOAT;
  if (found > 1 && trial_init(&trial, &ignored))
    for (int i = 0; done && i < found; i++) {
      float milliseconds;
      done = try_algorithm(plan, &results[i].algo, p, &trial, &milliseconds, error);
      if (done && milliseconds < fastest) {
        fastest = milliseconds;
        plan->algorithm = results[i].algo;
      }
    }
  trial_clear(&trial);
  return done;
}

static gboolean set_bias(const Plan *plan, const KvCudaProduct *p, GError **error) {
  return !p->bias ||
         ok(plan->gemm,
            plan->gemm->cublasLtMatmulDescSetAttribute(
                plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias),
            "no bias", &plan->shape, error);
}

static Plan *plan_for(KvCudaGemm *gemm, const KvCudaProduct *p, cudaStream_t stream,
                      GError **error) {
  Shape shape = {p->rows, p->inputs, p->outputs,
                 (p->out_f32 ? 1u : 0u) | (p->accumulate ? 2u : 0u) | (p->bias ? 4u : 0u)};
  Plan *plan = g_hash_table_lookup(gemm->plans, &shape);
  if (plan)
    return plan;
  plan = g_new0(Plan, 1);
  plan->shape = shape;
  plan->gemm = gemm;
  if (!describe(plan, p->out_f32, p->bias != NULL, error) || !set_bias(plan, p, error) ||
      !choose(plan, p, stream, error)) {
    plan_free(plan);
    return NULL;
  }
  g_hash_table_insert(gemm->plans, &plan->shape, plan);
  return plan;
}

gboolean kv_cuda_gemm_run(KvCudaGemm *gemm, const KvCudaProduct *p, cudaStream_t stream,
                          GError **error) {
  g_return_val_if_fail(!p->accumulate || p->out_f32, FALSE);
  g_return_val_if_fail(!p->bias || !p->out_f32, FALSE);
  if (p->rows == 0)
    return TRUE;
  if (p->rows <= GEMV_ROWS && p->inputs % 8 == 0)
    return KV_CUDA_OK(kv_cuda_gemv(p->out, p->out_f32, p->accumulate, p->x, p->weight, p->bias,
                                   p->rows, p->inputs, p->outputs, stream),
                      error);
  const Plan *plan = plan_for(gemm, p, stream, error);
  return plan && set_bias(plan, p, error) &&
         multiply(plan, &plan->algorithm, p, p->out, stream, error);
}
