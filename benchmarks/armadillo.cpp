// EM and Lloyd by Armadillo from given starts, timed inside.
// armadillo FILE full|diag|k-means f32|f64 n d k restarts steps
// FILE has the rows, then the starting means of each restart; FILE.out gets the seconds and the last parameters.
#include <armadillo>
#include <chrono>
#include <fstream>
#include <string>

template <typename T, typename Model, typename Cov>
double em(const arma::Mat<T>& x, const arma::Cube<T>& starts, int steps, Cov eye, std::ofstream& out) {
  double seconds = 0, best = -arma::datum::inf;
  Model keep;
  const auto k = starts.n_cols;
  for (arma::uword r = 0; r < starts.n_slices; ++r) {
    Model model;
    model.set_params(starts.slice(r), eye, arma::Row<T>(k).fill(T(1) / T(k)));
    const auto begin = std::chrono::steady_clock::now();
    model.learn(x, k, arma::eucl_dist, arma::keep_existing, 0, steps, T(1e-10), false);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const double value = model.avg_log_p(x);
    if (value > best) { best = value; keep = model; }
  }
  arma::Mat<T> means = keep.means;
  arma::Row<T> weights = keep.hefts;
  out.write(reinterpret_cast<const char*>(weights.memptr()), sizeof(T) * weights.n_elem);
  out.write(reinterpret_cast<const char*>(means.memptr()), sizeof(T) * means.n_elem);
  if constexpr (std::is_same_v<Cov, arma::Cube<T>>) {
    arma::Cube<T> c = keep.fcovs;
    out.write(reinterpret_cast<const char*>(c.memptr()), sizeof(T) * c.n_elem);
  } else {
    arma::Mat<T> c = keep.dcovs;
    out.write(reinterpret_cast<const char*>(c.memptr()), sizeof(T) * c.n_elem);
  }
  return seconds;
}

template <typename T>
double lloyd(const arma::Mat<T>& x, const arma::Cube<T>& starts, int steps, std::ofstream& out) {
  double seconds = 0, best = arma::datum::inf;
  arma::Mat<T> keep;
  for (arma::uword r = 0; r < starts.n_slices; ++r) {
    arma::Mat<T> means = starts.slice(r);
    const auto begin = std::chrono::steady_clock::now();
    arma::kmeans(means, x, means.n_cols, arma::keep_existing, steps, false);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (starts.n_slices == 1) { keep = means; break; }
    double inertia = 0;
    for (arma::uword i = 0; i < x.n_cols; ++i) {
      double least = arma::datum::inf;
      for (arma::uword j = 0; j < means.n_cols; ++j)
        least = std::min(least, double(arma::accu(arma::square(x.col(i) - means.col(j)))));
      inertia += least;
    }
    if (inertia < best) { best = inertia; keep = means; }
  }
  out.write(reinterpret_cast<const char*>(keep.memptr()), sizeof(T) * keep.n_elem);
  return seconds;
}

template <typename T>
int run(char** a) {
  const std::string kind = a[2];
  const arma::uword n = std::stoul(a[4]), d = std::stoul(a[5]), k = std::stoul(a[6]), r = std::stoul(a[7]);
  const int steps = std::stoi(a[8]);
  arma::Mat<T> x(d, n);
  arma::Cube<T> starts(d, k, r);
  std::ifstream in(a[1], std::ios::binary);
  in.read(reinterpret_cast<char*>(x.memptr()), sizeof(T) * x.n_elem);
  in.read(reinterpret_cast<char*>(starts.memptr()), sizeof(T) * starts.n_elem);
  if (!in) return 1;
  std::ofstream out(std::string(a[1]) + ".out", std::ios::binary);
  double seconds = 0;
  out.write(reinterpret_cast<const char*>(&seconds), sizeof seconds);
  if (kind == "k-means") {
    seconds = lloyd<T>(x, starts, steps, out);
  } else if (kind == "diag") {
    arma::Mat<T> eye(d, k, arma::fill::ones);
    seconds = em<T, arma::gmm_priv::gmm_diag<T>>(x, starts, steps, eye, out);
  } else {
    arma::Cube<T> eye(d, d, k);
    eye.each_slice() = arma::Mat<T>(d, d, arma::fill::eye);
    seconds = em<T, arma::gmm_priv::gmm_full<T>>(x, starts, steps, eye, out);
  }
  out.seekp(0);
  out.write(reinterpret_cast<const char*>(&seconds), sizeof seconds);
  return 0;
}

int main(int, char** a) { return std::string(a[3]) == "f32" ? run<float>(a) : run<double>(a); }
