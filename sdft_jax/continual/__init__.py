"""Stage after stage: training on each in turn, and measuring what is kept."""
