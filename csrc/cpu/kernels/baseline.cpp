// The kernels of attention_simd.inl and momentum_simd.inl for the compiler's default instruction
// set.
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/kernels/attention.h"
#include "cpu/kernels/momentum.h"
#include "cpu/kernels/select.h"

#define RRD_VECTOR_BYTES 16
#define RRD_ISA_NAME "baseline"
#define RRD_ROW_TILE 96
#define RRD_LOGIT_ROWS 4
#define RRD_OUTPUT_VECTORS 2

namespace rrd::cpu {
namespace baseline {
#include "cpu/kernels/simd.inl"

#include "cpu/kernels/prefetch.inl"

#include "cpu/kernels/rows.inl"

#include "cpu/kernels/attention_simd.inl"

#include "cpu/kernels/momentum_simd.inl"
}  // namespace baseline

const AttentionKernel<float> kBaselineFloat = baseline::simd_kernel<float>();
const AttentionKernel<double> kBaselineDouble = baseline::simd_kernel<double>();
const MomentumKernel<float> kBaselineMomentumFloat = baseline::momentum_kernel<float>();
const MomentumKernel<double> kBaselineMomentumDouble = baseline::momentum_kernel<double>();

}  // namespace rrd::cpu
