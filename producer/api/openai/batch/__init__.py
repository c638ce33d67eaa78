"""OpenAI batches: ordinary runs with OpenAI's face. No HTTP below here.

Everywhere else a batch is what one pipeline call renders; here it is a job, the wire's own word: an
endpoint, a prefix of ids and the kind of an object.
"""
