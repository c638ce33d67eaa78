"""OpenAI batches: ordinary runs with OpenAI's face. No HTTP below here."""
