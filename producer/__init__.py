"""Everything that puts work in or looks at it. Never imports torch or worker."""
