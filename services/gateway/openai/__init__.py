"""What makes clients of the OpenAI Images API work unchanged: errors, models, streams of events."""
