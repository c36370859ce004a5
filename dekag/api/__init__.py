"""The REST interface as a library: limits, schemas and a client. It needs neither PyTorch nor gRPC."""
