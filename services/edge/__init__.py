"""The edge service: holds the compact generator and the encoder, and sends."""
