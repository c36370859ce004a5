"""The REST interface as a library: its limits, its schemas and a client. Needs neither PyTorch nor gRPC."""
