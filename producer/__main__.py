"""`python -m producer` is the command `imagemill`."""

from producer.cli import main

main()
