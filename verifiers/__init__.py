"""Verifiers: +1, -1 or invalid; the same verdict online and offline. One verifier a file."""
