# mclust's default fit, and the best of many random starts of its EM run to a tight limit.
# Rscript mclust_starts.R FILE MODELS KS STARTS, as in: Rscript mclust_starts.R wine.csv EII,EEE 2,3 200
# FILE has the rows. Prints a line for each model and k: model,k,default,best,hits.
# Starts are labels: in turn drawn at random, and by k-means from random rows, of the columns as they are and scaled.
suppressMessages(library(mclust))
a <- commandArgs(TRUE)
x <- as.matrix(read.csv(a[1], header = FALSE))
scaled <- scale(x)
control <- emControl(tol = c(1e-10, sqrt(.Machine$double.eps)), itmax = c(5000, 1000))
set.seed(1)
for (model in strsplit(a[2], ",")[[1]]) for (k in as.integer(strsplit(a[3], ",")[[1]])) {
  default <- Mclust(x, G = k, modelNames = model, verbose = FALSE)
  value <- sapply(seq_len(as.integer(a[4])), function(i) {
    labels <- switch(i %% 3 + 1, sample(rep_len(seq_len(k), nrow(x))),
                     suppressWarnings(kmeans(x, k, iter.max = 100)$cluster),
                     suppressWarnings(kmeans(scaled, k, iter.max = 100)$cluster))
    fit <- me(x, modelName = model, z = unmap(labels), control = control)
    if (is.null(fit$loglik) || !is.finite(fit$loglik)) NA else fit$loglik
  })
  best <- max(value, na.rm = TRUE)
  cat(model, k, format(if (is.null(default)) NA else default$loglik, digits = 15),
      format(best, digits = 15), sum(value > best - 1e-3, na.rm = TRUE), sep = ",")
  cat("\n")
}
