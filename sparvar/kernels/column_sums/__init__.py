"""Softmax mass per key and query tile."""
