"""A whole installation on this machine: broker and workers as children of one command."""
