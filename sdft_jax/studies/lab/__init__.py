"""The paper's experiments in small: `sdft lab`."""
