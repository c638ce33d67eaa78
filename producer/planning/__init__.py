"""A manifest on its way to a plan and a live run. Renders nothing, shows nothing."""
