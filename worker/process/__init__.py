"""Processes, devices and leases around the rendering. Imports no torch."""
