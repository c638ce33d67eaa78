"""What lies in Redis for runs: messages, live state, workers. The only place that knows kombu."""
