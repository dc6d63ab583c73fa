"""Benchmarks: ratios against qemu-img, measured side by side in one run."""
