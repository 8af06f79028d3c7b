// relational_partials on the CPU: relational_loss_forward's sums over the memory, before any
// division, so that sums over several memories can be added.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "cpu/fifo/attention_pass.h"

namespace rrd::cpu {
namespace {

constexpr double kLog2 = 0.6931471805599453;

// Columns of `sums` before the weighted sums of rows. A hard target has only the first.
enum Column : int64_t { kSumStudent, kSumTeacher, kCross, kScalars };

int64_t scalars_of(const Terms& terms) { return terms.roles() == 1 ? 1 : int64_t(kScalars); }

// Sets factor[k] = 2^(shift of split k - largest shift). Returns the largest shift.
template <typename T>
double rescale(const T* shift, int64_t splits, int64_t stride, std::vector<double>& factor) {
  double largest = shift[0];
  for (int64_t k = 1; k < splits; ++k) largest = std::max(largest, double(shift[k * stride]));
  for (int64_t k = 0; k < splits; ++k) factor[k] = std::exp2(shift[k * stride] - largest);
  return largest;
}

// Sum of weight * logit, from the weighted sum of rows `output`; `rounded` if the pass rounded
// queries.
template <typename T>
double cross_of(const T* unit, const T* output, int64_t dim, double tau, bool rounded) {
  const float scale = float(kLog2E / tau);
  double cross = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double query =
        rounded ? double(float(c10::BFloat16(float(unit[d]) * scale)) / scale) : double(unit[d]);
    cross += query * double(output[d]);
  }
  return cross / tau;
}

template <typename T>
void merge_splits(const AttentionPass<T>& pass, int64_t begin, int64_t end, int64_t batch,
                  int64_t dim, at::Tensor& sums, at::Tensor& shifts) {
  const Terms& terms = pass.terms;
  const int roles = terms.roles();
  const int64_t lanes = pass.kernel.lanes, splits = pass.plan.splits;
  const int64_t padded = pass.kernel.padded_dim(dim);
  const int64_t samples = pass.plan.panels * lanes, stride = samples * kRoles;
  const Partial<T>& partial = pass.partials.all;
  const int64_t width = sums.size(1);
  const auto cross_with = [&](Role role, int64_t i, const T* rows, double tau) {
    return cross_of(pass.queries.unit.data + (role * batch + i) * padded, rows, dim, tau,
                    pass.kernel.rounded_queries);
  };
  std::vector<double> factor(splits), output(dim);
  for (int64_t i = begin; i < end; ++i) {
    T* out = sums.mutable_data_ptr<T>() + i * width;
    const int64_t panel = i / lanes, lane = i % lanes;
    for (int role = 0; role < roles; ++role) {
      const int64_t query = roles == 1 ? i : (panel * kRoles + role) * lanes + lane;
      const double largest = rescale(partial.shift + query, splits, stride, factor);
      shifts.mutable_data_ptr<T>()[i * roles + role] = T(largest);
      double sum = 0, cross = 0;
      std::fill(output.begin(), output.end(), 0.0);
      for (int64_t k = 0; k < splits; ++k) {
        sum += factor[k] * partial.sum[query + k * stride];
        if (partial.output == nullptr) {
          if (role == kTeacher) cross += factor[k] * partial.cross[i + k * samples];
          continue;
        }
        const T* from = partial.output + (query + k * stride) * padded;
        for (int64_t d = 0; d < dim; ++d) output[d] += factor[k] * from[d];
      }
      out[role == kStudent ? kSumStudent : kSumTeacher] = T(sum);
      T* rows = out + scalars_of(terms) + role * dim;
      if (partial.output != nullptr) std::copy(output.begin(), output.end(), rows);
      if (role == kStudent) continue;
      cross *= kLog2;
      if (partial.output != nullptr) {
        cross = cross_with(kStudent, i, rows, terms.tau_s);
        if (terms.kl) cross -= cross_with(kTeacher, i, rows, terms.tau_t);
      }
      out[kCross] = T(cross);
    }
  }
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> partials(const at::Tensor& z_s, const at::Tensor& z_t,
                                            const at::Tensor& memory, const Terms& terms,
                                            bool bfloat16_products, bool need_grad) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto student = z_s.to(type).contiguous(), teacher = z_t.to(type).contiguous();
  const int64_t batch = z_s.size(0), dim = z_s.size(1), roles = terms.roles();
  const auto options = z_s.options().dtype(type);
  at::Tensor sums = at::empty({batch, scalars_of(terms) + (need_grad ? roles * dim : 0)}, options);
  at::Tensor shifts = at::empty({batch, roles}, options);
  if (batch == 0) return {sums, shifts};
  AttentionPass<T> pass(student, memory, terms, bfloat16_products, need_grad);
  pass.run(student, teacher, memory, [&](int64_t begin, int64_t end) {
    merge_splits(pass, begin, end, batch, dim, sums, shifts);
  });
  return {sums, shifts};
}

std::tuple<at::Tensor, at::Tensor> relational_partials(const at::Tensor& z_s, const at::Tensor& z_t,
                                                       const at::Tensor& memory, double tau_s,
                                                       double tau_t, bool unit_memory, bool kl,
                                                       std::optional<c10::string_view> precision,
                                                       bool need_grad) {
  // The own pair is added later: the sums of the memory alone may have a hard target.
  const Terms terms{tau_s, tau_t, unit_memory, tau_t == 0, kl && tau_t != 0};
  check_problem("relational_partials", z_s, z_t, memory, terms);
  if (precision == "float64") {
    return partials<double>(z_s, z_t, memory, terms, false, need_grad);
  }
  return partials<float>(z_s, z_t, memory, terms, precision == "bfloat16", need_grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(rrd_kernels, CPU, m) { m.impl("relational_partials", relational_partials); }

}  // namespace rrd::cpu
