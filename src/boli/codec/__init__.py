"""Vectors to bytes and back; knows nothing of training."""
