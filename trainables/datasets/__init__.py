"""The datasets that a space may name: read, converted once, and mapped into memory."""
