"""Interactive calls in Redis, from both sides. Nothing of them outlives their callers."""
