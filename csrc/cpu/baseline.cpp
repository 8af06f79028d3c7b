// The kernels of attention_simd.inl and sampled_simd.inl for the compiler's default instruction
// set.
#include <limits>
#include <type_traits>

#include "cpu/attention.h"
#include "cpu/kernels.h"
#include "cpu/sampled.h"

#define RRD_VECTOR_BYTES 16
#define RRD_ISA_NAME "baseline"
#define RRD_ROW_TILE 96
#define RRD_LOGIT_ROWS 4
#define RRD_OUTPUT_VECTORS 2

namespace rrd::cpu {
namespace baseline {
#include "cpu/simd.inl"

#include "cpu/prefetch.inl"

#include "cpu/rows.inl"

#include "cpu/attention_simd.inl"

#include "cpu/sampled_simd.inl"
}  // namespace baseline

const AttentionKernel<float> kBaselineFloat = baseline::simd_kernel<float>();
const AttentionKernel<double> kBaselineDouble = baseline::simd_kernel<double>();
const SampledKernel<float> kBaselineSampledFloat = baseline::sampled_kernel<float>();
const SampledKernel<double> kBaselineSampledDouble = baseline::sampled_kernel<double>();

}  // namespace rrd::cpu
