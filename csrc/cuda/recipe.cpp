#include "cuda/recipe.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

namespace rrd::cuda {
namespace {

constexpr size_t kNullPointers = 4;

class Reader {
 public:
  explicit Reader(c10::ArrayRef<int64_t> encoded) : encoded_(encoded) {}

  int64_t next() {
    TORCH_CHECK(at_ < encoded_.size(), "rrd_kernels: a recipe ends too soon");
    return encoded_[at_++];
  }
  bool at_end() const { return at_ == encoded_.size(); }

 private:
  c10::ArrayRef<int64_t> encoded_;
  size_t at_ = 0;
};

Launch read_launch(Reader& reader) {
  Launch launch;
  launch.function = reader.next();
  Configuration& configuration = launch.configuration;
  for (uint32_t& extent : configuration.grid) extent = static_cast<uint32_t>(reader.next());
  configuration.threads = static_cast<uint32_t>(reader.next());
  configuration.shared_bytes = static_cast<uint32_t>(reader.next());
  configuration.dependent = reader.next() != 0;
  const int64_t count = reader.next();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t source = reader.next();
    TORCH_CHECK(0 <= source && source <= static_cast<int64_t>(Source::kValue),
                "rrd_kernels: a recipe names no source ", source);
    launch.parameters.push_back({static_cast<Source>(source), reader.next()});
  }
  return launch;
}

}  // namespace

Recipe Recipe::parse(c10::ArrayRef<int64_t> encoded) {
  Recipe recipe;
  if (encoded.empty()) return recipe;
  Reader reader(encoded);
  recipe.workspace_bytes = reader.next();
  recipe.gradient_elements = reader.next();
  while (!reader.at_end()) recipe.launches.push_back(read_launch(reader));
  return recipe;
}

void* current_stream(int64_t device) {
  return device < 0 ? nullptr : at::accelerator::getCurrentStream(device).native_handle();
}

void launch_recipe(const Recipe& recipe, const Addresses& addresses, int device, void* stream) {
  for (const Launch& kernel : recipe.launches) {
    c10::SmallVector<int64_t, 40> values;
    for (const auto& [source, value] : kernel.parameters) {
      if (source == Source::kValue) {
        values.push_back(value);
      } else {
        const auto address = addresses.of[static_cast<int64_t>(source)];
        values.push_back(reinterpret_cast<int64_t>(address) + value);
      }
    }
    // Triton's kernels end with pointers to scratch memory, unused here. run.py of
    // rrd_kernels/triton/runtime has checked that there are two; four nulls are passed, to be safe.
    values.resize(values.size() + kNullPointers, 0);
    // The driver reads each parameter in its own size. On a little-endian host, a smaller parameter
    // is the first bytes of its int64.
    c10::SmallVector<void*, 40> parameters;
    for (int64_t& value : values) parameters.push_back(&value);
    launch_kernel(device, kernel.function, kernel.configuration, stream, parameters.data());
  }
}

}  // namespace rrd::cuda
