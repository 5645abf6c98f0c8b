# A batch of fits by mclust, timed inside.
# Rscript mclust_batch.R FOLDER MODEL k
# FOLDER/x.csv has the rows, FOLDER/index.csv a line of row numbers (from 1) for each data set.
# FOLDER/out.csv gets a line of seconds, then a log-likelihood a line.
suppressMessages(library(mclust))
a <- commandArgs(TRUE)
x <- as.matrix(read.csv(file.path(a[1], "x.csv"), header = FALSE))
index <- as.matrix(read.csv(file.path(a[1], "index.csv"), header = FALSE))
k <- as.integer(a[3])
begin <- proc.time()[["elapsed"]]
value <- apply(index, 1, function(rows) {
  fit <- Mclust(x[rows, , drop = FALSE], G = k, modelNames = a[2], verbose = FALSE)
  if (is.null(fit)) NA else fit$loglik
})
seconds <- proc.time()[["elapsed"]] - begin
start <- Mclust(x, G = k, modelNames = a[2], verbose = FALSE)
begin <- proc.time()[["elapsed"]]
again <- MclustBootstrap(start, nboot = nrow(index), type = "bs", verbose = FALSE)
refits <- proc.time()[["elapsed"]] - begin
write.table(format(c(seconds, refits, value), digits = 15), file.path(a[1], "out.csv"),
            quote = FALSE, row.names = FALSE, col.names = FALSE)
