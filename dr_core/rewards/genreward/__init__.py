"""GenReward (arXiv 2512.00961): a reward from a goal video, beside the reward of a video model."""
