"""The HTTP surface: routes, their schemas and their dependencies."""
