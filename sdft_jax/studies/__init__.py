"""The paper's experiments at small scale (`lab`) and measurements of speed (`bench`)."""
