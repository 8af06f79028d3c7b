// What is needed of the CUDA driver, found at run time: no toolkit to build with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rrd::cuda {

// Whether there is a driver to launch with; looked for once.
bool driver_found();

// Loads machine code for `device` and returns a handle to its function `name`, which then may have
// `shared_bytes` of shared memory and stays loaded as long as the process lives. Allowed during a
// stream's capture. Raises on an error.
int64_t load_kernel(int device, const void* code, const std::string& name, uint32_t shared_bytes);

// The sizes in bytes of what a function is passed; none where the driver cannot tell (before CUDA
// 12.4).
std::optional<std::vector<int64_t>> parameter_sizes(int64_t function);

// A launch of one-dimensional blocks in the device's primary context. A dependent one may start
// before the kernel launched before it has ended, for which it has to wait itself (programmatic
// dependent launch). Raises on an error.
struct Configuration {
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
  bool dependent;
};
void launch_kernel(int device, int64_t function, const Configuration& configuration, void* stream,
                   void** parameters);

}  // namespace rrd::cuda
