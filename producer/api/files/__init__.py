"""Stored files of teams, and how they are downloaded."""
