"""The gateway: REST outside, gRPC to the user's device inside; the only service that is exposed."""
