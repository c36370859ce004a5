"""What the services share: settings, server, errors, request context, cache, converters."""
