// The kernels of attention_simd.inl and momentum_simd.inl for AVX2.
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/kernels/attention.h"
#include "cpu/kernels/momentum.h"
#include "cpu/kernels/select.h"

#if defined(__x86_64__)

#define RRD_TARGET "avx2,fma,f16c"
#include "cpu/kernels/target_begin.inl"

#define RRD_VECTOR_BYTES 32
#define RRD_ISA_NAME "avx2"
#define RRD_ROW_TILE 96
#define RRD_LOGIT_ROWS 6
#define RRD_OUTPUT_VECTORS 2

namespace rrd::cpu {
namespace avx2 {
#include "cpu/kernels/simd.inl"

#include "cpu/kernels/prefetch.inl"

#include "cpu/kernels/rows.inl"

#include "cpu/kernels/attention_simd.inl"

#include "cpu/kernels/momentum_simd.inl"
}  // namespace avx2

const AttentionKernel<float> kAvx2Float = avx2::simd_kernel<float>();
const AttentionKernel<double> kAvx2Double = avx2::simd_kernel<double>();
const MomentumKernel<float> kAvx2MomentumFloat = avx2::momentum_kernel<float>();
const MomentumKernel<double> kAvx2MomentumDouble = avx2::momentum_kernel<double>();

}  // namespace rrd::cpu

#include "cpu/kernels/target_end.inl"
#endif
