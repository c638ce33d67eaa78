"""The endpoints under /openai/v1."""
