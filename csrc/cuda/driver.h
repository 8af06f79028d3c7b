// The CUDA driver functions that launches need, found at run time: no toolkit to build with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rrd::cuda {

// Whether there is a driver to launch with; searched for once.
bool driver_found();

// Loads machine code on `device` and returns a handle to its function `name`. The function may use
// `shared_bytes` of shared memory and stays loaded for the life of the process. Allowed during
// stream capture. Raises on an error.
int64_t load_kernel(int device, const void* code, const std::string& name, uint32_t shared_bytes);

// Sizes of a function's parameters in bytes; nullopt if the driver cannot tell (before CUDA 12.4).
std::optional<std::vector<int64_t>> parameter_sizes(int64_t function);

// A launch of one-dimensional blocks in the device's primary context. A `dependent` kernel may
// start before the previous kernel has ended and must wait for it itself (programmatic dependent
// launch). launch_kernel raises on an error.
struct Configuration {
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
  bool dependent;
};
void launch_kernel(int device, int64_t function, const Configuration& configuration, void* stream,
                   void** parameters);

}  // namespace rrd::cuda
