"""The HTTP facade: calls and batches on the same workers. The only place that knows FastAPI."""
