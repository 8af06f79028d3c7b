// The kernels that were compiled, and the choice among them at run time.
#pragma once

#include "cpu/kernels/attention.h"

namespace rrd::cpu {

#if defined(__x86_64__)
extern const AttentionKernel<float> kAvx512Float;
extern const AttentionKernel<double> kAvx512Double;
extern const AttentionKernel<float> kAvx2Float;
extern const AttentionKernel<double> kAvx2Double;
AttentionKernel<float> avx512_bf16_kernel();
#endif
#if defined(__x86_64__) && defined(__linux__)
AttentionKernel<float> amx_kernel();
#endif
extern const AttentionKernel<float> kBaselineFloat;
extern const AttentionKernel<double> kBaselineDouble;

// The best kernel that this machine runs. `bfloat16_products` allows products of bfloat16
// operands; a machine without them computes in float32.
template <typename T>
const AttentionKernel<T>& select_kernel(bool bfloat16_products);
template <>
const AttentionKernel<float>& select_kernel<float>(bool bfloat16_products);
template <>
const AttentionKernel<double>& select_kernel<double>(bool bfloat16_products);

}  // namespace rrd::cpu
