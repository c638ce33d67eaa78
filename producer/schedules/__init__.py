"""Runs that nobody types a command for: by the clock, or by a manifest that arrives."""
