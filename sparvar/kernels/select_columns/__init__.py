"""The keys with the largest column sums."""
