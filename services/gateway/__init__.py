"""The gateway: serves REST and calls the user and cloud services over gRPC; the only exposed service."""
