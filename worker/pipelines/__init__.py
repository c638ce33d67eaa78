"""Diffusers pipelines. The only place that imports torch and diffusers."""
