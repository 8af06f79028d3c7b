// What the losses over sampled rows of the two memories share: their views, and the parts of the
// dense method, which multiplies all rows, and of gather, which reads the sampled ones.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "cpu/kernels/momentum.h"
#include "cpu/kernels/select.h"
#include "cpu/momentum/indices.h"
#include "cpu/parallel.h"
#include "cpu/tensors.h"

namespace rrd::cpu {

// Embeddings, and the memory that they are compared with.
template <typename T>
struct View {
  View(const at::Tensor& z, const at::Tensor& memory)
      : rows(z.to(c10::CppTypeToScalarType<T>::value).contiguous()),
        norm(z.size(0)),
        memory(memory) {
    const auto& kernel = select_kernel<T>(false);
    // Extra rows of zeros fill the last panel.
    const int64_t batch = z.size(0), extra = kRoles * kernel.lanes;
    unit = at::empty({batch + extra, kernel.padded_dim(z.size(1))}, rows.options());
    unit.narrow(0, batch, extra).zero_();
  }

  const T* row(int64_t i) const { return unit.const_data_ptr<T>() + i * unit.stride(0); }
  int64_t dim() const { return memory.size(1); }

  void normalize(int64_t begin, int64_t end) const {
    select_kernel<T>(false).normalize(rows.const_data_ptr<T>() + begin * dim(), end - begin, dim(),
                                      unit.mutable_data_ptr<T>() + begin * unit.stride(0),
                                      norm.data + begin);
  }

  // Gradient of sample i from the gradient for its unit row, through the normalisation.
  void write_gradient(int64_t i, const double* output, double sample_weight, T* grad) const {
    const T* own = row(i);
    const double length = double(norm.data[i]);
    const bool clamped = length <= kNormEps;  // then z / eps is linear in z
    double radial = 0;
    if (!clamped) {
      for (int64_t d = 0; d < dim(); ++d) radial += output[d] * double(own[d]);
    }
    const double scale = sample_weight / (clamped ? kNormEps : length);
    for (int64_t d = 0; d < dim(); ++d) {
      grad[d] = T((output[d] - radial * double(own[d])) * scale);
    }
  }

  at::Tensor rows;  // [B, dim] in T
  at::Tensor unit;  // [B + 2 * lanes, padded_dim] in T, after normalize
  Buffer<T> norm;   // [B]
  at::Tensor memory;
};

template <typename T>
struct Views {
  Views(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
        const at::Tensor& memory_v2, const at::Tensor& contrast_idx)
      : student(z_s, memory_v2), teacher(z_t, memory_v1), index(contrast_idx.contiguous()) {}

  const int64_t* wanted(int64_t i) const {
    return index.const_data_ptr<int64_t>() + i * index.size(1);
  }
  int64_t batch() const { return index.size(0); }
  int64_t count() const { return index.size(1); }
  int64_t rows() const { return student.memory.size(0); }
  int64_t dim() const { return student.dim(); }

  // A phase: the unit rows of both views.
  void normalize(Worker& worker) const {
    worker.run_ranges(batch(), kSamples, [&](int64_t begin, int64_t end) {
      student.normalize(begin, end);
      teacher.normalize(begin, end);
    });
  }

  View<T> student, teacher;
  at::Tensor index;
};

// How dense divides its work: samples into blocks whose similarities to all rows are stored at
// once, and rows into splits that are weighted and added up one by one.
template <typename T>
struct DenseBlocks {
  DenseBlocks(int64_t batch, int64_t rows, int64_t dim) {
    constexpr int64_t kBlockBytes = 32 << 20;  // of both views
    samples = std::clamp<int64_t>(kBlockBytes / (2 * rows * int64_t(sizeof(T))), 1, batch);
    width = kRoles * select_kernel<T>(false).lanes;
    // A panel is multiplied whole, however many of its samples there are.
    if (samples < batch && samples > width) samples -= samples % width;
    // The same for one to four threads, as in cpu/fifo/attention_pass.h.
    constexpr int64_t kSplitRows = 512;
    const int64_t most = 2 * std::max<int64_t>(4, at::get_num_threads());
    splits = std::clamp<int64_t>(rows / kSplitRows, 1, most);
    split_rows = ranges(rows, splits);
    panel_bytes = ranges(samples, width) * select_kernel<T>(false).panel_bytes(dim);
  }

  static constexpr int64_t kRowsAtOnce = 960;
  int64_t samples, splits, split_rows;
  int64_t width;        // samples of a panel
  int64_t panel_bytes;  // of all panels of one view
};

// The dense method's arrays of one view, for a block of samples at a time.
template <typename T>
struct DenseView {
  DenseView(const View<T>& view, const DenseBlocks<T>& blocks, bool need_grad)
      : view(view),
        blocks(blocks),
        rows(view.memory.size(0)),
        padded(select_kernel<T>(false).padded_dim(view.dim())),
        memory(view_of(view.memory)),
        all(blocks.samples * rows),
        outputs(need_grad ? blocks.splits * blocks.samples * padded : 0),
        packed(blocks.panel_bytes) {}

  // Packs the unit rows of one panel of the block from sample `first` on, by AttentionKernel::pack.
  void pack_panel(int64_t first, int64_t panel) const {
    const auto& kernel = select_kernel<T>(false);
    const T* samples = view.row(first + panel * blocks.width);
    kernel.pack({{samples, kernel.lanes, T(1)},
                 {samples + kernel.lanes * view.unit.stride(0), kernel.lanes, T(1)}},
                view.dim(), packed.data + panel * kernel.panel_bytes(view.dim()));
  }

  // The similarities of `count` packed samples to rows [begin, end).
  void multiply(int64_t begin, int64_t end, int64_t count, T* room) const {
    kernel.all_similarities(memory, begin, end, packed.data, count, all.data, rows, room);
  }

  // Of sample i of the block.
  void pick(int64_t i, const int64_t* wanted, int64_t count, double* similarities) const {
    kernel.pick(all.data + i * rows, wanted, count, similarities);
  }

  // Replaces the similarities by each row's weight in the gradient.
  void scatter(int64_t i, const int64_t* wanted, int64_t count, const double* weights) const {
    T* row = all.data + i * rows;
    std::fill_n(row, rows, T(0));
    for (int64_t p = 0; p < count; ++p) row[wanted[p]] += T(weights[p]);
  }

  // Two phases: the gradients of samples [first, first + count). output: room for one, [dim].
  void write_gradients(Worker& worker, int64_t first, int64_t count, double sample_weight, T* room,
                       double* output, T* grad) const {
    worker.run_ranges(rows, blocks.split_rows, [&](int64_t begin, int64_t end) {
      T* part = outputs.data + begin / blocks.split_rows * blocks.samples * padded;
      kernel.all_weighted_rows(memory, begin, end, all.data, rows, count, part, room);
    });
    worker.run(count, [&](int64_t i) {
      std::fill_n(output, view.dim(), 0.0);
      for (int64_t split = 0; split * blocks.split_rows < rows; ++split) {
        const T* part = outputs.data + (split * blocks.samples + i) * padded;
        for (int64_t d = 0; d < view.dim(); ++d) output[d] += double(part[d]);
      }
      view.write_gradient(first + i, output, sample_weight, grad + (first + i) * view.dim());
    });
  }

  const View<T>& view;
  const DenseBlocks<T>& blocks;
  const MomentumKernel<T>& kernel = select_momentum_kernel<T>();
  int64_t rows, padded;
  MemoryView memory;
  Buffer<T> all;      // [samples, rows]
  Buffer<T> outputs;  // [splits, samples, padded]
  Buffer<char> packed;
};

// What dense and gather cost at D = 128, in nanoseconds; all grow with D alike. Measured:
// docs/decisions.md.
struct Costs {
  double row;             // reading a row, once for each block of samples
  double row_and_sample;  // its products with one sample
  double wanted;          // one sampled row, less what dense takes to pick and scatter

  static constexpr double kMeasuredDim = 128;

  template <typename T>
  double dense(const Views<T>& views) const {
    const int64_t block = DenseBlocks<T>(views.batch(), views.rows(), views.dim()).samples;
    const double blocks = std::ceil(double(views.batch()) / double(block));
    const double each = row * blocks + row_and_sample * double(views.batch());
    return double(views.rows()) * each * double(views.dim()) / kMeasuredDim;
  }

  template <typename T>
  double gather(const Views<T>& views) const {
    return wanted * double(views.index.numel()) * double(views.dim()) / kMeasuredDim;
  }

  // Whether `method` is dense, or "auto" and dense costs less. Checks it, and the columns.
  template <typename T>
  bool prefer_dense(const Views<T>& views, c10::string_view method) const {
    TORCH_CHECK_VALUE(method == "auto" || method == "dense" || method == "gather",
                      "rrd_kernels: method must be 'auto', 'dense' or 'gather'; got '", method,
                      "'");
    TORCH_CHECK_VALUE(views.count() > 0,
                      "rrd_kernels: contrast_idx must name at least one row for each sample; got "
                      "P = 0");
    return method == "dense" || (method == "auto" && dense(views) <= gather(views));
  }
};

// Of Z_v1 or Z_v2; NaN until it is set.
inline double normalizer_of(const at::Tensor& normalizers, int64_t view) {
  const double z = normalizers.select(0, view).item<double>();
  return z > 0 ? z : std::nan("");
}

// rrd_kernels.functional checks everything but the indices itself; the other checks are for direct
// callers of the operators.
inline void check_sampled(const at::Tensor& z_s, const at::Tensor& z_t, const at::Tensor& memory_v1,
                          const at::Tensor& memory_v2, const at::Tensor& contrast_idx,
                          const std::optional<at::Tensor>& normalizers) {
  TORCH_CHECK_VALUE(
      z_s.dim() == 2 && z_s.sizes() == z_t.sizes() && memory_v1.dim() == 2 &&
          memory_v1.sizes() == memory_v2.sizes() && memory_v1.size(1) == z_s.size(1) &&
          memory_v1.numel() > 0 && contrast_idx.dim() == 2 && contrast_idx.size(0) == z_s.size(0) &&
          contrast_idx.scalar_type() == at::kLong,
      "rrd_kernels: shapes ", z_s.sizes(), ", ", z_t.sizes(), ", memories ", memory_v1.sizes(),
      " and ", memory_v2.sizes(), " and indices ", contrast_idx.sizes(), " do not fit");
  check_indices("contrast_idx", contrast_idx, memory_v1.size(0));
  TORCH_CHECK_VALUE(!normalizers || (normalizers->dim() == 1 && normalizers->size(0) == 2),
                    "normalizers must be [2]; got ", normalizers->sizes());
}

}  // namespace rrd::cpu
