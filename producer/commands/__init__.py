"""The commands of `imagemill`, thin. What they need is imported when they run: --help is fast."""
