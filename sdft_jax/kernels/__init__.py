"""Kernels tuned for individual platforms, each tested against a plain JAX reference."""
