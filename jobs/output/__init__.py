"""A run's files: where they lie, what they hold. The only place that opens storage."""
