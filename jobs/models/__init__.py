"""What models are, read from models.toml and hub files alone. Nothing here loads weights."""
