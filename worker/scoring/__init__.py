"""Scores of finished images: what a scorer is, those that come along, and the job."""
