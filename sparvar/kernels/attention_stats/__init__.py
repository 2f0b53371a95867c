"""Dense attention with its log-sum-exp and entropy."""
