"""The endpoints of friendli-images.openapi.yaml."""
