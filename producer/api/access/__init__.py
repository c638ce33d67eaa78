"""Keys and signatures: who may do what. Knows nothing of HTTP."""
