// Vectors of the instruction set that the including file has switched on. Included inside that
// file's namespace, after its `#pragma GCC target`, with RRD_VECTOR_BYTES defined. GCC's and
// Clang's vector extensions give one source for x86 and arm64.

#define RRD_INLINE inline __attribute__((always_inline))

template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(RRD_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(RRD_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kLanes = RRD_VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vec = typename Vector<T>::Type;

template <typename T>
RRD_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(from);
}

template <typename T>
RRD_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(to) = value;
}

template <typename T>
RRD_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <typename T>
RRD_INLINE T horizontal_sum(Vec<T> value) {
  T sum = 0;
  for (int64_t lane = 0; lane < Vector<T>::kLanes; ++lane) sum += value[lane];
  return sum;
}

template <typename T>
struct Exp2;

// 2^f on [-1/2, 1/2], minimax in relative error (Remez): 1.9e-9 in exact arithmetic, well below
// float32 rounding.
template <>
struct Exp2<float> {
  typedef int32_t Bits __attribute__((vector_size(RRD_VECTOR_BYTES)));
  static constexpr int kMantissa = 23;
  static constexpr float kShift = 12582912.f + 127.f;  // 1.5 * 2^23 + exponent bias
  static constexpr float kLowest = -126.f;
  static constexpr float kInfinite = 128.f;
  static constexpr int kDegree = 6;
  static constexpr float kCoefficients[kDegree + 1] = {
      1.f, 0.6931472f, 0.24022646f, 0.055503286f, 0.009618489f, 0.0013399931f, 0.00015345814f};
};

// The Taylor series of 2^f to degree 13: truncation 4e-18 on [-1/2, 1/2].
template <>
struct Exp2<double> {
  typedef int64_t Bits __attribute__((vector_size(RRD_VECTOR_BYTES)));
  static constexpr int kMantissa = 52;
  static constexpr double kShift = 6755399441055744.0 + 1023.0;
  static constexpr double kLowest = -1022.0;
  static constexpr double kInfinite = 1024.0;
  static constexpr int kDegree = 13;
  static constexpr double kCoefficients[kDegree + 1] = {
      1.0,
      0.6931471805599453,
      0.24022650695910072,
      0.05550410866482158,
      0.009618129107628477,
      0.0013333558146428443,
      0.0001540353039338161,
      1.5252733804059841e-05,
      1.321548679014431e-06,
      1.01780860092397e-07,
      7.054911620801123e-09,
      4.4455382718708116e-10,
      2.5678435993488206e-11,
      1.3691488853904128e-12,
  };
};

// power * 2^n for exp2, where `shifted` is n + kShift.
#if RRD_VECTOR_BYTES == 64
RRD_INLINE Vec<float> scale(Vec<float> power, Vec<float> shifted) {
  const Vec<float> exponent = shifted - Exp2<float>::kShift;
  return reinterpret_cast<Vec<float>>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(exponent)));
}
RRD_INLINE Vec<double> scale(Vec<double> power, Vec<double> shifted) {
  const Vec<double> exponent = shifted - Exp2<double>::kShift;
  return reinterpret_cast<Vec<double>>(
      _mm512_scalef_pd(reinterpret_cast<__m512d>(power), reinterpret_cast<__m512d>(exponent)));
}
#else
template <typename V>
RRD_INLINE V scale(V power, V shifted) {
  using E = Exp2<std::remove_cvref_t<decltype(power[0])>>;
  return power * reinterpret_cast<V>(reinterpret_cast<typename E::Bits>(shifted) << E::kMantissa);
}
#endif

// 2^x; infinity above the range, about zero below it, NaN for NaN. Adding kShift rounds x to
// an integer and leaves that integer, exponent bias included, in the low bits of the mantissa.
template <typename T>
RRD_INLINE Vec<T> exp2(Vec<T> x) {
  using E = Exp2<T>;
#if RRD_VECTOR_BYTES != 64
  x = x < E::kLowest ? broadcast<T>(E::kLowest) : x;
  x = x > E::kInfinite ? broadcast<T>(E::kInfinite) : x;
#endif
  const Vec<T> shifted = x + E::kShift;
  const Vec<T> fraction = x - (shifted - E::kShift);
  Vec<T> power = broadcast<T>(E::kCoefficients[E::kDegree]);
#pragma GCC unroll 16
  for (int k = E::kDegree - 1; k >= 0; --k) power = power * fraction + E::kCoefficients[k];
  return scale(power, shifted);
}

// 2^x for x <= 0, never subnormal: multiplying by subnormal numbers is slow.
template <typename T>
RRD_INLINE Vec<T> exp2_nonpositive(Vec<T> x) {
  return exp2<T>(x < Exp2<T>::kLowest ? broadcast<T>(Exp2<T>::kLowest) : x);
}

RRD_INLINE float widen(float value) { return value; }
RRD_INLINE double widen(double value) { return value; }

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

RRD_INLINE float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

RRD_INLINE float widen(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

// Branch-free, so that loops vectorise. Shifts move the exponent to float32's place; multiplying by
// 2^112 corrects its bias and normalises subnormals. Exponent 0x1f is Inf or NaN.
RRD_INLINE float widen(Half value) {
  const uint32_t magnitude = uint32_t{value.bits & 0x7fffu} << 13;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const float scaled = from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &scaled, sizeof(bits));
  bits = magnitude >= (0x7c00u << 13) ? (magnitude | 0x7f800000u) : bits;
  return from_bits(bits | sign);
}
