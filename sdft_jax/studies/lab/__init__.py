"""The paper's experiments at small scale: `sdft lab`."""
