"""Policies: what turns observations into actions in [-1, 1]."""
