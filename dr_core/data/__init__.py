"""Recordings: episodes in bags, images, videos."""
