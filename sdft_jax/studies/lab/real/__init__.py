"""The study on a pretrained model: `sdft lab real`; the results are in REAL.md."""
