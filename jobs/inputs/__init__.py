"""Input images, from what somebody wrote to checked pixels. Nothing here knows a model or a run."""
