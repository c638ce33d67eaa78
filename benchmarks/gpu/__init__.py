"""The steps of benchmarks/gpu_day.py, each run in a process of its own."""
