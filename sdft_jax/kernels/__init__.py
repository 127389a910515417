"""Kernels tuned for individual platforms, tested against a plain JAX reference; fixed settings of JAX."""
