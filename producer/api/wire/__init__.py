"""How HTTP bodies are read and errors answered. Knows no endpoint."""
