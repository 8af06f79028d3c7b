// The kernels of attention_simd.inl and momentum_simd.inl for AVX-512.
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/kernels/attention.h"
#include "cpu/kernels/momentum.h"
#include "cpu/kernels/select.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define RRD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#include "cpu/kernels/target_begin.inl"

#define RRD_VECTOR_BYTES 64
#define RRD_ISA_NAME "avx512"
#define RRD_ROW_TILE 48
#define RRD_LOGIT_ROWS 12
#define RRD_OUTPUT_VECTORS 3

namespace rrd::cpu {
namespace avx512 {
#include "cpu/kernels/simd.inl"

#include "cpu/kernels/prefetch.inl"

#include "cpu/kernels/rows.inl"

#include "cpu/kernels/attention_simd.inl"

#include "cpu/kernels/momentum_simd.inl"
}  // namespace avx512

const AttentionKernel<float> kAvx512Float = avx512::simd_kernel<float>();
const AttentionKernel<double> kAvx512Double = avx512::simd_kernel<double>();
const MomentumKernel<float> kAvx512MomentumFloat = avx512::momentum_kernel<float>();
const MomentumKernel<double> kAvx512MomentumDouble = avx512::momentum_kernel<double>();

}  // namespace rrd::cpu

#include "cpu/kernels/target_end.inl"
#endif
