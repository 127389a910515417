"""Faster paths of single platforms, each beside a plain equal that it is tested against."""
