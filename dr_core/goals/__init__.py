"""Goal videos: what the finished task looks like, taken from a file, generated, or imagined by a reward model."""
