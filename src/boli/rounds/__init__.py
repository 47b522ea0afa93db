"""The coordinator's algorithm: numpy only, no engine, no torch."""
