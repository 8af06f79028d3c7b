// Selects the kernels: the fastest instruction set of this machine, capped by RRD_CPU_CAPABILITY
// (the counterpart of PyTorch's ATEN_CPU_CAPABILITY).
#include "cpu/kernels/select.h"

#include <c10/util/Exception.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/kernels/momentum.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rrd::cpu {
namespace {

enum class Capability { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

#if defined(__x86_64__)
bool has_avx512_bf16() {
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16) != 0;
}

#if defined(RRD_EMULATE_TILES)
bool has_amx_bf16() { return true; }
#elif defined(__linux__)
// Linux gives the tile registers only to a process that has requested them.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0 && may_use_tiles();
}
#else
bool has_amx_bf16() { return false; }
#endif
#endif

Capability machine_capability() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (!has_avx512_bf16()) return Capability::kAvx512;
    return has_amx_bf16() ? Capability::kAmx : Capability::kAvx512Bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::kAvx2;
#endif
  return Capability::kBaseline;
}

Capability requested_capability() {
  const char* variable = std::getenv("RRD_CPU_CAPABILITY");
  const std::string name = variable == nullptr ? "" : variable;
  if (name.empty() || name == "amx") return Capability::kAmx;
  if (name == "avx512_bf16") return Capability::kAvx512Bf16;
  if (name == "avx512") return Capability::kAvx512;
  if (name == "avx2") return Capability::kAvx2;
  TORCH_CHECK_VALUE(name == "baseline",
                    "RRD_CPU_CAPABILITY must be baseline, avx2, avx512, avx512_bf16 or amx; got ",
                    name);
  return Capability::kBaseline;
}

// Whether AVX512-BF16 is worth its rounding: Intel's cores multiply float32 at twice its rate.
bool fast_avx512_bf16() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

Capability chosen_capability() {
  const Capability requested = requested_capability();
  const Capability best = std::min(machine_capability(), requested);
  const bool named = requested == Capability::kAvx512Bf16;
  const bool slow = best == Capability::kAvx512Bf16 && !named && !fast_avx512_bf16();
  return slow ? Capability::kAvx512 : best;
}

Capability capability() {
  static const Capability chosen = chosen_capability();
  return chosen;
}

template <typename Kernel>
const Kernel& widest([[maybe_unused]] const Kernel& avx512, [[maybe_unused]] const Kernel& avx2,
                     const Kernel& baseline) {
#if defined(__x86_64__)
  if (capability() >= Capability::kAvx512) return avx512;
  if (capability() >= Capability::kAvx2) return avx2;
#else
  capability();  // refuses a wrong RRD_CPU_CAPABILITY here too
#endif
  return baseline;
}

#if defined(__x86_64__)
#define RRD_WIDEST(type) widest(kAvx512##type, kAvx2##type, kBaseline##type)
#else
#define RRD_WIDEST(type) widest(kBaseline##type, kBaseline##type, kBaseline##type)
#endif

std::string torch_version() { return TORCH_VERSION; }

std::vector<std::string> cpu_kernels() {
  return {select_kernel<double>(false).name, select_kernel<float>(false).name,
          select_kernel<float>(true).name};
}

}  // namespace

template <>
const AttentionKernel<float>& select_kernel<float>([[maybe_unused]] bool bfloat16_products) {
#if defined(__x86_64__)
#if defined(__linux__)
  if (bfloat16_products && capability() == Capability::kAmx) {
    static const AttentionKernel<float> kernel = amx_kernel();
    return kernel;
  }
#endif
  if (bfloat16_products && capability() == Capability::kAvx512Bf16) {
    static const AttentionKernel<float> kernel = avx512_bf16_kernel();
    return kernel;
  }
#endif
  return RRD_WIDEST(Float);
}

template <>
const AttentionKernel<double>& select_kernel<double>(bool) {
  return RRD_WIDEST(Double);
}

template <>
const MomentumKernel<float>& select_momentum_kernel<float>() {
  return RRD_WIDEST(MomentumFloat);
}

template <>
const MomentumKernel<double>& select_momentum_kernel<double>() {
  return RRD_WIDEST(MomentumDouble);
}

TORCH_LIBRARY_IMPL(rrd_kernels, CatchAll, m) {
  m.impl("torch_version", torch_version);
  m.impl("cpu_kernels", cpu_kernels);
}

}  // namespace rrd::cpu
