"""Scripts that print the figures of the README: `python -m benchmarks` lists them."""
