"""Speech and text at the edge, on their way to clean records."""
