"""The processes of the chain, one package each, and what they share."""
