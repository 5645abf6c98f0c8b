# EM by mclust from given starts, timed inside.
# Rscript mclust.R FILE VVV|VVI n d k restarts steps
# FILE has the rows, then the starting means of each restart, float64; FILE.out gets the seconds and the last
# parameters.
suppressMessages(library(mclust))
a <- commandArgs(TRUE)
n <- as.integer(a[3]); d <- as.integer(a[4]); k <- as.integer(a[5])
r <- as.integer(a[6]); steps <- as.integer(a[7])
file <- file(a[1], "rb")
x <- matrix(readBin(file, "double", n * d), n, d, byrow = TRUE)
starts <- array(readBin(file, "double", r * k * d), c(d, k, r))
close(file)
seconds <- 0
best <- -Inf
control <- emControl(itmax = c(steps, 100), tol = c(0, sqrt(.Machine$double.eps)))
for (i in seq_len(r)) {
  sigma <- array(diag(d), c(d, d, k))
  variance <- mclustVariance(a[2], d = d, G = k)
  if (a[2] == "VVV") { variance$sigma <- sigma; variance$cholsigma <- sigma }
  else { variance$scale <- rep(1, k); variance$shape <- matrix(1, d, k) }
  parameters <- list(pro = rep(1 / k, k), mean = matrix(starts[, , i], d, k), variance = variance)
  begin <- proc.time()[["elapsed"]]
  fit <- em(x, modelName = a[2], parameters = parameters, control = control, warn = FALSE)
  seconds <- seconds + proc.time()[["elapsed"]] - begin
  if (isTRUE(fit$loglik > best)) { best <- fit$loglik; keep <- fit$parameters }
}
out <- file(paste0(a[1], ".out"), "wb")
writeBin(c(seconds, keep$pro, as.vector(keep$mean), as.vector(keep$variance$sigma)), out)
close(out)
