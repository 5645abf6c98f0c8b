// One E-step of a Gaussian mixture, and one assignment of K-means, for a CPU: the sums of `expectation.feature_sums`
// and `KMeans.expect` in one pass over the rows, by as many threads as XLA has.
//
// A tile of rows is laid out with rows contiguous, for the log-densities, and with features contiguous, for the
// moments, so that neither product adds up across a vector; both once for all lanes. Then, some lanes at a time,
// log-densities, softmax and moments are taken while the tile is in the cache. Tiles are summed in double. Sums are
// over chunks of rows that do not depend on the number of threads, added up in their order.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace {

#define GMMJAX_UNROLL _Pragma("GCC unroll 8")

#ifdef __AVX512F__
constexpr int kBytes = 64, kTall = 8, kWide = 3, kAcross = 3;
#else
constexpr int kBytes = 32, kTall = 4, kWide = 2, kAcross = 2;
#endif
constexpr int64_t kTile = 2048;         // bytes of one feature of a tile, at most
constexpr int64_t kLeast = 6;           // vectors of one, at least
constexpr int64_t kCache = 256 * 1024;  // bytes of its features, twice, and its log-densities
constexpr int64_t kChunks = 32;         // at most
constexpr int64_t kChunkRows = 512;     // at least
constexpr int kSpins = 200;             // looks at whether all is done before the thread sleeps

template <class T> struct Traits;
template <> struct Traits<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0f, least = -87.0f;
  static constexpr int exp_parts = 1, exp_degree = 6, log_terms = 5;
  static constexpr float exp_terms[] = {1.0f,           1.00000005f,     0.5000000437f,  0.1666636418f,
                                        0.04166476935f, 0.008379106904f, 0.001406160352f};
};
template <> struct Traits<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0, least = -708.0;
#ifdef __AVX512F__
  static constexpr int exp_parts = 8, exp_degree = 7, log_terms = 11;
  static constexpr double exp_terms[] = {
      1.0, 1.00000000000001804, 0.5000000000000180387, 0.1666666665899147373, 0.04166666658992372345,
      0.008333414961464042708, 0.001388970509377224004, 0.0001736138403844214563};
#else
  static constexpr int exp_parts = 1, exp_degree = 11, log_terms = 11;
  static constexpr double exp_terms[] = {
      1.0, 1.000000000000000564, 0.5000000000000005628, 0.1666666666665722713, 0.04166666666657289065,
      0.008333333337741881794, 0.001388888893260176118, 0.0001984126145780279507, 0.00002480150417968219484,
      2.756426889143261213e-6, 2.762643454529018176e-7, 2.298134453790146919e-8};
#endif
};

// Vectors of W numbers, of `bytes` bytes.
template <class T, int bytes = kBytes> struct Simd {
  static constexpr int W = bytes / sizeof(T);
  using Int = typename Traits<T>::Int;
  typedef T V __attribute__((vector_size(bytes), may_alias));
  typedef T U __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
  typedef Int I __attribute__((vector_size(bytes)));
  typedef double D __attribute__((vector_size(W * sizeof(double))));

  static V load(const T* p) { return *reinterpret_cast<const U*>(p); }
  static void store(T* p, V v) { *reinterpret_cast<U*>(p) = v; }
  static V all(T a) { return V{} + a; }

  // e^x for x ≤ 0; 0 below `least`; NaN stays NaN. 2^(m / parts) eᶠ, |f| ≤ ½ log 2 / parts, the second by the
  // polynomial of least relative error.
  static V exp(V x) {
    using R = Traits<T>;
    constexpr int parts = R::exp_parts;
    constexpr T log2 = T(0.69314718055994530942), magic = R::magic + (parts == 1 ? R::bias : 0);
    const I under = x < R::least;
    x = under ? all(R::least) : x;
    const V shifted = x * T(parts / log2) + magic;  // its last bits are m
    const V m = shifted - magic;
    const V f = x - m * T(log2 / parts);  // its rounding grows with m, and the result shrinks faster
    V y = all(R::exp_terms[R::exp_degree]);
    for (int i = R::exp_degree - 1; i >= 0; --i) y = y * f + R::exp_terms[i];
    V power;
    if constexpr (parts == 1) {
      power = (V)((I)shifted << R::mantissa);
    } else {
      static_assert(parts == 8);
      // The bits of 2^(j / 8), less j in the place where the exponent's last bits will have it.
      constexpr I bits = {0x3ff0000000000000, 0x3fef72b83c7d517b, 0x3fef06fe0a31b715, 0x3feebfdad5362a27,
                          0x3feea09e667f3bcd, 0x3feeace5422aa0db, 0x3feee89f995ad3ad, 0x3fef5818dcfba487};
      power = (V)(__builtin_shuffle(bits, (I)shifted) + ((I)shifted << (R::mantissa - 3)));
    }
    y *= power;
    return under ? V{} : y;
  }

  // log s for s ≥ 1, by 2 artanh((m − 1) / (m + 1)); NaN and infinity give NaN.
  static V log(V s) {
    using R = Traits<T>;
    const I bits = (I)s;
    I e = (bits >> R::mantissa) - R::bias;
    V m = (V)((bits & ((Int(1) << R::mantissa) - 1)) | (Int(R::bias) << R::mantissa));
    const I high = m > T(1.41421356237309504880);
    m = high ? m * T(0.5) : m;
    e = e - high;  // a true comparison is −1
    const V z = (m - 1) / (m + 1), z2 = z * z;
    V y = all(T(1) / (2 * R::log_terms + 1));
    for (int i = R::log_terms - 1; i >= 0; --i) y = y * z2 + T(1) / (2 * i + 1);
    return __builtin_convertvector(e, V) * T(0.69314718055994530942) + 2 * z * y + (s - s);
  }

  // `length` of the numbers, from `first`.
  template <int first, int length> static auto part(V v) {
    return part<first>(v, std::make_integer_sequence<int, length>{});
  }
  template <int first, int... i> static auto part(V v, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(v, v, (first + i)...);
  }

  // p[i] += v[i], in double.
  static void add_to(double* p, V v) {
    constexpr int length = std::min<int>(W, kBytes / sizeof(double));
    using S = Simd<double, length * sizeof(double)>;
    S::store(p, S::load(p) + __builtin_convertvector(part<0, length>(v), typename S::V));
    if constexpr (W > length)
      S::store(p + length, S::load(p + length) + __builtin_convertvector(part<W - length, length>(v), typename S::V));
  }

  // Σ_i v[i].
  static T total(V v) {
    if constexpr (W > 2) {
      return Simd<T, bytes / 2>::total(part<0, W / 2>(v) + part<W / 2, W / 2>(v));
    } else {
      return v[0] + v[1];
    }
  }

  // a₀, b₀, a₁, b₁, …: of the lower half of both, or the upper.
  template <int from, int... i> static V interleave(V a, V b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, (from + i / 2 + i % 2 * W)...);
  }

  // W vectors, transposed.
  static void transpose(V (&a)[W]) {
    constexpr auto all = std::make_integer_sequence<int, W>{};
    for (int round = 1; round < W; round *= 2) {
      V b[W];
      for (int i = 0; i < W / 2; ++i) {
        b[2 * i] = interleave<0>(a[i], a[i + W / 2], all);
        b[2 * i + 1] = interleave<W / 2>(a[i], a[i + W / 2], all);
      }
      for (int i = 0; i < W; ++i) a[i] = b[i];
    }
  }

  // Σ_a (x_a − y_a)².
  static T distance(const T* x, const T* y, int64_t d) {
    V parts = {};
    int64_t a = 0;
    for (; a + W <= d; a += W) {
      const V gap = load(x + a) - load(y + a);
      parts += gap * gap;
    }
    T sum = 0;
    for (; a < d; ++a) sum += (x[a] - y[a]) * (x[a] - y[a]);
    for (int i = 0; i < W && d >= W; ++i) sum += parts[i];
    return sum;
  }
};

// An operand with leading axes of lanes, each of size 1 where the operand is the same for all.
template <class T> struct Operand {
  const T* data;
  std::vector<int64_t> offset;  // of each lane

  Operand(const T* data, ffi::Span<const int64_t> dims, ffi::Span<const int64_t> lanes, int64_t size) : data(data) {
    offset.assign(1, 0);
    int64_t stride = size;
    std::vector<int64_t> strides(lanes.size());
    for (int64_t i = int64_t(lanes.size()) - 1; i >= 0; --i) {
      strides[i] = dims[i] == 1 ? 0 : stride;
      stride *= dims[i];
    }
    for (size_t i = 0; i < lanes.size(); ++i) {
      std::vector<int64_t> next;
      for (int64_t o : offset)
        for (int64_t j = 0; j < lanes[i]; ++j) next.push_back(o + j * strides[i]);
      offset.swap(next);
    }
  }
  const T* lane(int64_t i) const { return data + offset[i]; }
};

// fn(task) for all tasks, on the caller and on whichever threads of the pool are free. The caller never waits for
// a task that has not begun, so calls from inside the pool cannot lock each other out.
void in_parallel(ffi::ThreadPool& pool, int64_t tasks, std::function<void(int64_t)> fn) {
  struct Shared {
    std::function<void(int64_t)> fn;
    int64_t tasks;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable ready;
    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < tasks;) {
        fn(i);
        if (done.fetch_add(1) + 1 == tasks) {
          std::lock_guard<std::mutex> lock(mutex);
          ready.notify_all();
        }
      }
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->fn = std::move(fn);
  shared->tasks = tasks;
  const int64_t helpers = std::min<int64_t>(pool.num_threads() - 1, tasks - 1);
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->work(); });
  shared->work();
  // The others end within a task: to sleep and be woken would take about as long.
  for (int i = 0; i < kSpins && shared->done.load() < tasks; ++i) std::this_thread::yield();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->ready.wait(lock, [&] { return shared->done.load() == tasks; });
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// How rows and lanes are shared out: `rows` a chunk, `tile` of them at a time, a multiple of `step` and about `most`.
// Lanes of a group have the same rows.
struct Plan {
  int64_t chunks, rows, tile, groups, lanes;
  Plan(int64_t n, int64_t all, bool same, int64_t threads, int64_t most, int64_t step) {
    chunks = std::clamp<int64_t>(n / kChunkRows, 1, kChunks);
    rows = (n + chunks - 1) / chunks;
    const int64_t tiles = (rows + most - 1) / most;
    tile = up((rows + tiles - 1) / tiles, step);
    rows = up(rows, tile);
    chunks = (n + rows - 1) / rows;
    // Fewer tasks than four a thread leave threads idle at the end.
    groups = same ? std::clamp<int64_t>((4 * threads + chunks - 1) / chunks, 1, all) : all;
    lanes = (all + groups - 1) / groups;
    groups = (all + lanes - 1) / lanes;
  }
};

// fn(first, size), `size` a constant, for all of `count` things in blocks as large as `most` allows, and alike.
template <int most, class F> void of_size(int64_t size, int64_t first, F fn) {
  if constexpr (most > 1)
    if (size < most) return of_size<most - 1>(size, first, fn);
  fn(first, std::integral_constant<int, most>{});
}
template <int most, class F> void in_blocks(int64_t count, F fn) {
  int64_t blocks = (count + most - 1) / most;
  for (int64_t first = 0, size; first < count; first += size) {
    size = (count - first + blocks - 1) / blocks--;
    of_size<most>(size, first, fn);
  }
}

// Arrays that nothing has been written to, aligned, and given back together.
template <class T> struct Room {
  std::vector<std::unique_ptr<T[]>> arrays;
  T* array(int64_t size) {
    arrays.emplace_back(new T[size + kBytes / sizeof(T)]);
    const auto at = reinterpret_cast<uintptr_t>(arrays.back().get());
    return reinterpret_cast<T*>((at + kBytes - 1) / kBytes * kBytes);
  }
};

// Rows of the tile that lie `first` to `first + tile`, features × rows; those past the end are 0.
template <class T> void transpose(const T* x, int64_t d, int64_t first, int64_t end, int64_t tile, T* out) {
  const int64_t count = std::min(tile, end - first);
  for (int64_t a = 0; a < d; ++a) {
    for (int64_t i = 0; i < count; ++i) out[a * tile + i] = x[(first + i) * d + a];
    for (int64_t i = count; i < tile; ++i) out[a * tile + i] = 0;
  }
}

enum class Kind : int64_t { kLinear, kTrace, kDiag, kFull };

// What the features are products of: each x_a, and the second-order terms x_a x_b (or their sum for a trace). The
// first feature, 1, is left out: it takes no product.
struct Pair { int64_t a, b; };  // b = −1: 1 in its place
constexpr int64_t kSquares = -2;  // Σ_a x_a²

std::vector<Pair> pairs_of(Kind kind, int64_t d) {
  std::vector<Pair> pairs;
  for (int64_t a = 0; a < d; ++a) pairs.push_back({a, -1});
  if (kind == Kind::kTrace) pairs.push_back({kSquares, -1});
  for (int64_t a = 0; a < d && (kind == Kind::kDiag || kind == Kind::kFull); ++a)
    for (int64_t b = a; b < (kind == Kind::kDiag ? a + 1 : d); ++b) pairs.push_back({a, b});
  return pairs;
}

// `count` features of a tile.
template <class T> void features(const Pair* pairs, int64_t d, int64_t tile, const T* x, int64_t count, T* phi) {
  using S = Simd<T>;
  for (int64_t q = 0; q < count; ++q, phi += tile) {
    const auto [a, b] = pairs[q];
    for (int64_t i = 0; i < tile; i += S::W) {
      typename S::V value = {};
      if (a == kSquares) {
        for (int64_t c = 0; c < d; ++c) value += S::load(x + c * tile + i) * S::load(x + c * tile + i);
      } else {
        value = S::load(x + a * tile + i);
        if (b >= 0) value *= S::load(x + b * tile + i);
      }
      S::store(phi + i, value);
    }
  }
}

// The same features, `width` of them in a row: [⌈count / width⌉, tile, width]. Writes up to a vector past the end.
template <class T> void by_rows(const T* phi, int64_t count, int64_t tile, int64_t width, T* out) {
  using S = Simd<T>;
  for (int64_t q = 0; q < count; q += S::W)
    for (int64_t i = 0; i < tile; i += S::W) {
      typename S::V block[S::W];
      for (int b = 0; b < S::W; ++b) block[b] = q + b < count ? S::load(phi + (q + b) * tile + i) : typename S::V{};
      S::transpose(block);
      for (int b = 0; b < S::W; ++b, out += width) S::store(out, block[b]);
    }
}

// sum[h, side] += Σ_q a[h, q] b[q, side], for H rows of a, `stride` apart, and `wide` vectors of columns of b.
template <class T, int H, int wide>
void multiply(const T* a, int64_t stride, const T* b, int64_t count, int64_t tile,
              typename Simd<T>::V (&sum)[H][wide]) {
  using S = Simd<T>;
  for (int64_t q = 0; q < count; ++q) {
    typename S::V v[wide];
    GMMJAX_UNROLL
    for (int side = 0; side < wide; ++side) v[side] = S::load(b + q * tile + side * S::W);
    GMMJAX_UNROLL
    for (int h = 0; h < H; ++h) {
      const T c = a[h * stride + q];
      GMMJAX_UNROLL
      for (int side = 0; side < wide; ++side) sum[h][side] += c * v[side];
    }
  }
}

// A block of the first product.
template <class T, int H, int wide>
void log_densities_of(const T* coefficients, const T* phi, int64_t p, int64_t count, int64_t tile, bool more, T* out) {
  using S = Simd<T>;
  typename S::V sum[H][wide];
  GMMJAX_UNROLL
  for (int h = 0; h < H; ++h)
    GMMJAX_UNROLL
    for (int side = 0; side < wide; ++side)
      sum[h][side] = more ? S::load(out + h * tile + side * S::W) : S::all(coefficients[h * p - 1]);
  multiply(coefficients, p, phi, count, tile, sum);
  GMMJAX_UNROLL
  for (int h = 0; h < H; ++h)
    GMMJAX_UNROLL
    for (int side = 0; side < wide; ++side) S::store(out + h * tile + side * S::W, sum[h][side]);
}

// The first product, out[j, i] = Σ_q coefficients[j, q] phi[q, i] over `count` features, to what is there where `more`,
// else to the number before each row of coefficients.
template <class T>
void log_densities(const T* coefficients, const T* phi, int64_t k, int64_t p, int64_t count, int64_t tile, bool more,
                   T* out) {
  constexpr int W = Simd<T>::W;
  in_blocks<kTall>(k, [=](int64_t j, auto high) {
    in_blocks<kWide>(tile / W, [=](int64_t i, auto wide) {
      log_densities_of<T, high, wide>(coefficients + j * p, phi + i * W, p, count, tile, more, out + j * tile + i * W);
    });
  });
}

// common[i] = −½ ‖U x_i‖², the term of a log-density that all components share; U is [q, d], y room for U x.
template <class T> void shared_term(const T* u, const T* xt, int64_t q, int64_t d, int64_t tile, T* y, T* common) {
  using S = Simd<T>;
  std::fill(y, y + q * tile, T(0));
  log_densities(u, xt, q, d, d, tile, true, y);
  for (int64_t i = 0; i < tile; i += S::W) {
    typename S::V sum = {};
    for (int64_t b = 0; b < q; ++b) sum += S::load(y + b * tile + i) * S::load(y + b * tile + i);
    S::store(common + i, T(-0.5) * sum);
  }
}

// `softmax` of K components, which stay in registers, or of k where K is 0: e^(ℓ − top) becomes w e / Σ e. What is
// left of the likelihood, top and Σ e, is for a loop of its own: in this one its logarithm would have to be waited for.
template <class T, int K>
void softmax_of(T* joint, const T* weights, int64_t k, int64_t tile, T* tops, T* sums) {
  using S = Simd<T>;
  if (K > 0) k = K;
  for (int64_t i = 0; i < tile; i += S::W) {
    typename S::V kept[K + 1];
    const auto e = [&](int64_t j) -> typename S::V& {
      return K > 0 ? kept[j] : *reinterpret_cast<typename S::V*>(joint + j * tile + i);
    };
    auto top = S::load(joint + i);
    GMMJAX_UNROLL
    for (int64_t j = 0; j < k; ++j) {
      e(j) = S::load(joint + j * tile + i);
      top = e(j) > top ? e(j) : top;
    }
    typename S::V sum = {};
    GMMJAX_UNROLL
    for (int64_t j = 0; j < k; ++j) {
      e(j) = S::exp(e(j) - top);
      sum += e(j);
    }
    const auto scale = S::load(weights + i) / sum;
    GMMJAX_UNROLL
    for (int64_t j = 0; j < k; ++j) S::store(joint + j * tile + i, e(j) * scale);
    S::store(tops + i, top);
    S::store(sums + i, sum);
  }
}

// Log-densities [k, tile], less `common`, become responsibilities times weights; returns Σ w log p. `room` is for
// two numbers a row.
template <class T>
double softmax(T* joint, const T* common, const T* weights, int64_t k, int64_t tile, T* room) {
  using S = Simd<T>;
  const auto fn = [=](int64_t, auto K) { softmax_of<T, K>(joint, weights, k, tile, room, room + tile); };
  if (k > kTall)
    fn(0, std::integral_constant<int, 0>{});
  else
    of_size<kTall>(k, 0, fn);
  typename S::D total = {};  // a change of one part in 10⁸ between two steps must show
  for (int64_t i = 0; i < tile; i += S::W) {
    const auto log_prob = S::load(room + i) + S::load(common + i) + S::log(S::load(room + tile + i));
    const typename S::V value = S::load(weights + i) * log_prob;
    total += __builtin_convertvector(value, typename S::D);
  }
  double sum = 0;
  for (int i = 0; i < S::W; ++i) sum += total[i];
  return sum;
}

// A block of the second product, by vectors of `bytes`.
template <class T, int bytes, int H, int wide>
void moments_of(const T* r, const T* phi, int64_t tile, double* out, int64_t stride) {
  using S = Simd<T, bytes>;
  constexpr int rows = H * wide < 4 ? 4 : H * wide < 8 ? 2 : 1;  // so many sums do not wait for each other
  typename S::V sum[rows][H][wide] = {};
  for (int64_t i = 0; i < tile; i += rows)
    GMMJAX_UNROLL
    for (int row = 0; row < rows; ++row) {
      typename S::V v[wide];
      GMMJAX_UNROLL
      for (int side = 0; side < wide; ++side) v[side] = S::load(phi + (side * tile + i + row) * S::W);
      GMMJAX_UNROLL
      for (int h = 0; h < H; ++h)
        GMMJAX_UNROLL
        for (int side = 0; side < wide; ++side) sum[row][h][side] += r[h * tile + i + row] * v[side];
    }
  GMMJAX_UNROLL
  for (int h = 0; h < H; ++h)
    GMMJAX_UNROLL
    for (int side = 0; side < wide; ++side) {
      GMMJAX_UNROLL
      for (int row = 1; row < rows; ++row) sum[0][h][side] += sum[row][h][side];
      S::add_to(out + h * stride + side * S::W, sum[0][h][side]);
    }
}

// The second product, out[j, q] += Σ_i r[j, i] phi[q, i], of features `by_rows`, `blocks` of `width`: a vector, or a
// half or a quarter of one.
template <class T, int bytes = kBytes>
void moments(const T* r, const T* phi, int64_t k, int64_t blocks, int64_t width, int64_t tile, double* out,
             int64_t stride) {
  constexpr int W = Simd<T, bytes>::W;
  if constexpr (bytes > kBytes / 4)
    if (width < W) return moments<T, bytes / 2>(r, phi, k, blocks, width, tile, out, stride);
  in_blocks<kAcross>(blocks, [=](int64_t q, auto wide) {
    in_blocks<kTall>(k, [=](int64_t j, auto high) {
      moments_of<T, bytes, high, wide>(r + j * tile, phi + q * W * tile, tile, out + j * stride + q * W, stride);
    });
  });
}

template <class T, ffi::DataType D>
ffi::Error expect(ffi::ThreadPool pool, int64_t kind_number, ffi::Buffer<D> coefficients,
                  ffi::Buffer<D> whitening, ffi::Buffer<D> rows, ffi::Buffer<D> weights, ffi::ResultBuffer<D> sums,
                  ffi::ResultBuffer<D> log_likelihood) {
  using S = Simd<T>;
  const Kind kind = static_cast<Kind>(kind_number);
  const auto shape = sums->dimensions();
  const auto size = coefficients.dimensions();
  const ffi::Span<const int64_t> lanes = shape.first(shape.size() - 2);
  const int64_t k = shape[shape.size() - 2], p = shape.back();
  const int64_t n = rows.dimensions()[rows.dimensions().size() - 2], d = rows.dimensions().back();
  const Operand<T> c(coefficients.typed_data(), size, lanes, k * p);
  const Operand<T> x(rows.typed_data(), rows.dimensions(), lanes, n * d);
  const Operand<T> w(weights.typed_data(), weights.dimensions(), lanes, n);
  const int64_t shared = whitening.dimensions()[whitening.dimensions().size() - 2];
  const Operand<T> u(whitening.typed_data(), whitening.dimensions(), lanes, shared * d);
  const int64_t count = c.offset.size();
  const bool same = std::equal(x.offset.begin() + 1, x.offset.end(), x.offset.begin());

  const std::vector<Pair> pairs = pairs_of(kind, d);
  int64_t width = S::W;
  while (width / 2 >= p - 1 && width > S::W / 4) width /= 2;
  const int64_t stride = up(p - 1, width), part = k * stride;
  // Few components leave registers empty, so lanes whose coefficients follow each other are taken as one.
  bool follow = true;
  for (int64_t lane = 1; lane < count; ++lane) follow &= c.offset[lane] == lane * k * p;
  const int64_t together = follow && k < kTall ? 3 * kTall / k : 1;
  int64_t most = kTile / sizeof(T);
  while (most > kLeast * S::W && (2 * stride + k * together) * most * int64_t(sizeof(T)) > kCache) most /= 2;
  const Plan plan(n, count, same, pool.num_threads(), most, S::W);
  const int64_t tile = plan.tile;
  // Where the features of a tile do not fit beside the log-densities they are made twice, a panel at a time.
  const int64_t room = std::max<int64_t>(kCache / int64_t(sizeof(T)) / tile - k * together, 8 * S::W) / 2;
  const int64_t panel = std::min(stride, room / S::W * S::W);
  // Of each chunk and lane: sums of features, of responsibilities, and the log-likelihood.
  Room<double> sums_room;
  double* const parts = sums_room.array(plan.chunks * count * part);
  double* const totals = sums_room.array(plan.chunks * count * k);
  double* const values = sums_room.array(plan.chunks * count);
  std::vector<std::atomic<int64_t>> left(plan.groups);
  for (auto& chunks : left) chunks = plan.chunks;

  const auto add_up = [&](int64_t lane) {
    double *sum = parts + lane * part, *total = totals + lane * k;
    for (int64_t slot = count + lane; slot < plan.chunks * count; slot += count) {
      values[lane] += values[slot];
      for (int64_t j = 0; j < k; ++j) total[j] += totals[slot * k + j];
      for (int64_t j = 0; j < part; ++j) sum[j] += parts[slot * part + j];
    }
    log_likelihood->typed_data()[lane] = T(values[lane]);
    T* out = sums->typed_data() + lane * k * p;
    for (int64_t j = 0; j < k; ++j) {
      *out++ = T(total[j]);
      for (int64_t q = 0; q < p - 1; ++q) *out++ = T(sum[j * stride + q]);
    }
  };

  in_parallel(pool, plan.chunks * plan.groups, [&](int64_t task) {
    const int64_t chunk = task / plan.groups, group = task % plan.groups;
    const int64_t begin = chunk * plan.rows, end = std::min(n, begin + plan.rows);
    const int64_t first = group * plan.lanes, last = std::min(count, first + plan.lanes);
    Room<T> storage;
    T* xt = storage.array(d * tile);
    T* phi = storage.array(panel * tile);
    T* phi_rows = storage.array(panel * tile + S::W);
    T* joint = storage.array(together * k * tile);
    T* weight = storage.array(tile);
    T* white = storage.array(shared * tile);
    T* common = storage.array(tile);
    std::fill_n(common, tile, T(0));
    T* two = storage.array(2 * tile);
    const auto lay = [&](int64_t q, bool rows) {
      const int64_t size = std::min(panel, p - 1 - q);
      features(pairs.data() + q, d, tile, xt, size, phi);
      if (rows) by_rows(phi, size, tile, width, phi_rows);
    };
    const int64_t own = chunk * count + first, ours = last - first;
    std::fill_n(parts + own * part, ours * part, 0.0);
    std::fill_n(totals + own * k, ours * k, 0.0);
    std::fill_n(values + own, ours, 0.0);
    for (int64_t at = begin; at < end; at += tile) {
      transpose(x.lane(first), d, at, end, tile, xt);
      if (panel == stride) lay(0, true);
      const int64_t here = std::min(tile, end - at);
      for (int64_t lane = first; lane < last; lane += together) {
        const int64_t lanes = std::min(together, last - lane), slot = chunk * count + lane;
        for (int64_t q = 0; q < p - 1; q += panel) {
          if (panel < stride) lay(q, false);
          log_densities(c.lane(lane) + 1 + q, phi, lanes * k, p, std::min(panel, p - 1 - q), tile, q > 0, joint);
        }
        for (int64_t i = 0; i < lanes; ++i) {
          std::memcpy(weight, w.lane(lane + i) + at, here * sizeof(T));
          std::fill(weight + here, weight + tile, T(0));
          if (shared > 0) shared_term(u.lane(lane + i), xt, shared, d, tile, white, common);
          values[slot + i] += softmax(joint + i * k * tile, common, weight, k, tile, two);
        }
        for (int64_t j = 0; j < lanes * k; ++j) {
          typename S::V total = {};
          for (int64_t i = 0; i < tile; i += S::W) total += S::load(joint + j * tile + i);
          totals[slot * k + j] += S::total(total);
        }
        for (int64_t q = 0; q < p - 1; q += panel) {
          if (panel < stride) lay(q, true);
          const int64_t blocks = (std::min(panel, p - 1 - q) + width - 1) / width;
          moments(joint, phi_rows, lanes * k, blocks, width, tile, parts + slot * part + q, stride);
        }
      }
    }
    if (left[group].fetch_sub(1) == 1)  // the last of its group
      for (int64_t lane = first; lane < last; ++lane) add_up(lane);
  });
  return ffi::Error::Success();
}

// Labels of a tile: argmax_j c_j·x − ½‖c_j‖², the first of equals. `best` holds −inf and `label` 0 before.
template <class T>
void nearest(const T* centers, const T* half, const T* xt, int64_t k, int64_t d, int64_t tile, T* best,
             typename Traits<T>::Int* label) {
  using S = Simd<T>;
  typedef typename S::Int U __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  in_blocks<kTall>(k, [&](int64_t j, auto height) {
    in_blocks<kWide>(tile / S::W, [&](int64_t column, auto width) {
      constexpr int high = height, wide = width;
      typename S::V sum[high][wide];
      for (int h = 0; h < high; ++h)
        for (int side = 0; side < wide; ++side) sum[h][side] = S::all(-half[j + h]);
      multiply<T, high, wide>(centers + j * d, d, xt + column * S::W, d, tile, sum);
      for (int side = 0; side < wide; ++side) {
        const int64_t i = (column + side) * S::W;
        auto top = S::load(best + i);
        U* place = reinterpret_cast<U*>(label + i);
        typename S::I which = *place;
        for (int h = 0; h < high; ++h) {
          const typename S::I more = sum[h][side] > top;
          top = more ? sum[h][side] : top;
          which = more ? typename S::I{} + typename S::Int(j + h) : which;
        }
        S::store(best + i, top);
        *place = which;
      }
    });
  });
}

template <class T, ffi::DataType D>
ffi::Error assign(ffi::ThreadPool pool, ffi::Buffer<D> centers, ffi::Buffer<D> rows, ffi::Buffer<D> weights,
                  ffi::ResultBuffer<D> weight, ffi::ResultBuffer<D> first, ffi::ResultBuffer<D> far_distance,
                  ffi::ResultBuffer<D> far_point, ffi::ResultBuffer<D> inertia) {
  using S = Simd<T>;
  const auto shape = first->dimensions();
  const ffi::Span<const int64_t> lanes = shape.first(shape.size() - 2);
  const int64_t k = shape[shape.size() - 2], d = shape.back();
  const int64_t n = rows.dimensions()[rows.dimensions().size() - 2], room = far_distance->dimensions().back();
  const Operand<T> c(centers.typed_data(), centers.dimensions(), lanes, k * d);
  const Operand<T> x(rows.typed_data(), rows.dimensions(), lanes, n * d);
  const Operand<T> w(weights.typed_data(), weights.dimensions(), lanes, n);
  const int64_t count = c.offset.size();
  const bool same = std::equal(x.offset.begin() + 1, x.offset.end(), x.offset.begin());
  const Plan plan(n, count, same, pool.num_threads(), kTile / sizeof(T), S::W);
  const int64_t part = k * (d + 1), tile = plan.tile;
  struct Far { T distance = 0; int64_t row = -1; };
  std::vector<double> parts(plan.chunks * count * part, 0.0), values(plan.chunks * count, 0.0);
  std::vector<Far> far(plan.chunks * count);

  in_parallel(pool, plan.chunks * plan.groups, [&](int64_t task) {
    const int64_t chunk = task / plan.groups, group = task % plan.groups;
    const int64_t begin = chunk * plan.rows, end = std::min(n, begin + plan.rows);
    const int64_t lane0 = group * plan.lanes, lane1 = std::min(count, lane0 + plan.lanes);
    Room<T> storage;
    std::vector<typename S::Int> label(tile);
    T* xt = storage.array(d * tile);
    T* best = storage.array(tile);
    T* half = storage.array(k * (lane1 - lane0));
    for (int64_t j = 0; j < k * (lane1 - lane0); ++j) {
      const T* center = c.lane(lane0 + j / k) + (j % k) * d;
      half[j] = 0;
      for (int64_t a = 0; a < d; ++a) half[j] += T(0.5) * center[a] * center[a];
    }
    for (int64_t at = begin; at < end; at += tile) {
      const T* block = x.lane(lane0) + at * d;
      transpose(x.lane(lane0), d, at, end, tile, xt);
      const int64_t here = std::min(tile, end - at);
      for (int64_t lane = lane0; lane < lane1; ++lane) {
        std::fill(best, best + tile, -std::numeric_limits<T>::infinity());
        std::fill(label.begin(), label.end(), 0);
        const T* center = c.lane(lane);
        nearest(center, half + (lane - lane0) * k, xt, k, d, tile, best, label.data());
        const int64_t slot = chunk * count + lane;
        double* sums = parts.data() + slot * part;
        double total = 0;
        const T* weight_of = w.lane(lane) + at;
        for (int64_t i = 0; i < here; ++i) {
          const T* row = block + i * d;
          const T* mine = center + label[i] * d;
          double* sum = sums + label[i] * (d + 1);
          const double v = weight_of[i];
          const T distance = S::distance(row, mine, d);
          for (int64_t a = 0; a < d; ++a) sum[a] += v * row[a];
          sum[d] += v;
          total += v * distance;
          if (v > 0 && distance > far[slot].distance) far[slot] = {distance, at + i};
        }
        values[slot] += total;
      }
    }
  });

  in_parallel(pool, count, [&](int64_t lane) {
    double value = 0;
    std::vector<double> sum(part, 0.0);
    std::vector<Far> candidates;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const int64_t slot = chunk * count + lane;
      for (int64_t j = 0; j < part; ++j) sum[j] += parts[slot * part + j];
      value += values[slot];
      if (far[slot].row >= 0) candidates.push_back(far[slot]);
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Far& a, const Far& b) { return a.distance > b.distance; });
    for (int64_t j = 0; j < k; ++j) {
      weight->typed_data()[lane * k + j] = T(sum[j * (d + 1) + d]);
      for (int64_t a = 0; a < d; ++a) first->typed_data()[(lane * k + j) * d + a] = T(sum[j * (d + 1) + a]);
    }
    for (int64_t r = 0; r < room; ++r) {
      const bool there = r < int64_t(candidates.size());
      far_distance->typed_data()[lane * room + r] = there ? candidates[r].distance : T(0);
      for (int64_t a = 0; a < d; ++a)
        far_point->typed_data()[(lane * room + r) * d + a] = there ? x.lane(lane)[candidates[r].row * d + a] : T(0);
    }
    inertia->typed_data()[lane] = T(value);
  });
  return ffi::Error::Success();
}

template <ffi::DataType D> auto expect_binding() {
  return ffi::Ffi::Bind()
      .template Ctx<ffi::ThreadPool>()
      .template Attr<int64_t>("kind")
      .template Arg<ffi::Buffer<D>>()
      .template Arg<ffi::Buffer<D>>()
      .template Arg<ffi::Buffer<D>>()
      .template Arg<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>();
}

template <ffi::DataType D> auto assign_binding() {
  return ffi::Ffi::Bind()
      .template Ctx<ffi::ThreadPool>()
      .template Arg<ffi::Buffer<D>>()
      .template Arg<ffi::Buffer<D>>()
      .template Arg<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>()
      .template Ret<ffi::Buffer<D>>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gmmjax_expect_float32, (expect<float, ffi::F32>), expect_binding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gmmjax_expect_float64, (expect<double, ffi::F64>), expect_binding<ffi::F64>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gmmjax_assign_float32, (assign<float, ffi::F32>), assign_binding<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gmmjax_assign_float64, (assign<double, ffi::F64>), assign_binding<ffi::F64>());
