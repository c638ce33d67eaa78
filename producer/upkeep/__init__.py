"""What is done with a dataset afterwards: checked, rendered again, drawn, described."""
