"""What runs where the KV cache keeps fewer keys."""
