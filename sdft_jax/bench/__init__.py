"""Side-by-side measurements, each against a named peer or a physical limit in the same run."""
