"""Continual learning: training on a sequence of stages, and measuring forgetting."""
