// The one function of the CUDA driver that is needed, found at run time: no toolkit to build with.
#pragma once

#include <cstdint>

namespace rrd::cuda {

// Whether there is a driver to launch with; looked for once.
bool driver_found();

// cuLaunchKernel with one-dimensional blocks, in the device's primary context. Raises on an error.
void launch_kernel(int device, int64_t function, const uint32_t (&grid)[3], uint32_t threads,
                   uint32_t shared_bytes, void* stream, void** parameters);

}  // namespace rrd::cuda
