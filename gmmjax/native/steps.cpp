// One E-step of a Gaussian mixture, and one assignment of K-means, for a CPU: the sums of `expectation.feature_sums`
// and `KMeans.expect` in one pass over the rows, by as many threads as XLA has.
//
// A tile of rows is laid out with rows contiguous; its features are built once for all lanes. Then, a lane at a
// time, log-densities, softmax and moments are taken while the tile is in the cache. Tiles are summed in double.
// Sums are over chunks of rows that do not depend on the number of threads, added up in their order.

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
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace {

#ifdef __AVX512F__
constexpr int kBytes = 64, kTall = 8, kWide = 3, kHigh = 6;
#else
constexpr int kBytes = 32, kTall = 4, kWide = 2, kHigh = 2;
#endif
constexpr int64_t kTile = 640 * kWide;  // bytes of one feature of a tile, at most
constexpr int kRun = 4;                 // features of one block of the second product
constexpr int64_t kCache = 384 * 1024;  // bytes of a tile
constexpr int64_t kChunks = 32;         // at most
constexpr int64_t kChunkRows = 1024;    // at least

template <class T> struct Traits;
template <> struct Traits<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0f, least = -87.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int exp_terms = 7, log_terms = 5;
};
template <> struct Traits<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0, least = -708.0;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr int exp_terms = 13, log_terms = 11;
};

template <class T> struct Simd {
  static constexpr int W = kBytes / sizeof(T);
  using Int = typename Traits<T>::Int;
  typedef T V __attribute__((vector_size(kBytes)));
  typedef T U __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  typedef Int I __attribute__((vector_size(kBytes)));
  typedef double D __attribute__((vector_size(W * sizeof(double))));

  static V load(const T* p) { return *reinterpret_cast<const U*>(p); }
  static void store(T* p, V v) { *reinterpret_cast<U*>(p) = v; }
  static V all(T a) { return V{} + a; }

  // e^x for x ≤ 0; 0 below `least`; NaN stays NaN.
  static V exp(V x) {
    using R = Traits<T>;
    const I under = x < R::least;
    x = under ? all(R::least) : x;
    const V shifted = x * T(1.44269504088896340736) + R::magic;
    const V n = shifted - R::magic;
    const V f = (x - n * R::ln2_high) - n * R::ln2_low;
    T inverse = 1;
    T c[R::exp_terms + 1];
    for (int i = 0; i <= R::exp_terms; ++i) { c[i] = inverse; inverse /= T(i + 1); }
    V y = all(c[R::exp_terms]);
    for (int i = R::exp_terms - 1; i >= 0; --i) y = y * f + c[i];
    const I power = (I)shifted - (I)all(R::magic) + R::bias;
    y *= (V)(power << R::mantissa);
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

  // a₀ + a₁, a₂ + a₃, …, b₀ + b₁, …
  template <int... i> static V neighbours(V a, V b, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(a, b, 2 * i...) + __builtin_shufflevector(a, b, 2 * i + 1 ...);
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

  // `count` vectors, a power of 2 up to W: neighbours added until one is left, which of W vectors holds the sums
  // in their order.
  template <int count = W> static V sums(const V* a) {
    if constexpr (count == 1) {
      return a[0];
    } else {
      return neighbours(sums<count / 2>(a), sums<count / 2>(a + count / 2), std::make_integer_sequence<int, W>{});
    }
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
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->ready.wait(lock, [&] { return shared->done.load() == tasks; });
}

// How rows and lanes are shared out. Lanes of a group have the same rows.
struct Plan {
  int64_t chunks, rows, groups, lanes;
  Plan(int64_t n, int64_t all, bool same, int64_t threads) {
    chunks = std::clamp<int64_t>(n / kChunkRows, 1, kChunks);
    rows = (n + chunks - 1) / chunks;
    chunks = (n + rows - 1) / rows;
    // Fewer tasks than four a thread leave threads idle at the end.
    groups = same ? std::clamp<int64_t>((4 * threads + chunks - 1) / chunks, 1, all) : all;
    lanes = (all + groups - 1) / groups;
    groups = (all + lanes - 1) / lanes;
  }
};

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows of a tile: a multiple of kWide vectors, so that `rows` are cut into equal parts of about `most`.
template <class T> int64_t tile_of(int64_t rows, int64_t most) {
  const int64_t tiles = (rows + most - 1) / most;
  return up((rows + tiles - 1) / tiles, kWide * Simd<T>::W);
}

template <class T> T* aligned(std::vector<T>& v, int64_t size) {
  v.assign(size + kBytes / sizeof(T), T(0));
  auto at = reinterpret_cast<uintptr_t>(v.data());
  return reinterpret_cast<T*>((at + kBytes - 1) / kBytes * kBytes);
}

// Rows of the tile that lie `first` to `first + tile`, features × rows; those past the end are 0.
template <class T> void transpose(const T* x, int64_t d, int64_t first, int64_t end, int64_t tile, T* out) {
  const int64_t count = std::min(tile, end - first);
  for (int64_t a = 0; a < d; ++a) {
    for (int64_t i = 0; i < count; ++i) out[a * tile + i] = x[(first + i) * d + a];
    for (int64_t i = count; i < tile; ++i) out[a * tile + i] = 0;
  }
}

enum class Kind : int64_t { kLinear, kTrace, kDiag, kFull };

// What the features are products of: 1, each x_a, and the second-order terms x_a x_b (or their sum for a trace).
struct Pair { int64_t a, b; };  // −1: 1 in its place
constexpr int64_t kSquares = -2;  // Σ_a x_a²

std::vector<Pair> pairs_of(Kind kind, int64_t d) {
  std::vector<Pair> pairs = {{-1, -1}};
  for (int64_t a = 0; a < d; ++a) pairs.push_back({a, -1});
  if (kind == Kind::kTrace) pairs.push_back({kSquares, -1});
  for (int64_t a = 0; a < d && (kind == Kind::kDiag || kind == Kind::kFull); ++a)
    for (int64_t b = a; b < (kind == Kind::kDiag ? a + 1 : d); ++b) pairs.push_back({a, b});
  return pairs;
}

// Features `first` to `last` of a tile; those past the end are 0.
template <class T>
void features(const std::vector<Pair>& pairs, int64_t d, int64_t tile, const T* x, int64_t first, int64_t last, T* phi) {
  using S = Simd<T>;
  for (int64_t q = first; q < last; ++q, phi += tile) {
    if (q >= int64_t(pairs.size())) {
      std::fill(phi, phi + tile, T(0));
      continue;
    }
    const auto [a, b] = pairs[q];
    for (int64_t i = 0; i < tile; i += S::W) {
      auto value = S::all(1);
      if (a == kSquares) {
        value = S::all(0);
        for (int64_t c = 0; c < d; ++c) value += S::load(x + c * tile + i) * S::load(x + c * tile + i);
      } else if (a >= 0) {
        value = S::load(x + a * tile + i);
        if (b >= 0) value *= S::load(x + b * tile + i);
      }
      S::store(phi + i, value);
    }
  }
}

// sum[h, side] += Σ_q a[h, q] b[q, i + side], for H rows of a, `stride` apart, and kWide vectors of columns of b.
template <class T, int H>
void multiply(const T* a, int64_t stride, const T* b, int64_t count, int64_t tile,
              typename Simd<T>::V (&sum)[H][kWide]) {
  using S = Simd<T>;
  for (int64_t q = 0; q < count; ++q) {
    typename S::V v[kWide];
    for (int side = 0; side < kWide; ++side) v[side] = S::load(b + q * tile + side * S::W);
    for (int h = 0; h < H; ++h) {
      const T c = a[h * stride + q];
      for (int side = 0; side < kWide; ++side) sum[h][side] += c * v[side];
    }
  }
}

// H components of the first product: out[h, i] (+)= Σ_q coefficients[h, q] phi[q, i], over `count` features.
template <class T, int H>
void log_densities(const T* coefficients, const T* phi, int64_t p, int64_t count, int64_t tile, bool more, T* out) {
  using S = Simd<T>;
  for (int64_t i = 0; i < tile; i += kWide * S::W) {
    typename S::V sum[H][kWide] = {};
    for (int h = 0; h < H && more; ++h)
      for (int side = 0; side < kWide; ++side) sum[h][side] = S::load(out + h * tile + i + side * S::W);
    multiply(coefficients, p, phi + i, count, tile, sum);
    for (int h = 0; h < H; ++h)
      for (int side = 0; side < kWide; ++side) S::store(out + h * tile + i + side * S::W, sum[h][side]);
  }
}

template <class T, int H = kTall>
void all_log_densities(const T* coefficients, const T* phi, int64_t k, int64_t p, int64_t count, int64_t tile,
                       bool more, T* out) {
  if constexpr (H > 0) {
    for (; k >= H; k -= H, coefficients += H * p, out += H * tile)
      log_densities<T, H>(coefficients, phi, p, count, tile, more, out);
    if (k > 0) all_log_densities<T, H - 1>(coefficients, phi, k, p, count, tile, more, out);
  }
}

// common[i] = −½ ‖U x_i‖², the term of a log-density that all components share; y is room for U x.
template <class T> void shared_term(const T* u, const T* xt, int64_t q, int64_t d, int64_t tile, T* y, T* common) {
  using S = Simd<T>;
  if (q > 0) all_log_densities(u, xt, q, d, d, tile, false, y);
  for (int64_t i = 0; i < tile; i += S::W) {
    typename S::V sum = {};
    for (int64_t b = 0; b < q; ++b) sum += S::load(y + b * tile + i) * S::load(y + b * tile + i);
    S::store(common + i, T(-0.5) * sum);
  }
}

// Log-densities [k, tile], less `common`, become responsibilities times weights; returns Σ w log p.
template <class T> double softmax(T* joint, const T* common, const T* weights, int64_t k, int64_t tile) {
  using S = Simd<T>;
  typename S::D total = {};  // a change of one part in 10⁸ between two steps must show
  for (int64_t i = 0; i < tile; i += S::W) {
    auto largest = S::load(joint + i);
    for (int64_t j = 1; j < k; ++j) {
      const auto v = S::load(joint + j * tile + i);
      largest = v > largest ? v : largest;
    }
    typename S::V sum = {};
    for (int64_t j = 0; j < k; ++j) {
      const auto e = S::exp(S::load(joint + j * tile + i) - largest);
      S::store(joint + j * tile + i, e);
      sum += e;
    }
    const auto w = S::load(weights + i), scale = w / sum;
    for (int64_t j = 0; j < k; ++j)
      S::store(joint + j * tile + i, S::load(joint + j * tile + i) * scale);
    const auto value = w * (largest + S::load(common + i) + S::log(sum));
    total += __builtin_convertvector(value, typename S::D);
  }
  double sum = 0;
  for (int i = 0; i < S::W; ++i) sum += total[i];
  return sum;
}

// Of `k` components, how many the next block of the second product takes: blocks as high as registers allow, and
// alike.
int64_t height(int64_t k) {
  const int64_t blocks = (k + kHigh - 1) / kHigh;
  return (k + blocks - 1) / blocks;
}

// A block of the second product, Σ_i r[h, i] phi[q, i], H components by kRun features at a time, added to `out`.
template <class T, int H = kHigh>
void moments(int64_t high, const T* r, const T* phi, int64_t count, int64_t tile, double* out) {
  using S = Simd<T>;
  if constexpr (H > 1)
    if (high < H) return moments<T, H - 1>(high, r, phi, count, tile, out);
  constexpr int sums = H * kRun;
  for (int64_t q = 0; q < count; q += kRun, out += sums) {
    typename S::V sum[(sums + S::W - 1) / S::W * S::W] = {};
    for (int64_t i = 0; i < tile; i += S::W) {
      typename S::V f[kRun];
      for (int b = 0; b < kRun; ++b) f[b] = S::load(phi + (q + b) * tile + i);
      for (int h = 0; h < H; ++h) {
        const auto v = S::load(r + h * tile + i);
        for (int b = 0; b < kRun; ++b) sum[h * kRun + b] += v * f[b];
      }
    }
    for (int c = 0; c < sums; c += S::W) {  // may end in zeros, past the block
      alignas(kBytes) T whole[S::W];
      S::store(whole, S::sums(sum + c));
      for (int i = 0; i < S::W; ++i) out[c + i] += whole[i];
    }
  }
}

template <class T, ffi::DataType D>
ffi::Error expect(ffi::ThreadPool pool, int64_t kind_number, ffi::Buffer<D> coefficients,
                  ffi::Buffer<D> whitening, ffi::Buffer<D> rows, ffi::Buffer<D> weights, ffi::ResultBuffer<D> sums, ffi::ResultBuffer<D> log_likelihood) {
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
  const Plan plan(n, count, same, pool.num_threads());

  const int64_t p4 = up(p, kRun), part = k * p4 + S::W;
  const std::vector<Pair> pairs = pairs_of(kind, d);
  int64_t most = kTile / sizeof(T);
  while (most > 2 * kWide * S::W && k * most * int64_t(sizeof(T)) > kCache / 2) most /= 2;
  const int64_t tile = tile_of<T>(plan.rows, most);
  // Where the features of a tile do not fit beside the log-densities they are made twice, a panel at a time.
  const int64_t room = std::max<int64_t>(kCache / int64_t(sizeof(T)) / tile - k, 64);
  const int64_t panel = std::min(p4, room / kRun * kRun);
  std::vector<double> parts(plan.chunks * count * part, 0.0), values(plan.chunks * count, 0.0);

  in_parallel(pool, plan.chunks * plan.groups, [&](int64_t task) {
    const int64_t chunk = task / plan.groups, group = task % plan.groups;
    const int64_t begin = chunk * plan.rows, end = std::min(n, begin + plan.rows);
    const int64_t first = group * plan.lanes, last = std::min(count, first + plan.lanes);
    std::vector<T> storage[6];
    T* phi = aligned(storage[0], panel * tile);
    T* xt = aligned(storage[5], d * tile);
    T* joint = aligned(storage[1], k * tile);
    T* weight = aligned(storage[2], tile);
    T* white = aligned(storage[3], shared * tile);
    T* common = aligned(storage[4], tile);
    for (int64_t at = begin; at < end; at += tile) {
      transpose(x.lane(first), d, at, end, tile, xt);
      if (panel == p4) features(pairs, d, tile, xt, 0, p4, phi);
      const int64_t here = std::min(tile, end - at);
      for (int64_t lane = first; lane < last; ++lane) {
        std::memcpy(weight, w.lane(lane) + at, here * sizeof(T));
        std::fill(weight + here, weight + tile, T(0));
        for (int64_t q = 0; q < p; q += panel) {
          if (panel < p4) features(pairs, d, tile, xt, q, std::min(q + panel, p4), phi);
          all_log_densities(c.lane(lane) + q, phi, k, p, std::min(panel, p - q), tile, q > 0, joint);
        }
        if (shared > 0) shared_term(u.lane(lane), xt, shared, d, tile, white, common);
        const int64_t slot = chunk * count + lane;
        values[slot] += softmax(joint, common, weight, k, tile);
        double* out = parts.data() + slot * part;
        for (int64_t q = 0; q < p4; q += panel) {
          const int64_t length = std::min(panel, p4 - q);
          if (panel < p4) features(pairs, d, tile, xt, q, q + length, phi);
          for (int64_t j = 0, high; j < k; j += high) {
            high = height(k - j);
            moments(high, joint + j * tile, phi, length, tile, out + j * p4 + q * high);
          }
        }
      }
    }
  });

  in_parallel(pool, count, [&](int64_t lane) {
    T* out = sums->typed_data() + lane * k * p;
    for (int64_t j = 0, high; j < k; j += high) {
      high = height(k - j);
      for (int64_t h = 0; h < high; ++h)
        for (int64_t q = 0; q < p; ++q) {
          const int64_t place = j * p4 + (q / kRun * high + h) * kRun + q % kRun;
          double sum = 0;
          for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) sum += parts[(chunk * count + lane) * part + place];
          out[(j + h) * p + q] = T(sum);
        }
    }
    double value = 0;
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) value += values[chunk * count + lane];
    log_likelihood->typed_data()[lane] = T(value);
  });
  return ffi::Error::Success();
}

// Labels of a tile: argmax_j c_j·x − ½‖c_j‖², the first of equals. `best` holds −inf and `label` 0 before.
template <class T, int H>
void nearest(const T* centers, const T* half, const T* xt, int64_t j, int64_t d, int64_t tile, T* best,
             typename Traits<T>::Int* label) {
  using S = Simd<T>;
  typedef typename S::Int U __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  for (int64_t i = 0; i < tile; i += kWide * S::W) {
    typename S::V sum[H][kWide];
    for (int h = 0; h < H; ++h)
      for (int side = 0; side < kWide; ++side) sum[h][side] = S::all(-half[j + h]);
    multiply(centers + j * d, d, xt + i, d, tile, sum);
    for (int side = 0; side < kWide; ++side) {
      auto top = S::load(best + i + side * S::W);
      U* place = reinterpret_cast<U*>(label + i + side * S::W);
      typename S::I which = *place;
      for (int h = 0; h < H; ++h) {
        const typename S::I more = sum[h][side] > top;
        top = more ? sum[h][side] : top;
        which = more ? typename S::I{} + typename S::Int(j + h) : which;
      }
      S::store(best + i + side * S::W, top);
      *place = which;
    }
  }
}

template <class T, int H = kTall>
void all_nearest(const T* centers, const T* half, const T* xt, int64_t j, int64_t k, int64_t d, int64_t tile, T* best,
                 typename Traits<T>::Int* label) {
  if constexpr (H > 0) {
    for (; k - j >= H; j += H) nearest<T, H>(centers, half, xt, j, d, tile, best, label);
    if (j < k) all_nearest<T, H - 1>(centers, half, xt, j, k, d, tile, best, label);
  }
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
  const Plan plan(n, count, same, pool.num_threads());
  const int64_t part = k * (d + 1);
  const int64_t tile = tile_of<T>(plan.rows, kTile / sizeof(T));
  struct Far { T distance = 0; int64_t row = -1; };
  std::vector<double> parts(plan.chunks * count * part, 0.0), values(plan.chunks * count, 0.0);
  std::vector<Far> far(plan.chunks * count);

  in_parallel(pool, plan.chunks * plan.groups, [&](int64_t task) {
    const int64_t chunk = task / plan.groups, group = task % plan.groups;
    const int64_t begin = chunk * plan.rows, end = std::min(n, begin + plan.rows);
    const int64_t lane0 = group * plan.lanes, lane1 = std::min(count, lane0 + plan.lanes);
    std::vector<T> storage[3];
    std::vector<typename S::Int> label(tile);
    T* xt = aligned(storage[0], d * tile);
    T* best = aligned(storage[1], tile);
    T* half = aligned(storage[2], k * (lane1 - lane0));
    for (int64_t j = 0; j < k * (lane1 - lane0); ++j) {
      const T* center = c.lane(lane0 + j / k) + (j % k) * d;
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
        all_nearest(center, half + (lane - lane0) * k, xt, 0, k, d, tile, best, label.data());
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
