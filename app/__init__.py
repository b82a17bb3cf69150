"""The service: packed networks behind HTTP, and the command line. Imports no training code."""
