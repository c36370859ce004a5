"""What committed results fill of the pages that people write: tables, values and plots."""
