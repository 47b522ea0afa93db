"""What is trained: base model, adapter, and the inner loop of a site."""
