"""Discrete diffusion over tokens: schedule, noise process, and denoising networks."""
