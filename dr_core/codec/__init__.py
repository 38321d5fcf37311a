"""Image codecs: 64x64 frames to an 8x8 grid of codes and back."""
