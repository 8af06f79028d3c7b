// Interface between the kernels of each instruction set and the operators of the momentum memory:
// the loss over sampled rows. As in attention.h, nothing here includes PyTorch.
#pragma once

#include <cstdint>

#include "cpu/kernels/attention.h"

namespace rrd::cpu {

// One sample's softmaxes, in double. Under the published similarity the logits are nearly constant,
// so that q - p would cancel in float32. Double costs little beside the products.
struct RelateTask {
  double* student;  // [padded_count] similarities s.v2; becomes d loss / d similarity
  double* teacher;  // [padded_count] similarities t.v1; overwritten
  double* scratch;  // [padded_count]
  int64_t count;    // P
  bool need_grad;
  bool exponential;      // logit = 2^(similarity * rate) * scale; else similarity * scale
  double rate;           // log2(e) / nce_t
  double student_scale;  // 1 / tau_s, divided by Z_v1 if exponential
  double teacher_scale;
  double derivative;  // 1 / tau_s; if exponential 1 / nce_t, to be multiplied by the logit
};

// One sample's contrastive loss in one view: the binary cross-entropy of its columns, of which the
// first is the positive. In double, as for RelateTask: thousands of columns of noise, each with a
// logit far below zero, add up to as much as the positive.
struct ContrastTask {
  double rate;   // a logit in units of log 2 is similarity * rate - shift; log2(e) / nce_t
  double shift;  // log2(Z (K / n + 1e-7))
  bool need_grad;
};

template <typename T>
struct MomentumKernel {
  int64_t (*padded_count)(int64_t count);
  // Elements of `room` that all_similarities and all_weighted_rows need.
  int64_t (*tile_room)(int64_t dim);
  // out[i * stride + j] = unit row i . memory row j, for j in [begin, end) and i in [0, batch).
  // packed: by AttentionKernel::pack, 2 * lanes samples of one view per panel.
  void (*all_similarities)(const MemoryView& memory, int64_t begin, int64_t end, const void* packed,
                           int64_t batch, T* out, int64_t stride, T* room);
  // out[i, padded_dim] = sum over j in [begin, end) of weights[i * stride + j] * row j
  void (*all_weighted_rows)(const MemoryView& memory, int64_t begin, int64_t end, const T* weights,
                            int64_t stride, int64_t batch, T* out, T* room);
  // out[p] = from[index[p]]
  void (*pick)(const T* from, const int64_t* index, int64_t count, double* out);
  // Elements of `room` that the functions below need, which read rows in random order.
  int64_t (*gather_room)(int64_t dim);
  // out[p] = unit . row index[p]
  void (*similarities)(const MemoryView& memory, const int64_t* index, int64_t count, const T* unit,
                       T* room, double* out);
  // out[dim] = sum_p weights[p] * row index[p]
  void (*weighted_rows)(const MemoryView& memory, const int64_t* index, const double* weights,
                        int64_t count, T* room, double* out);
  // Both at once for the contrastive loss, so that each row is read once: returns the loss of one
  // sample in one view, and writes with need_grad its derivative by the unit row, times nce_t.
  double (*contrast_rows)(const MemoryView& memory, const int64_t* index, int64_t count,
                          const T* unit, const ContrastTask& task, T* room, double* out);
  // The sample's loss.
  double (*relate)(const RelateTask& task);
  // The loss from all similarities, [padded_count]; they become its derivatives by the logits.
  double (*contrast)(double* similarities, int64_t count, const ContrastTask& task);
  // sum_p 2^(similarities[p] * rate); pads the array
  double (*exponential_sum)(double* similarities, int64_t count, double rate);
};

#if defined(__x86_64__)
extern const MomentumKernel<float> kAvx512MomentumFloat;
extern const MomentumKernel<double> kAvx512MomentumDouble;
extern const MomentumKernel<float> kAvx2MomentumFloat;
extern const MomentumKernel<double> kAvx2MomentumDouble;
#endif
extern const MomentumKernel<float> kBaselineMomentumFloat;
extern const MomentumKernel<double> kBaselineMomentumDouble;

// The kernel with the widest vectors that this machine runs and RRD_CPU_CAPABILITY allows.
template <typename T>
const MomentumKernel<T>& select_momentum_kernel();
template <>
const MomentumKernel<float>& select_momentum_kernel<float>();
template <>
const MomentumKernel<double>& select_momentum_kernel<double>();

}  // namespace rrd::cpu
