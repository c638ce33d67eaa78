"""The contract between producers and workers. Imports neither torch nor fastapi."""
