// Interface between this folder's kernels, one per instruction set, and the operators on top.
//
// The relational loss is attention over the memory with 2B queries, [s / tau_s ; t / tau_t], and
// K = V = memory. A panel holds the student's and the teacher's queries of `lanes` samples side by
// side, so that a row of a tile's logits holds both logits of a sample. With a hard target the
// teacher has no queries: both halves of a panel hold the student's, of twice as many samples. All
// logits are in units of log 2, so that exp2 is the only transcendental.
//
// Nothing here includes PyTorch. The kernels' files are compiled once per instruction set, so they
// must not instantiate inline functions: the linker could take that copy for other objects too.
#pragma once

#include <cstdint>

namespace rrd::cpu {

enum class Element : uint8_t { kFloat, kDouble, kBFloat16, kHalf };

struct MemoryView {
  const void* data;
  Element element;
  int64_t rows;
  int64_t dim;
  int64_t row_stride;     // in elements
  int64_t column_stride;  // in elements
};

// The order of a sample's student and teacher on every array axis of two.
enum Role : int { kStudent = 0, kTeacher = 1, kRoles = 2 };

// What a pass adds up beside the weights. A kernel is compiled for each.
enum class Sums : uint8_t {
  kRows,   // the weighted rows: with a gradient
  kCross,  // the teacher's weight times the student's logit: the cross-entropy alone
  kRatio,  // the teacher's weight times the student's logit less its own: the KL divergence alone
};

// Half of a panel: the queries of one network.
template <typename T>
struct PanelHalf {
  const T* unit;  // unit rows [count, padded_dim]
  int64_t count;  // up to `lanes`; missing lanes are zero
  T scale;        // log2(e) / tau
};

// Partials: sums over some rows of the memory, for `panels` panels of queries.
template <typename T>
struct Partial {
  T* output;  // [panels, 2, lanes, padded_dim]  sum_j 2^(logit_j - shift) m_j; null without a
              // gradient
  T* shift;   // [panels, 2, lanes]              the maximum; zero on the bounded path
  T* sum;     // [panels, 2, lanes]              sum_j 2^(logit_j - shift)
  T* cross;   // [panels, lanes]                 sum_j 2^(a_j - shift_a) b_j, or (b_j - a_j); null
              // with a gradient
};

template <typename T>
struct AttentionTask {
  MemoryView memory;
  int64_t row_begin;
  int64_t row_end;
  const void* queries;  // packed by AttentionKernel::pack
  int64_t panels;
  bool bounded;  // |logit| small enough for exp2 without a running maximum
  Sums sums;
  Partial<T> partial;
  void* scratch;  // scratch_bytes, aligned to kAlignment
};

// Each sample's loss and its row of the gradient, from the partials of all splits.
template <typename T>
struct CombineTask {
  int64_t batch_begin;
  int64_t batch_end;
  int64_t dim;
  int64_t lanes;
  int64_t splits;
  int64_t split_stride;   // panels * lanes: samples in one split's arrays
  const T* student;       // unit rows [B, padded_dim]
  const T* teacher;       // unit rows [B, padded_dim]
  const T* student_norm;  // [B]
  Partial<T> partial;     // [splits, panels, ...]
  double tau_s;
  double tau_t;          // 0: a hard target
  bool own_pair;         // the teacher's row is one more column
  bool kl;               // less the teacher's entropy; false for a hard target, which has none
  bool rounded_queries;  // to bfloat16, after scaling
  double sample_weight;  // of each sample's loss in the reduced loss
  T* loss;               // [B], without sample_weight
  T* grad;               // [B, dim]; null without a gradient
  T* workspace;          // [2, padded_dim]; null without a gradient
};

constexpr int64_t kAlignment = 64;
constexpr double kNormEps = 1e-12;  // torch.nn.functional.normalize

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <typename T>
struct AttentionKernel {
  const char* name;
  bool rounded_queries;  // pack rounds them to bfloat16
  int64_t lanes;
  int64_t block_panels;  // panels that share one tile of the memory while it is in cache
  int64_t (*padded_dim)(int64_t dim);
  int64_t (*panel_bytes)(int64_t dim);
  int64_t (*scratch_bytes)(int64_t dim, int64_t panels);
  // rows [count, dim] -> unit [count, padded_dim], zero padded; norm [count], not clamped.
  void (*normalize)(const T* rows, int64_t count, int64_t dim, T* unit, T* norm);
  void (*pack)(const PanelHalf<T> (&halves)[kRoles], int64_t dim, void* panel);
  void (*attend)(const AttentionTask<T>& task);
  void (*combine)(const CombineTask<T>& task);
};

}  // namespace rrd::cpu
