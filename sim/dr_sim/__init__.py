"""Simulated tasks: Meta-World and Adroit environments, their scripted experts, and their recorder."""
