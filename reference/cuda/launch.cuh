/* Launches that overlap: a kernel's blocks may begin while the kernel before it on the stream is
 * still at its last blocks (programmatic dependent launch), so that the launch, and whatever does
 * not depend on that kernel, is hidden behind it.
 *
 * Every kernel that is launched so calls await_previous() in all its threads before it reads or
 * writes what another kernel of the stream writes or reads; only constants (weights, arguments) may
 * be read earlier. Since all do, a kernel that has begun knows the one before the last to be done.
 */
#ifndef KV_REFERENCE_CUDA_LAUNCH_CUH
#define KV_REFERENCE_CUDA_LAUNCH_CUH

#include <stdint.h>

#include <cuda_runtime.h>

/* The kernel before on the stream is done, and what it wrote is visible. The next may begin. */
static __device__ __forceinline__ void await_previous() {
  asm volatile("griddepcontrol.launch_dependents;\n"
               "griddepcontrol.wait;\n" ::
                   : "memory");
}

/* `cluster` blocks along x that run side by side; 1: they need not. */
template <typename... Parameters, typename... Arguments>
static cudaError_t launch_early(void (*kernel)(Parameters...), dim3 grid, uint32_t threads,
                                size_t shared, cudaStream_t stream, uint32_t cluster,
                                Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

/* A number that is known when a kernel is compiled, as an argument. */
template <int n> struct Constant { static const int value = n; };

/* launch(the size of a head, as a Constant). */
template <typename Launch> static cudaError_t for_head_dim(uint32_t head_dim, Launch launch) {
  switch (head_dim) {
  case 64:
    return launch(Constant<64>());
  case 80:
    return launch(Constant<80>());
  case 96:
    return launch(Constant<96>());
  case 128:
    return launch(Constant<128>());
  default:
    return cudaErrorInvalidValue;
  }
}

#endif
