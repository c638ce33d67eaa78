"""What becomes of runs that are live: looked at, followed, stopped, resumed."""
