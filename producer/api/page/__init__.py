"""The page at /: runs and their pictures, rendered here, readable without JavaScript."""
