"""`sdft plan`: what an update needs on a TPU topology, from the TPU compiler, without a TPU."""
