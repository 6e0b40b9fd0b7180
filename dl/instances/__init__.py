"""Instances and externals as objects, and modules that are linked by import name."""
