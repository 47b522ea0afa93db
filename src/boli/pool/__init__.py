"""Clean text that many sites share: a versioned table with consent, residency and erasure."""
