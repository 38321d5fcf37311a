"""Rewards computed from a video model, and the terms that are added to them."""
