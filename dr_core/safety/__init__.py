"""What stands between a policy and a moving arm: limits, and the gate that enforces them. Without torch."""
