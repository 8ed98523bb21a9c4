"""The chain indexed, as JSON and as pages."""
