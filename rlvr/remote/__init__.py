"""Environments over HTTP: `protocol` is what is said, `server` offers one of ours, `client` plays any by its URL."""
