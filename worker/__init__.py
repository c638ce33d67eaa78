"""The device side: loads pipelines, renders, encodes, stores. Never imports producer."""
