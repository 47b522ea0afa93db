"""What a node does with an order, and its durable outbox."""
