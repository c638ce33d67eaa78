"""A finished dataset in other forms: which images, in which shards, written how, described."""
