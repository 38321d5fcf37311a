"""How good a reward is: scoring of recordings, the discrimination study, and the report on a run."""
