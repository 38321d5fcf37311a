"""Image codecs: 64×64 frames to an 8×8 grid of codes and back."""
