"""The embedded model, and the comparison that `deltapass demo` shows."""
