"""MAKD: metaword-aided knowledge distillation, its baselines, and the knowledge update it makes."""
